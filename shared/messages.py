"""The records on our topics: one frozen model a kind, a `schema` version in each, told apart by `kind`.

A record's value is one JSON object. What came from Allegro (`event`, `order`) stands in it byte for byte: it is
spliced in on the way out and cut out on the way in, never decoded (promise P9). Everything else is validated.

Compatibility: fields may be added with a default under the same `schema`; anything else needs a new number, and
readers refuse a number they do not know (the record becomes a dead letter, it is not guessed at).
"""

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Annotated, Any, ClassVar, Literal, Self
from uuid import UUID

import msgspec
from pydantic import (
    AwareDatetime,
    BaseModel,
    ConfigDict,
    Field,
    GetCoreSchemaHandler,
    GetJsonSchemaHandler,
    TypeAdapter,
    ValidationError,
)
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, core_schema

from shared.errors import PermanentError
from shared.json_text import originals, readable, shallow

SCHEMA_VERSION: Literal[1] = 1

# Digits of the largest bigint.
_LONGEST_ID = 19
_HEADER_CORRELATION = "correlation-id"
_HEADER_RUN = "run-id"
_HEADER_SCHEMA = "schema"
_HEADER_TRACE = "traceparent"


class UnreadableRecordError(PermanentError):
    """A record that does not follow its contract; the text says where it departs from it."""


