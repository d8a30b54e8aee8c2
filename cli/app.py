"""The command line put together.

Exit codes: 0 done; 1 refused or failed; 2 wrong usage or setting; 3 something is not reachable, try again later;
130 interrupted.
"""

import os
import sys

import typer

from cli import dead_letters, encryption_keys, keys, orders, sync, tokens
from cli.auth import auth
from cli.doctor import doctor
from cli.errors import AwayError, is_of_a_file
from cli.reconcile import reconcile
from cli.setup import setup
from cli.stats import stats
from cli.up import ANY_ARGUMENTS, up
from cli.verify import verify
from shared.database import TRANSIENT_DATABASE_ERRORS
from shared.errors import ConfigurationError, OrdersBackupError, TransientError

_AWAY_ERRORS: tuple[type[Exception], ...] = (AwayError, TransientError, *TRANSIENT_DATABASE_ERRORS)
_FAILED = 1
_MISUSED = 2
_AWAY = 3

app = typer.Typer(
    name="orders-backup",
    no_args_is_help=True,
    help="Run and look after Allegro Orders Backup.",
    epilog="Exit codes: 0 done; 1 refused or failed; 2 wrong usage or setting; 3 not reachable, try again later.",
    pretty_exceptions_enable=False,
)
app.command(context_settings=ANY_ARGUMENTS)(up)
app.command()(setup)
app.command()(auth)
app.command()(doctor)
app.command()(stats)
app.command()(reconcile)
app.command()(verify)
app.add_typer(tokens.app, name="tokens")
app.add_typer(sync.app, name="sync")
app.add_typer(orders.app, name="orders")
app.add_typer(dead_letters.app, name="dead-letters")
app.add_typer(keys.app, name="keys")
app.add_typer(encryption_keys.app, name="encryption-keys")
# What the two were called before; scripts of operators may say so still.
app.add_typer(keys.app, name="api-keys", hidden=True)
keys.app.command("rotate", hidden=True)(encryption_keys.rotate)


def main() -> None:
    """Entry point: errors become one line and an exit code, here and nowhere else."""
    try:
        _run()
    except ConfigurationError as error:
        _end(error, _MISUSED)
    except _AWAY_ERRORS as error:
        _end(error, _FAILED if is_of_a_file(error) else _AWAY)
    except OrdersBackupError as error:
        _end(error, _FAILED)


def _run() -> None:
    try:
        app()
    finally:
        try:
            sys.stdout.flush()
        except OSError as error:
            # What did not get out would be tried again at the very end, and the code be Python's own.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            if isinstance(error, BrokenPipeError):
                sys.exit(_FAILED)  # Whoever read has seen enough.
            raise


def _end(error: Exception, code: int) -> None:
    sys.stderr.write(f"orders-backup: {error}\n")
    sys.exit(code)
