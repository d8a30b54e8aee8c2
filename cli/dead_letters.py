"""`orders-backup dead-letters`: records that nobody could process."""

from typing import Annotated, Any

import typer

from cli.client import DEFAULT_URL, Api, ApiUrl
from cli.output import AsJson, show_fields, show_json, show_table

app = typer.Typer(no_args_is_help=True, help="Records that nobody could process.")

_LIST = ("id", "created_at", "service", "topic", "token_id", "error_type", "error", "attempts", "size", "status")
_FIELDS = (*_LIST, "partition", "offset", "resolved_at", "key", "text")

Ids = Annotated[list[int], typer.Argument(help="As `dead-letters list` shows them.")]


@app.command("list")
def list_dead_letters(
    every: Annotated[bool, typer.Option("--all", help="Also those that have been dealt with.")] = False,
    as_json: AsJson = False,
    api_url: ApiUrl = DEFAULT_URL,
) -> None:
    """What has been set aside and not been dealt with."""
    with Api(api_url) as api:
        found = list(api.items("/dead-letters", status=None if every else "open"))
    if as_json:
        show_json(found)
    else:
        show_table(found, _LIST, empty="no dead letters")


@app.command()
def show(
    identifier: Annotated[int, typer.Argument(metavar="ID")], as_json: AsJson = False, api_url: ApiUrl = DEFAULT_URL
) -> None:
    """One dead letter with the record as it came."""
    with Api(api_url) as api:
        found = api.get(f"/dead-letters/{identifier}")
    if as_json:
        show_json(found)
    else:
        show_fields(found, _FIELDS)


@app.command()
def replay(ids: Ids, as_json: AsJson = False, api_url: ApiUrl = DEFAULT_URL) -> None:
    """Publish records again, as they came."""
    _deal_with(ids, "replay", as_json=as_json, api_url=api_url)


@app.command()
def drop(ids: Ids, as_json: AsJson = False, api_url: ApiUrl = DEFAULT_URL) -> None:
    """Note that nothing more is to be done."""
    _deal_with(ids, "drop", as_json=as_json, api_url=api_url)


def _deal_with(ids: list[int], how: str, *, as_json: bool, api_url: str) -> None:
    done: list[dict[str, Any]] = []
    try:
        with Api(api_url) as api:
            done.extend(api.post(f"/dead-letters/{identifier}/{how}") for identifier in ids)
    finally:  # one that is refused hides nothing of what was done before it
        if as_json:
            show_json(done)
        else:
            show_table(done, _LIST, empty="nothing")
