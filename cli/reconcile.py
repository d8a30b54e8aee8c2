"""`orders-backup reconcile`: compare a seller's copy with what Allegro lists, repair it, and say what was found."""

from typing import Annotated, Any

import typer

from cli.client import DEFAULT_URL, Api, ApiUrl, part
from cli.errors import RefusedError
from cli.output import AsJson, show_fields, show_json, show_table
from cli.sync import UserId, until_ended

_REPORT = ("run_id", "user_id", "kind", "status", "window_from", "window_to", "orders_compared", "requests", "error")
_COUNTS = ("missing", "stale", "merged", "gone", "unannounced", "owed")
_FINDING = ("order_id", "finding", "cause", "found_at", "successor_order_id")
_SHOWN = 50


def reconcile(
    user_id: UserId,
    from_: Annotated[str | None, typer.Option("--from", help="Purchases from: 2026-01-01T00:00:00Z.")] = None,
    to: Annotated[str | None, typer.Option(help="Purchases up to; now if left out.")] = None,
    shown: Annotated[int, typer.Option("--limit", min=1, help="Name at most so many orders.")] = _SHOWN,
    as_json: AsJson = False,
    api_url: ApiUrl = DEFAULT_URL,
) -> None:
    """Compare with what Allegro lists, of a time frame or everything, and repair what differs."""
    if to and not from_:
        raise typer.BadParameter("--to needs --from")
    body = {"kind": "manual", "from": from_} | ({"to": to} if to else {}) if from_ else {"kind": "full"}
    with Api(api_url) as api:
        task = until_ended(api, api.post(f"/sync/manual/{part(user_id)}", body))
        if task["status"] != "completed" or task["run"] is None:
            raise RefusedError(f"the task is {task['status']}: {task['error'] or 'no reason was given'}")
        if task["kind"] == "initial":
            raise RefusedError("this was the seller's first load: it brought everything, and compared nothing")
        path = f"/reconciliations/{task['run']['run_id']}"
        report = {**api.get(path, limit=1), "items": list(api.items(path, at_most=shown))}
    del report["next"]
    if as_json:
        show_json(report)
    else:
        _show(report)


def _show(report: dict[str, Any]) -> None:
    show_fields(report, _REPORT)
    typer.echo("\nfound")
    show_fields({**report["findings"], **report["causes"]}, _COUNTS)
    typer.echo("\norders")
    show_table(report["items"], _FINDING, empty="none: the copy was as Allegro has it")
