"""`orders-backup tokens`: connected sellers, and how their access stands."""

from typing import Annotated, Any

import typer

from cli.client import DEFAULT_URL, Api, ApiUrl
from cli.errors import RefusedError
from cli.output import AsJson, show_fields, show_json, show_table

app = typer.Typer(no_args_is_help=True, help="Connected sellers.")

_LIST = ("token_id", "user_id", "seller_id", "status", "expires_at", "refreshed_at", "status_reason")
_FIELDS = (
    *("token_id", "user_id", "seller_id", "seller_login", "status", "status_reason", "scopes", "expires_at"),
    *("refreshed_at", "refresh_after", "refresh_failures", "validated_at", "created_at"),
)

TokenId = Annotated[int, typer.Argument(help="As `tokens list` shows it.")]


@app.command("list")
def list_tokens(
    status: Annotated[str | None, typer.Option(help="Only tokens in this status.")] = None,
    as_json: AsJson = False,
    api_url: ApiUrl = DEFAULT_URL,
) -> None:
    """All sellers that are or were connected."""
    with Api(api_url) as api:
        tokens = list(api.items("/tokens/", status=status))
    if as_json:
        show_json(tokens)
    else:
        show_table(tokens, _LIST, empty="No seller is connected: orders-backup auth USER_ID")


@app.command()
def show(token_id: TokenId, as_json: AsJson = False, api_url: ApiUrl = DEFAULT_URL) -> None:
    """One connected seller."""
    with Api(api_url) as api:
        _show(api.get(f"/tokens/{token_id}"), as_json=as_json)


@app.command()
def refresh(token_id: TokenId, as_json: AsJson = False, api_url: ApiUrl = DEFAULT_URL) -> None:
    """Exchange the pair for a new one now."""
    with Api(api_url) as api:
        _show(api.post(f"/tokens/{token_id}/refresh"), as_json=as_json)


@app.command()
def validate(token_id: TokenId, as_json: AsJson = False, api_url: ApiUrl = DEFAULT_URL) -> None:
    """Ask Allegro whether the token works; exit code 1 if it does not."""
    with Api(api_url) as api:
        said = api.post(f"/tokens/{token_id}/validate")
    if as_json:
        show_json(said)
    if not said["valid"]:
        raise RefusedError(said["reason"])
    if not as_json:
        typer.echo(f"token {token_id} works")


@app.command()
def deactivate(token_id: TokenId, as_json: AsJson = False, api_url: ApiUrl = DEFAULT_URL) -> None:
    """Stop using a token and forget it; everything stored stays."""
    with Api(api_url) as api:
        _show(api.delete(f"/tokens/{token_id}"), as_json=as_json)


def _show(token: dict[str, Any], *, as_json: bool) -> None:
    if as_json:
        show_json(token)
    else:
        show_fields(token, _FIELDS)
