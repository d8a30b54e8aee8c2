"""Exports of orders (requirement C3): streamed, whatever their size, and gone on with where they broke off."""

import json
from datetime import UTC, datetime
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request
from fastapi.responses import StreamingResponse

from services.api.access import READ, KnownCaller
from services.api.context import Context, tokens_of
from services.api.endpoints.orders import Order
from services.api.export.forms import CSV, FORMS, NDJSON, PARQUET
from services.api.export.selection import OrderExport
from services.api.export.walk import Export
from services.api.problems import TooManyStreamsError, UnknownUserError, documented
from services.api.streams import Stream
from shared.export.columns import CSV_HEADER, SUMMARY
from shared.export.manifest import FORMAT, Manifest, as_csv, as_line
from shared.export.position import ExportPosition

router = APIRouter(prefix="/api/v1/exports", tags=["orders"])


def _examples() -> dict[str, str]:
    """An export of one order in each form that is text, as `verify` would take it."""
    fields: Any = {"user_id": "my-shop", **Order.model_json_schema()["example"]}
    document = {"order_data": fields["order_data"], "order_raw": None}
    line = json.dumps({name: fields[name] for name in SUMMARY} | document, separators=(",", ":")) + "\n"
    record = ",".join([fields[name] or "" for name in SUMMARY] + [""]) + "\r\n"
    return {
        NDJSON.media_type: line + as_line(_manifest(line)).decode(),
        CSV.media_type: CSV_HEADER.decode() + record + as_csv(_manifest(record)).decode(),
    }


def _manifest(chunk: str) -> Manifest:
    position = ExportPosition(bytes(8), until=1).past(chunk.encode(), 1, token_id=0, after=1)
    return Manifest(
        format=FORMAT,
        orders=1,
        digest=position.digest.hex(),
        finished_at=datetime(2026, 10, 10, 22, 30, tzinfo=UTC),
        filters={},
        next=None,
    )


_CONTENT: dict[str, Any] = {
    **{kind: {"schema": {"type": "string"}, "example": example} for kind, example in _examples().items()},
    # Bytes, of which a text can show the beginning and the end only.
    PARQUET.media_type: {"schema": {"type": "string", "format": "binary"}, "example": "PAR1...PAR1"},
}


@router.get(
    "/orders",
    dependencies=[READ],
    response_class=StreamingResponse,
    responses={
        200: {"description": "The orders; the last record is the manifest", "content": _CONTENT},
        **documented(UnknownUserError, TooManyStreamsError),
    },
)
async def export_orders(
    asked: Annotated[OrderExport, Query()], request: Request, context: Context, caller: KnownCaller
) -> Stream:
    """All orders that meet the filters, of one user, several, or all: see "Exports" in docs/api.md.

    An answer that broke off is gone on with by the last `cursor` that came, in front of whose order what there is has
    to be cut off. `orders-backup orders export` does that by itself, and `orders-backup verify` proves the result.
    """
    form = FORMS[asked.format]
    token_ids = await tokens_of(context, caller, asked.user_id)
    export = await Export.begin(context.pool, asked, form, token_ids)
    return Stream(
        export.pieces(),
        caller=caller,
        streams=request.app.state.exports,
        media_type=form.media_type,
        headers={"Content-Disposition": f'attachment; filename="orders.{form.name}"'},
    )
