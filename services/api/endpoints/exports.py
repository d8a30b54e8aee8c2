"""Exports of orders (requirement C3): streamed, whatever their size, and gone on with where they broke off."""

from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Annotated, Any

from fastapi import APIRouter, Query
from fastapi.responses import StreamingResponse
from starlette.types import Send

from services.api.access import READ, KnownCaller
from services.api.context import Context, tokens_of
from services.api.export.forms import FORMS, PARQUET, Form
from services.api.export.selection import OrderExport
from services.api.export.walk import Export
from services.api.problems import InvalidCursorError, UnknownUserError, documented

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


class _Download(StreamingResponse):
    """A stream that is closed as soon as nobody reads it any more, and with it what it has asked of PostgreSQL."""

    def __init__(self, pieces: AsyncGenerator[bytes, None], form: Form) -> None:
        super().__init__(
            pieces,
            media_type=form.media_type,
            headers={"Content-Disposition": f'attachment; filename="orders.{form.name}"'},
        )
        self._pieces = pieces

    async def stream_response(self, send: Send) -> None:
        async with aclosing(self._pieces):
            await super().stream_response(send)


@router.get(
    "/orders",
    dependencies=[READ],
    response_class=StreamingResponse,
    responses={
        200: {"description": "The orders; the last record is the manifest", "content": _CONTENT},
        **documented(UnknownUserError, InvalidCursorError),
    },
)
async def export_orders(
    asked: Annotated[OrderExport, Query()], context: Context, caller: KnownCaller
) -> StreamingResponse:
    """All orders that meet the filters, of one user, several, or all: see "Exports" in docs/api.md.

    An answer that broke off is gone on with by the last `cursor` that came, in front of whose order what there is has
    to be cut off. `orders-backup orders export` does that by itself, and `orders-backup verify` proves the result.
    """
    form = FORMS[asked.format]
    token_ids = await tokens_of(context, caller, asked.user_id)
    export = await Export.begin(context.pool, asked, form, token_ids)
    return _Download(export.pieces(), form)
