"""The command line put together. Exit codes: 0 done, 1 it failed, 2 wrong usage or setting."""

import sys

import typer

from cli.setup import setup
from shared.errors import ConfigurationError, OrdersBackupError

app = typer.Typer(name="orders-backup", no_args_is_help=True, help="Run and look after Allegro Orders Backup.")
app.command()(setup)


@app.callback()
def _commands() -> None:
    """Run and look after Allegro Orders Backup."""


def main() -> None:
    """Entry point: errors become one line and an exit code, here and nowhere else."""
    try:
        app()
    except ConfigurationError as error:
        sys.stderr.write(f"orders-backup: {error}\n")
        sys.exit(2)
    except OrdersBackupError as error:
        sys.stderr.write(f"orders-backup: {error}\n")
        sys.exit(1)