class RawJson(bytes):
    """A part of a JSON text exactly as Allegro sent it; in a record it is one object."""

    @classmethod
    def of(cls, raw: bytes) -> Self:
        """These bytes; the same object where they are one already, since thousands of orders are in hand at a time."""
        return raw if isinstance(raw, cls) else cls(raw)

    @classmethod
    def __get_pydantic_core_schema__(cls, _source: Any, _handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_plain_validator_function(cls._validate)

    @classmethod
    def __get_pydantic_json_schema__(cls, _schema: CoreSchema, _handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        return {"type": "object", "description": "as Allegro sent it, byte for byte"}

    @classmethod
    def _validate(cls, value: Any) -> Self:
        if isinstance(value, bytes) and value[:1] == b"{":
            return cls.of(value)
        raise ValueError("must be a JSON object")


_SPENT = Field(default=0, ge=0, description="requests that this look took; those of a listing are told by its progress")


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore", populate_by_name=True)

    raw_field: ClassVar[str | None] = None

    schema_version: Literal[1] = Field(default=SCHEMA_VERSION, alias="schema")
    token_id: int = Field(gt=0, description="our id of the connected seller; also the record's key, in decimal")

    def encode(self) -> bytes:
        """The record's value; what came from Allegro is spliced in last, untouched."""
        raw_field = self.raw_field
        if raw_field is None:
            return self.model_dump_json(by_alias=True).encode()
        head = self.model_dump_json(by_alias=True, exclude={raw_field}).encode()
        raw: bytes = getattr(self, raw_field)
        return b'%b,"%b":%b}' % (head[:-1], raw_field.encode(), raw)

    @property
    def key(self) -> bytes:
        return str(self.token_id).encode()


class OrderEvent(_Record):
    """Something happened to an order, or its journal line came late or twice: one record for one journal line."""

    raw_field: ClassVar[str | None] = "event"

    kind: Literal["order-event"] = "order-event"
    event_id: int = Field(ge=0, lt=2**63, description="microseconds of the journal write")
    follows_event_id: int = Field(
        ge=0,
        lt=2**63,
        description="the journal position read just before this one: the cursor moves in unbroken steps",
    )
    event_type: str = Field(description="Allegro's type; unknown ones are passed on")
    occurred_at: AwareDatetime | None = None
    order_id: str | None = Field(default=None, description="checkoutForm.id")
    revision: str | None = Field(default=None, description="checkoutForm.revision: neither unique nor ordered")
    bought_at: AwareDatetime | None = Field(default=None, description="newest line item")
    fetch: bool = Field(default=True, description="false: the order is covered by the initial load")
    wanted_after: AwareDatetime = Field(
        description="a look made at or after this shows what the event is about, by the clock of observed_at"
    )
    run_id: UUID
    run_last_event_id: int = Field(ge=0, lt=2**63, description="the run is complete when this one is stored")
    run_requests: int = Field(default=0, ge=0, description="requests that reading the run's events took")
    event: RawJson


class OrderFetch(_Record):
    """Look at this order: asked for by hand, or because an earlier attempt did not succeed.

    A mere trigger: what is owed stands in `pending_fetches`, so losing or repeating this record does no harm.
    """

    kind: Literal["order-fetch"] = "order-fetch"
    order_id: str
    wanted_after: AwareDatetime
    bought_at: AwareDatetime | None = None
    attempts: int = Field(default=0, ge=0, description="attempts made before this one")
    asked_at: AwareDatetime | None = Field(
        default=None, description="by the clock of observed_at; a look made since then needs no other. null: look"
    )
    run_id: UUID | None = Field(
        default=None, description="the only run that wants the look; null: several do, or none, or it is not known"
    )


class OrderWindow(_Record):
    """Walk through everything bought in a window, from where the run stands in the database."""

    kind: Literal["order-window"] = "order-window"
    run_id: UUID
    bought_from: AwareDatetime
    bought_to: AwareDatetime


class WindowPlace(BaseModel):
    """Where in a walk an order was met: the writer counts only unbroken sequences of the newest attempt."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    run_id: UUID
    attempt: int = Field(ge=1)
    sequence: int = Field(ge=0)


class WantedBy(BaseModel):
    """A run of the journal whose event led to a look: it is counted there, whichever is stored first."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    run_id: UUID
    last_event_id: int = Field(ge=0, lt=2**63, description="the run is complete when this one is stored")


class OrderObserved(_Record):
    """A complete order as Allegro showed it, and when we looked."""

    raw_field: ClassVar[str | None] = "order"

    kind: Literal["order-observed"] = "order-observed"
    order_id: str
    observed_at: AwareDatetime = Field(description="the order's version: a later look wins")
    observed_by: Literal["detail", "list"]
    place: WindowPlace | None = None
    wanted_by: tuple[WantedBy, ...] = Field(default=(), description="runs of the journal that this look is counted for")
    requests: int = _SPENT
    order: RawJson


class OrderMissing(_Record):
    """Allegro has no such order (404): merged, aged out or foreign. Our copy stays."""

    kind: Literal["order-missing"] = "order-missing"
    order_id: str
    observed_at: AwareDatetime
    reason: str
    requests: int = _SPENT


class OrderFetchFailed(_Record):
    """An attempt to look failed; the order is tried again later, or set aside if it never can succeed."""

    kind: Literal["order-fetch-failed"] = "order-fetch-failed"
    order_id: str
    wanted_after: AwareDatetime
    attempts: int = Field(ge=1, description="attempts made, this one included")
    retry_after_seconds: float | None = Field(default=None, ge=0, description="None: it cannot succeed")
    error: str
    requests: int = _SPENT
    place: WindowPlace | None = Field(
        default=None, description="where a walk met the order, if one did: the walk goes on behind it"
    )


Outcome = Literal["completed", "stopped", "stalled", "failed"]


class WindowFinished(_Record):
    """The end of a walk: with everything before it stored, the run is complete."""

    kind: Literal["window-finished"] = "window-finished"
    run_id: UUID
    attempt: int = Field(ge=1)
    orders: int = Field(ge=0, description="sequence numbers given out, from the first attempt on")
    orders_expected: int | None = Field(default=None, description="what Allegro said there is")
    requests: int = Field(ge=0)
    outcome: Outcome = Field(
        default="completed", description="stalled: Allegro says that there is more, and shows none"
    )
    error: str | None = None


class CoveredRange(BaseModel):
    """A range of purchase times that a walk has passed: whatever Allegro lists of it is in `order_ids`.

    A stored order of this range that is not named was not listed. That proves nothing (lists lag and skip), but it is
    worth a look.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    bought_from: AwareDatetime
    bought_until: AwareDatetime = Field(description="not included")
    order_ids: tuple[str, ...] = Field(description="what was listed there, and perhaps a few more")
    observed_at: AwareDatetime = Field(description="an order looked at since then is known better than by this list")


class WindowProgressed(_Record):
    """A page of a walk was read; carries what it cost, how much there is, and which range it completed."""

    kind: Literal["window-progressed"] = "window-progressed"
    run_id: UUID
    attempt: int = Field(ge=1)
    page: int = Field(ge=0)
    requests: int = Field(ge=0)
    orders_expected: int | None = None
    covered: CoveredRange | None = None


class OrderState(_Record):
    """An order as our copy has it after its latest change: the topic keeps the last record of each order.

    There is no tombstone: an order that Allegro no longer has keeps its state, with `gone_at` set.
    """

    raw_field: ClassVar[str | None] = "order"

    kind: Literal["order-state"] = "order-state"
    token_id: int = Field(gt=0, description="our id of the connected seller")
    order_id: str = Field(description="Allegro's order id; also the record's key")
    observed_at: AwareDatetime = Field(description="when this state was looked at; never goes back for an order")
    updated_at: AwareDatetime = Field(description="when our copy changed")
    gone_at: AwareDatetime | None = Field(default=None, description="Allegro no longer has the order since")
    gone_reason: str | None = None
    successor_order_id: str | None = Field(default=None, description="the order it was merged into")
    order: RawJson

    @property
    def key(self) -> bytes:
        return self.order_id.encode()


EventsRecord = Annotated[OrderEvent | OrderFetch, Field(discriminator="kind")]
WindowsRecord = OrderWindow
OrdersRecord = Annotated[
    OrderObserved | OrderMissing | OrderFetchFailed | WindowProgressed | WindowFinished,
    Field(discriminator="kind"),
]
StateRecord = OrderState
AnyRecord = Annotated[
    OrderEvent
    | OrderFetch
    | OrderWindow
    | OrderObserved
    | OrderMissing
    | OrderFetchFailed
    | WindowProgressed
    | WindowFinished
    | OrderState,
    Field(discriminator="kind"),
]

Record = (
    OrderEvent
    | OrderFetch
    | OrderWindow
    | OrderObserved
    | OrderMissing
    | OrderFetchFailed
    | WindowProgressed
    | WindowFinished
    | OrderState
)

_ADAPTER: TypeAdapter[Record] = TypeAdapter(AnyRecord)
_TOP_LEVEL = msgspec.json.Decoder(dict[str, msgspec.Raw])
_RAW_FIELDS = ("event", "order")


def decode(value: bytes | None) -> Record:
    """Read a record's value; raises UnreadableRecordError that says what is wrong with it."""
    if value is None:
        raise UnreadableRecordError("the record has no value (tombstone)")
    try:
        plain = _fields(value)
    except (msgspec.DecodeError, ValueError, RecursionError) as error:
        raise UnreadableRecordError(f"not a JSON object: {error}") from error
    try:
        return _ADAPTER.validate_python(plain)
    except ValidationError as error:
        raise UnreadableRecordError(_explain(error)) from error


def _fields(value: bytes) -> dict[str, Any]:
    """The record's fields decoded, but what came from Allegro as the bytes it is, readable or not."""
    text = value
    try:
        fields = _TOP_LEVEL.decode(value)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        text = readable(value)
        try:
            fields = _TOP_LEVEL.decode(text)
        except RecursionError:
            text = shallow(text)
            fields = _TOP_LEVEL.decode(text)
    raws = dict(zip(fields, originals(value, text, fields.values()), strict=True)) if text is not value else {}
    return {
        name: raws.get(name) or RawJson(raw) if name in _RAW_FIELDS else msgspec.json.decode(raw)
        for name, raw in fields.items()
    }


def _explain(error: ValidationError) -> str:
    """Field and complaint of every violation, without the offending input: it may hold a buyer's data."""
    return "; ".join(
        f"{'.'.join(str(part) for part in item['loc']) or 'record'}: {item['msg']}"
        for item in error.errors(include_input=False)
    )


def headers(
    *, correlation_id: str, run_id: UUID | None = None, traceparent: str | None = None
) -> list[tuple[str, bytes]]:
    """The headers that every record carries; `traceparent` is that of W3C Trace Context."""
    result = [(_HEADER_CORRELATION, correlation_id.encode()), (_HEADER_SCHEMA, str(SCHEMA_VERSION).encode())]
    if run_id is not None:
        result.append((_HEADER_RUN, str(run_id).encode()))
    if traceparent is not None:
        result.append((_HEADER_TRACE, traceparent.encode()))
    return result


def correlation_id_of(record_headers: Sequence[tuple[str, bytes | None]]) -> str | None:
    """The correlation id, if a readable one is there: headers may be null or not UTF-8 and must never stop us."""
    return _text_of(record_headers, _HEADER_CORRELATION)


def token_of(key: bytes | None) -> int | None:
    """The token that a record's key names; None where it names something else, or is of somebody else."""
    return int(key) if key is not None and key.isdigit() and len(key) <= _LONGEST_ID else None


def traceparent_of(record_headers: Sequence[tuple[str, bytes | None]]) -> str | None:
    """The span that sent the record, if it was traced; whoever reads it must expect any text."""
    return _text_of(record_headers, _HEADER_TRACE)


def _text_of(record_headers: Sequence[tuple[str, bytes | None]], wanted: str) -> str | None:
    for name, value in record_headers:
        if name == wanted and value is not None:
            return value.decode("utf-8", "replace")
    return None


def json_schemas() -> Mapping[str, Any]:
    """The JSON Schema of each topic's records; written to `docs/` and compared by a test."""
    return {
        "order-events": TypeAdapter(EventsRecord).json_schema(by_alias=True),
        "order-windows": TypeAdapter(WindowsRecord).json_schema(by_alias=True),
        "orders": TypeAdapter(OrdersRecord).json_schema(by_alias=True),
        "order-state": TypeAdapter(StateRecord).json_schema(by_alias=True),
    }


def utc(moment: datetime) -> str:
    """A moment as Allegro wants it: milliseconds and `Z` (#10170); an offset such as +00:00 is refused (#2948)."""
    return moment.strftime("%Y-%m-%dT%H:%M:%S.") + f"{moment.microsecond // 1000:03d}Z"
