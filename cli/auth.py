"""`orders-backup auth USER_ID`: connect a seller, from the link to the token."""

import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any

import segno
import typer

from cli.client import DEFAULT_URL, Api, ApiUrl
from cli.errors import AwayError, RefusedError
from cli.output import AsJson, progress_console, show_json

_LOOK_SECONDS = 2.0
# The poller asks once more for a code that has expired, and needs a moment for it.
_AFTER_EXPIRY = timedelta(minutes=2)
_WAITING = "Waiting for the seller's consent (Ctrl-C stops waiting, not the consent)"


def auth(
    user_id: Annotated[str, typer.Argument(help="Your own name for the seller.")],
    wait: Annotated[bool, typer.Option(help="Wait for the seller's consent.")] = True,
    qr: Annotated[bool, typer.Option(help="Draw the link as a QR code.")] = True,
    as_json: AsJson = False,
    api_url: ApiUrl = DEFAULT_URL,
) -> None:
    """Connect a seller: prints the link and the code for them, and waits for their consent."""
    with Api(api_url) as api:
        started = api.post("/tokens/auth/initialize", {"user_id": user_id})
        _invite(started, qr=qr)
        if not wait:
            _show(api.get(f"/tokens/auth/task/{started['task_id']}"), as_json=as_json)
            return
        deadline = datetime.now(UTC) + timedelta(seconds=started["expires_in"]) + _AFTER_EXPIRY
        with progress_console().status(_WAITING) as spinner:
            ended = _until_ended(api, started["task_id"], deadline, spinner.update)
    if ended["status"] == "FAILURE":
        raise RefusedError(f"{ended['message'] or 'the seller was not connected'} ({ended['reason']})")
    _show(ended, as_json=as_json)


def _invite(started: dict[str, Any], *, qr: bool) -> None:
    console = progress_console()
    console.print("Open this link as the seller and agree:", style="bold")
    console.print(f"  {started['verification_uri_complete']}", soft_wrap=True, markup=False)
    console.print(f"The code, should it be asked for: [bold]{started['user_code']}[/bold]")
    if qr:
        segno.make(started["verification_uri_complete"], error="L").terminal(out=sys.stderr, compact=True)


def _until_ended(api: Api, task_id: str, deadline: datetime, tell: Callable[[str], None]) -> dict[str, Any]:
    """How it ended. The consent does not depend on us or on the API: an API that is away meanwhile is waited for.

    Raises AwayError if the API is away still, or nobody has asked Allegro for the end, when the code cannot be of use
    any more.
    """
    while True:
        try:
            status: dict[str, Any] = api.get(f"/tokens/auth/task/{task_id}")
        except AwayError as error:
            if datetime.now(UTC) > deadline:
                raise
            tell(f"{_WAITING}; the API does not answer, trying again: {error}")
        else:
            if status["status"] != "PENDING":
                return status
            if datetime.now(UTC) > deadline:
                raise AwayError("the code has expired and no poller has looked after it: is the poller running?")
            tell(_WAITING)
        time.sleep(_LOOK_SECONDS)


def _show(status: dict[str, Any], *, as_json: bool) -> None:
    if as_json:
        show_json(status)
    elif status["status"] == "SUCCESS":
        typer.echo(f"{status['user_id']} is connected: token {status['token_id']}. The initial load has begun.")
    else:
        typer.echo(f"task {status['task_id']}: {status['status']}")
