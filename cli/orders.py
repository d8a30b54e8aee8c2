"""`orders-backup orders`: look at the stored orders, and take them along."""

import asyncio
import sys
from typing import Annotated

import typer

from cli.client import DEFAULT_URL, Api, ApiUrl, part
from cli.export import Gone, export
from cli.output import AsJson, show_fields, show_json, show_rows, show_table
from shared.database import close_pool, open_pool
from shared.order_state import republish_all
from shared.settings import DatabaseSettings, load

app = typer.Typer(no_args_is_help=True, help="Look at the stored orders, export them.")

_LIST = ("order_id", "status", "fulfillment_status", "buyer_login", "total_amount", "currency", "bought_at", "gone_at")
_FIELDS = (
    *("order_id", "status", "fulfillment_status", "buyer_login", "buyer_email", "total_amount", "currency"),
    *("bought_at", "observed_at", "observed_by", "updated_at", "gone_at", "gone_reason", "successor_order_id"),
    "predecessor_order_ids",
)

UserId = Annotated[str, typer.Argument(help="Your own name for the seller.")]


@app.command("list")
def list_orders(
    user_id: UserId,
    status: Annotated[str | None, typer.Option(help="As Allegro names it: READY_FOR_PROCESSING.")] = None,
    fulfillment_status: Annotated[str | None, typer.Option(help="As Allegro names it: SENT.")] = None,
    bought_from: Annotated[str | None, typer.Option(help="Bought at or after: 2026-01-01T00:00:00Z.")] = None,
    bought_to: Annotated[str | None, typer.Option(help="Bought before.")] = None,
    updated_since: Annotated[str | None, typer.Option(help="Our copy changed at or after.")] = None,
    buyer_login: Annotated[str | None, typer.Option(help="Of this buyer.")] = None,
    gone: Gone = None,
    sort: Annotated[str, typer.Option(help="bought_at or updated_at; with a minus, newest first.")] = "-bought_at",
    fields: Annotated[str | None, typer.Option(help="Fields of the JSON, separated by commas.")] = None,
    limit: Annotated[int, typer.Option(min=1, help="At most so many.")] = 50,
    as_json: AsJson = False,
    api_url: ApiUrl = DEFAULT_URL,
) -> None:
    """Orders of a seller."""
    filters = {
        "status": status,
        "fulfillment_status": fulfillment_status,
        "bought_from": bought_from,
        "bought_to": bought_to,
        "updated_since": updated_since,
        "buyer_login": buyer_login,
        "gone": gone,
        "sort": sort,
    }
    path = f"/orders/{part(user_id)}"
    with Api(api_url) as api:
        if as_json:
            show_rows(list(api.rows(path, at_most=limit, fields=fields, **filters)))
        else:
            show_table(list(api.items(path, at_most=limit, **filters)), _LIST, empty="no orders")


@app.command()
def show(
    user_id: UserId,
    order_id: Annotated[str, typer.Argument(help="Allegro's id.")],
    as_json: AsJson = False,
    api_url: ApiUrl = DEFAULT_URL,
) -> None:
    """One order with its events; with --json complete, as Allegro sent it."""
    path = f"/orders/{part(user_id)}/{part(order_id)}"
    with Api(api_url) as api:
        if as_json:
            # As it came: reading and writing it again could change numbers.
            sys.stdout.write(api.text(path) + "\n")
            return
        order = api.get(path)
    show_fields(order, _FIELDS)
    typer.echo("\nevents")
    show_table(order["events"], ("event_id", "type", "occurred_at", "stored_at"), empty="none")


app.command()(export)


@app.command()
def republish(as_json: AsJson = False) -> None:
    """Publish the state of every order to `order-state` again; safe to repeat, while services run."""
    asyncio.run(_republish(load(DatabaseSettings).database_url.get_secret_value()))
    if as_json:
        show_json({"republishing": True})
    else:
        typer.echo("the writer publishes the state of every order again")


async def _republish(database_url: str) -> None:
    pool = await open_pool(database_url, service="cli", max_size=1)
    try:
        await republish_all(pool)
    finally:
        await close_pool(pool)
