"""`orders-backup keys`: the encryption keys of what is stored."""

import asyncio

import typer

from cli.output import AsJson, show_json
from shared.database import close_pool, open_pool
from shared.encryption import Keyring
from shared.key_rotation import check_keys
from shared.key_rotation import rotate as rotate_keys
from shared.settings import DatabaseSettings, EncryptionSettings, load

app = typer.Typer(no_args_is_help=True, help="The encryption keys of what is stored.")


class _Settings(DatabaseSettings, EncryptionSettings):
    """What the rotation needs."""


@app.command()
def rotate(as_json: AsJson = False) -> None:
    """Encrypt every stored secret with the first key of ENCRYPTION_KEYS; safe to repeat, while services run."""
    settings = load(_Settings)
    moved, left = asyncio.run(_rotate(settings.database_url.get_secret_value(), settings.keyring()))
    if as_json:
        show_json({"moved": moved, "left": left})
    else:
        typer.echo(f"{moved} secrets moved to the first key, {left} are still of another")


async def _rotate(database_url: str, keyring: Keyring) -> tuple[int, int]:
    pool = await open_pool(database_url, service="cli", max_size=2)
    try:
        await check_keys(pool, keyring)
        moved = left = 0
        async for progress in rotate_keys(pool, keyring):
            moved, left = progress.moved, progress.left
        return moved, left
    finally:
        await close_pool(pool)
