"""`orders-backup keys`: who may call the REST API. Works on the database itself, as nobody has a key at first."""

import asyncio
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any, TypeVar

import asyncpg
import typer

from cli.output import AsJson, show_json, show_table
from shared.api_keys import AccessScope, ApiKey, all_keys, create_key, revoke_key
from shared.database import close_pool, open_pool
from shared.settings import DatabaseSettings, load

app = typer.Typer(no_args_is_help=True, help="Keys of the REST API: who may call it.")

_LIST = (
    *("name", "scope", "user_ids", "requests_per_minute", "status", "created_at", "expires_at", "last_used_at"),
    "public_id",
)
# As the API names callers where no key is needed (`services.api.access.ANONYMOUS`).
_NOBODY = "anonymous"
_Result = TypeVar("_Result")

Name = Annotated[str, typer.Argument(help="Names the key in lists and in the audit log; never used twice.")]


@app.command()
def create(
    name: Name,
    scope: Annotated[AccessScope, typer.Option(help="read; control: also start and stop; admin: everything.")],
    user: Annotated[list[str] | None, typer.Option(help="Only for this user; may be given several times.")] = None,
    expires_in_days: Annotated[int | None, typer.Option(min=1, max=3650, help="Of no use after so many days.")] = None,
    requests_per_minute: Annotated[
        int | None, typer.Option(min=1, max=10_000_000, help="Instead of API_REQUESTS_PER_MINUTE.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Make a key and print it, this once: only its hash is stored."""
    if not name.strip() or len(name) > 100 or not name.isprintable():
        raise typer.BadParameter("a name has 1 to 100 printable characters")
    if name.strip().casefold() == _NOBODY:
        raise typer.BadParameter(
            f"{_NOBODY} is what the audit log and tasks call callers without a key: choose another"
        )
    expires_at = None if expires_in_days is None else datetime.now(UTC) + timedelta(days=expires_in_days)
    key = _on_database(
        lambda pool: create_key(
            pool, name, scope, user_ids=user or None, requests_per_minute=requests_per_minute, expires_at=expires_at
        )
    )
    if as_json:
        show_json({"name": name, "key": key.reveal()})
    else:
        typer.echo(key.reveal())
        typer.echo("Keep it now, it is shown nowhere again. Send it as: Authorization: Bearer <key>", err=True)


@app.command("list")
def list_keys(as_json: AsJson = False) -> None:
    """Every key there is or was, without what opens anything."""
    now = datetime.now(UTC)
    rows = [_row(key, now) for key in _on_database(all_keys)]
    if as_json:
        show_json(rows)
    else:
        show_table(rows, _LIST, empty="There are no keys: orders-backup keys create NAME --scope admin")


@app.command()
def revoke(name: Name, as_json: AsJson = False) -> None:
    """Make a key useless, within about a second; its name stays in the list and in the audit log."""
    _on_database(lambda pool: revoke_key(pool, name))
    if as_json:
        show_json({"name": name, "status": "revoked"})
    else:
        typer.echo(f"{name} is revoked")


def _on_database(work: Callable[[asyncpg.Pool], Awaitable[_Result]]) -> _Result:
    return asyncio.run(_with_pool(load(DatabaseSettings).database_url.get_secret_value(), work))


async def _with_pool(database_url: str, work: Callable[[asyncpg.Pool], Awaitable[_Result]]) -> _Result:
    pool = await open_pool(database_url, service="cli", max_size=1)
    try:
        return await work(pool)
    finally:
        await close_pool(pool)


def _row(key: ApiKey, now: datetime) -> dict[str, Any]:
    status = "revoked" if key.revoked_at is not None else "active" if key.is_usable(now) else "expired"
    return {
        "name": key.name,
        "scope": key.scope.value,
        "user_ids": None if key.user_ids is None else sorted(key.user_ids),
        "requests_per_minute": key.requests_per_minute,
        "status": status,
        "created_at": _moment(key.created_at),
        "expires_at": _moment(key.expires_at),
        "revoked_at": _moment(key.revoked_at),
        "last_used_at": _moment(key.last_used_at),
        "public_id": key.public_id,
    }


def _moment(moment: datetime | None) -> str | None:
    return None if moment is None else moment.astimezone(UTC).isoformat().replace("+00:00", "Z")
