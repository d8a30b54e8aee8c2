"""Exports of orders (requirement C3): streamed, whatever their size, and gone on with where they broke off."""

from typing import Annotated, Any

from fastapi import APIRouter, Query, Request
from fastapi.responses import StreamingResponse

from services.api.access import READ, KnownCaller
from services.api.context import Context, tokens_of
from services.api.export.forms import FORMS, PARQUET
from services.api.export.selection import OrderExport
from services.api.export.walk import Export
from services.api.problems import InvalidCursorError, TooManyStreamsError, UnknownUserError, documented
from services.api.streams import Stream

router = APIRouter(prefix="/api/v1/exports", tags=["orders"])

_EXAMPLES = {
    "application/x-ndjson": '{"user_id":"my-shop","order_id":"7721b2f0-c4e8-11f1-904f-89bb34047197",...}\n'
    '{"manifest":{"format":"orders-backup-export/1","orders":1,...}}\n',
    "text/csv": "user_id,order_id,status,...,cursor\r\nmy-shop,7721b2f0-c4e8-11f1-904f-89bb34047197,...,\r\n",
}
_CONTENT: dict[str, Any] = {
    **{kind: {"schema": {"type": "string"}, "example": example} for kind, example in _EXAMPLES.items()},
    PARQUET.media_type: {"schema": {"type": "string", "format": "binary"}},
}


@router.get(
    "/orders",
    dependencies=[READ],
    response_class=StreamingResponse,
    responses={
        200: {"description": "The orders; the last record is the manifest", "content": _CONTENT},
        **documented(UnknownUserError, InvalidCursorError, TooManyStreamsError),
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
