"""`orders-backup encryption-keys`: the encryption keys of what is stored."""

import asyncio
from collections.abc import Callable

import typer

from cli.errors import RefusedError
from cli.output import AsJson, progress_console, show_json
from shared.database import close_pool, open_pool
from shared.encryption import Keyring
from shared.key_rotation import RotationProgress, check_keys
from shared.key_rotation import rotate as rotate_keys
from shared.settings import DatabaseSettings, EncryptionSettings, load

app = typer.Typer(no_args_is_help=True, help="The encryption keys of what is stored.")


class _Settings(DatabaseSettings, EncryptionSettings):
    """What the rotation needs."""


@app.command()
def rotate(as_json: AsJson = False) -> None:
    """Encrypt every stored secret with the first key of ENCRYPTION_KEYS; safe to repeat, while services run.

    Ends with 0 only if no secret is of another key any more.
    """
    settings = load(_Settings)
    with progress_console().status("Encrypting with the first key") as spinner:
        done = asyncio.run(_rotate(settings.database_url.get_secret_value(), settings.keyring(), spinner.update))
    if as_json:
        show_json({"moved": done.moved, "left": done.left})
    else:
        typer.echo(f"{done.moved} secrets moved to the first key, {done.left} are still of another")
    if done.left:
        raise RefusedError(
            "a service whose first key is another stored secrets meanwhile: put the new key first there, rotate again"
        )


async def _rotate(database_url: str, keyring: Keyring, tell: Callable[[str], None]) -> RotationProgress:
    pool = await open_pool(database_url, service="cli", max_size=2)
    try:
        await check_keys(pool, keyring)
        done = RotationProgress(moved=0, left=0)
        async for done in rotate_keys(pool, keyring):
            tell(f"{done.moved} secrets moved, {done.left} left")
        return done
    finally:
        await close_pool(pool)
