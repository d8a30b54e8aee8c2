"""`orders-backup stats`: orders, their value, and how well the copies are kept."""

from typing import Annotated

import typer

from cli.client import DEFAULT_URL, Api, ApiUrl, part
from cli.output import AsJson, show_fields, show_json, show_table

_SYNC = (
    *("sellers", "active", "refresh_failed", "reauthorization_required", "deactivated", "paused_schedules"),
    *("pending_orders", "oldest_pending_at", "lag_seconds", "running", "stalled", "open_dead_letters"),
)
_VALUE = ("currency", "orders", "value")
_DAYS = 14


def stats(
    user_id: Annotated[str | None, typer.Argument(help="Your own name for the seller; none: all of them.")] = None,
    bought_from: Annotated[str | None, typer.Option(help="Bought at or after: 2026-01-01T00:00:00Z.")] = None,
    bought_to: Annotated[str | None, typer.Option(help="Bought before.")] = None,
    timezone: Annotated[str, typer.Option(help="Whose days are counted: Europe/Warsaw.")] = "UTC",
    as_json: AsJson = False,
    api_url: ApiUrl = DEFAULT_URL,
) -> None:
    """Orders and their value by currency, status and day (the last fourteen), and how well the copies are kept."""
    path = "/statistics" if user_id is None else f"/statistics/{part(user_id)}"
    with Api(api_url) as api:
        found = api.get(path, bought_from=bought_from, bought_to=bought_to, timezone=timezone)
    if as_json:
        show_json(found)
        return
    typer.echo(f"{found['orders']} orders\n")
    show_table(found["by_currency"], _VALUE, empty="none")
    typer.echo("\nby status")
    show_table(found["by_status"], ("status", *_VALUE), empty="none")
    typer.echo("\nby day")
    show_table(found["by_day"][-_DAYS:], ("day", *_VALUE), empty="none")
    typer.echo("\nsynchronisation")
    show_fields(found["sync"], _SYNC)
