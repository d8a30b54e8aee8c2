"""The records on our topics: one frozen struct a kind, a `schema` version in each, told apart by `kind`.

A record's value is one JSON object. What came from Allegro (`event`, `order`) stands in it byte for byte: it is
spliced in on the way out and cut out on the way in, never decoded (promise P9). Everything else is validated on the way
in; what we write ourselves is checked by mypy.

Compatibility: fields may be added with a default under the same `schema`; anything else needs a new number, and
readers refuse a number they do not know (the record becomes a dead letter, it is not guessed at).
"""

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Self, Union
from uuid import UUID

import msgspec
from msgspec import Meta

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


if TYPE_CHECKING:
    _AsItCame = RawJson
else:  # what msgspec cuts out of a record; `decode` makes RawJson of it
    _AsItCame = Annotated[
        msgspec.Raw,
        Meta(extra_json_schema={"type": "object", "description": "as Allegro sent it, byte for byte"}),
    ]

_Moment = Annotated[datetime, Meta(tz=True)]
_Number = Annotated[int, Meta(ge=0)]
_Attempt = Annotated[int, Meta(ge=1)]
_EventId = Annotated[int, Meta(ge=0, le=2**63 - 1)]
_RunEnd = Annotated[_EventId, Meta(description="the run is complete when this one is stored")]
_Spent = Annotated[
    int, Meta(ge=0, description="requests that this look took; those of a listing are told by its progress")
]


class _Part(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """Part of a record. Nothing in one refers back to it: the search for cycles need not look."""


class _Record(_Part, frozen=True, kw_only=True, gc=False, tag_field="kind", rename={"schema_version": "schema"}):
    raw_field: ClassVar[str | None] = None

    schema_version: Literal[1] = SCHEMA_VERSION
    token_id: Annotated[
        int, Meta(gt=0, description="our id of the connected seller; also the record's key, in decimal")
    ]

    def encode(self) -> bytes:
        """The record's value; what came from Allegro stands in it untouched. Raises ValueError where that is no object:
        nobody could read the record."""
        if self.raw_field is not None and not _is_object(getattr(self, self.raw_field)):
            raise ValueError(f"{self.kind}: {self.raw_field}: must be a JSON object as it came")
        return _encode(self)

    @property
    def kind(self) -> str:
        return kind_of(type(self))

    @property
    def key(self) -> bytes:
        return str(self.token_id).encode()


def kind_of(record: type[_Record]) -> str:
    """What tells records of this type from others."""
    return str(record.__struct_config__.tag)


class OrderEvent(_Record, frozen=True, kw_only=True, gc=False, tag="order-event"):
    """Something happened to an order, or its journal line came late or twice: one record for one journal line."""

    raw_field: ClassVar[str | None] = "event"

    event_id: Annotated[_EventId, Meta(description="microseconds of the journal write")]
    follows_event_id: Annotated[
        _EventId,
        Meta(description="the journal position read just before this one: the cursor moves in unbroken steps"),
    ]
    event_type: Annotated[str, Meta(description="Allegro's type; unknown ones are passed on")]
    occurred_at: _Moment | None = None
    order_id: Annotated[str | None, Meta(description="checkoutForm.id")] = None
    revision: Annotated[str | None, Meta(description="checkoutForm.revision: neither unique nor ordered")] = None
    bought_at: Annotated[_Moment | None, Meta(description="newest line item")] = None
    fetch: Annotated[bool, Meta(description="false: the order is covered by the initial load")] = True
    wanted_after: Annotated[
        _Moment,
        Meta(description="a look made at or after this shows what the event is about, by the clock of observed_at"),
    ]
    run_id: UUID
    run_last_event_id: _RunEnd
    run_requests: Annotated[_Number, Meta(description="requests that reading the run's events took")] = 0
    event: _AsItCame


class OrderFetch(_Record, frozen=True, kw_only=True, gc=False, tag="order-fetch"):
    """Look at this order: asked for by hand, or because an earlier attempt did not succeed.

    A mere trigger: what is owed stands in `pending_fetches`, so losing or repeating this record does no harm.
    """

    order_id: str
    wanted_after: _Moment
    bought_at: _Moment | None = None
    attempts: Annotated[_Number, Meta(description="attempts made before this one")] = 0
    asked_at: Annotated[
        _Moment | None,
        Meta(description="by the clock of observed_at; a look made since then needs no other. null: look"),
    ] = None
    run_id: Annotated[
        UUID | None,
        Meta(description="the only run that wants the look; null: several do, or none, or it is not known"),
    ] = None


class OrderWindow(_Record, frozen=True, kw_only=True, gc=False, tag="order-window"):
    """Walk through everything bought in a window, from where the run stands in the database."""

    run_id: UUID
    bought_from: _Moment
    bought_to: _Moment


class WindowPlace(_Part, frozen=True, kw_only=True, gc=False):
    """Where in a walk an order was met: the writer counts only unbroken sequences of the newest attempt."""

    run_id: UUID
    attempt: _Attempt
    sequence: _Number


class WantedBy(_Part, frozen=True, kw_only=True, gc=False):
    """A run of the journal whose event led to a look: it is counted there, whichever is stored first."""

    run_id: UUID
    last_event_id: _RunEnd


class OrderObserved(_Record, frozen=True, kw_only=True, gc=False, tag="order-observed"):
    """A complete order as Allegro showed it, and when we looked."""

    raw_field: ClassVar[str | None] = "order"

    order_id: str
    observed_at: Annotated[_Moment, Meta(description="the order's version: a later look wins")]
    observed_by: Literal["detail", "list"]
    place: WindowPlace | None = None
    wanted_by: Annotated[
        tuple[WantedBy, ...], Meta(description="runs of the journal that this look is counted for")
    ] = ()
    requests: _Spent = 0
    order: _AsItCame


class OrderMissing(_Record, frozen=True, kw_only=True, gc=False, tag="order-missing"):
    """Allegro has no such order (404): merged, aged out or foreign. Our copy stays."""

    order_id: str
    observed_at: _Moment
    reason: str
    requests: _Spent = 0


class OrderFetchFailed(_Record, frozen=True, kw_only=True, gc=False, tag="order-fetch-failed"):
    """An attempt to look failed; the order is tried again later, or set aside if it never can succeed."""

    order_id: str
    wanted_after: _Moment
    attempts: Annotated[_Attempt, Meta(description="attempts made, this one included")]
    retry_after_seconds: Annotated[Annotated[float, Meta(ge=0)] | None, Meta(description="null: it cannot succeed")] = (
        None
    )
    error: str
    requests: _Spent = 0
    place: Annotated[
        WindowPlace | None,
        Meta(description="where a walk met the order, if one did: the walk goes on behind it"),
    ] = None


Outcome = Literal["completed", "stopped", "stalled", "failed"]


class WindowFinished(_Record, frozen=True, kw_only=True, gc=False, tag="window-finished"):
    """The end of a walk: with everything before it stored, the run is complete."""

    run_id: UUID
    attempt: _Attempt
    orders: Annotated[_Number, Meta(description="sequence numbers given out, from the first attempt on")]
    orders_expected: Annotated[int | None, Meta(description="what Allegro said there is")] = None
    requests: _Number
    outcome: Annotated[Outcome, Meta(description="stalled: Allegro says that there is more, and shows none")] = (
        "completed"
    )
    error: str | None = None


class CoveredRange(_Part, frozen=True, kw_only=True, gc=False):
    """A range of purchase times that a walk has passed: whatever Allegro lists of it is in `order_ids`.

    A stored order of this range that is not named was not listed. That proves nothing (lists lag and skip), but it is
    worth a look.
    """

    bought_from: _Moment
    bought_until: Annotated[_Moment, Meta(description="not included")]
    order_ids: Annotated[tuple[str, ...], Meta(description="what was listed there, and perhaps a few more")]
    observed_at: Annotated[_Moment, Meta(description="an order looked at since then is known better than by this list")]


class WindowProgressed(_Record, frozen=True, kw_only=True, gc=False, tag="window-progressed"):
    """A page of a walk was read; carries what it cost, how much there is, and which range it completed."""

    run_id: UUID
    attempt: _Attempt
    page: _Number
    requests: _Number
    orders_expected: int | None = None
    covered: CoveredRange | None = None


class OrderState(_Record, frozen=True, kw_only=True, gc=False, tag="order-state"):
    """An order as our copy has it after its latest change: the topic keeps the last record of each order.

    There is no tombstone: an order that Allegro no longer has keeps its state, with `gone_at` set.
    """

    raw_field: ClassVar[str | None] = "order"

    token_id: Annotated[int, Meta(gt=0, description="our id of the connected seller")]
    order_id: Annotated[str, Meta(description="Allegro's order id; also the record's key")]
    observed_at: Annotated[_Moment, Meta(description="when this state was looked at; never goes back for an order")]
    updated_at: Annotated[_Moment, Meta(description="when our copy changed")]
    gone_at: Annotated[_Moment | None, Meta(description="Allegro no longer has the order since")] = None
    gone_reason: str | None = None
    successor_order_id: Annotated[str | None, Meta(description="the order it was merged into")] = None
    order: _AsItCame

    @property
    def key(self) -> bytes:
        return self.order_id.encode()


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

KINDS: Mapping[str, tuple[type[Record], ...]] = {
    "order-events": (OrderEvent, OrderFetch),
    "order-windows": (OrderWindow,),
    "orders": (OrderObserved, OrderMissing, OrderFetchFailed, WindowProgressed, WindowFinished),
    "order-state": (OrderState,),
}
"""The records of each topic."""


def _as_json(value: Any) -> Any:
    if isinstance(value, RawJson):
        return msgspec.Raw(value)
    if isinstance(value, UUID):  # asyncpg has a class of its own
        return str(value)
    raise TypeError(f"no part of a record: {type(value).__name__}")


_encode = msgspec.json.Encoder(enc_hook=_as_json).encode
_RECORD: msgspec.json.Decoder[Record] = msgspec.json.Decoder(Record)
_TOP_LEVEL = msgspec.json.Decoder(dict[str, msgspec.Raw])
# Complaints of msgspec that name types, bounds and fields of ours; what else it says may quote anybody's data.
_QUOTES_NOTHING = ("Expected `", "Object missing required field `", "Invalid RFC3339", "Invalid UUID")


def decode(value: bytes | None) -> Record:
    """Read a record's value; raises UnreadableRecordError that says what is wrong with it."""
    if value is None:
        raise UnreadableRecordError("the record has no value (tombstone)")
    try:
        record, originals_by_field = _read(value)
    except msgspec.ValidationError as error:
        raise UnreadableRecordError(_explain(error)) from error
    except (msgspec.DecodeError, ValueError, RecursionError) as error:
        raise UnreadableRecordError(f"not a JSON object: {error}") from error
    field = record.raw_field
    if field is not None:
        raw = RawJson(originals_by_field.get(field) or getattr(record, field))
        if not _is_object(raw):
            raise UnreadableRecordError(f"{field}: must be a JSON object")
        msgspec.structs.force_setattr(record, field, raw)
    return record


def _is_object(raw: Any) -> bool:
    return isinstance(raw, RawJson) and raw.lstrip().startswith(b"{")


def _read(value: bytes) -> tuple[Record, Mapping[str, bytes]]:
    """The record, and where a stand-in of its value had to be read, its fields as they came."""
    try:
        return _RECORD.decode(value), {}
    except msgspec.ValidationError:
        raise
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        text = readable(value)
    try:
        record = _RECORD.decode(text)
    except msgspec.ValidationError:
        raise
    except (msgspec.DecodeError, RecursionError):
        # How deep we get depends on who calls us: what is wrong far down must not be seen today and missed tomorrow.
        text = shallow(text)
        record = _RECORD.decode(text)
    return record, _originals(value, text, record.raw_field)


def _originals(value: bytes, text: bytes, raw_field: str | None) -> Mapping[str, bytes]:
    """The fields as they came; raises UnicodeDecodeError for one of ours that is not UTF-8: a stand-in is no name."""
    fields = _TOP_LEVEL.decode(text)
    parts = dict(zip(fields, originals(value, text, fields.values()), strict=True))
    for name, part in parts.items():
        if name != raw_field:
            part.decode()
    return parts


def _explain(error: msgspec.ValidationError) -> str:
    """Field and complaint, without the offending input: it may hold a buyer's data."""
    complaint, _, path = str(error).rpartition(" - at `$")
    if not complaint:
        complaint, path = path, ""
    if not path and complaint.startswith("Expected `object`"):
        return f"not a JSON object: {complaint}"
    told = complaint if complaint.startswith(_QUOTES_NOTHING) else "not a value that is known here"
    return f"{path.strip('.`') or 'record'}: {told}"


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
    return {topic: _schema(kinds) for topic, kinds in KINDS.items()}


def _schema(kinds: tuple[type[Record], ...]) -> dict[str, Any]:
    (schema,), definitions = msgspec.json.schema_components([Union[kinds]], ref_template="#/$defs/{name}")  # noqa: UP007 - of a tuple
    return {**schema, "$defs": definitions}


def utc(moment: datetime) -> str:
    """A moment as Allegro wants it: milliseconds and `Z` (#10170); an offset such as +00:00 is refused (#2948)."""
    return moment.strftime("%Y-%m-%dT%H:%M:%S.") + f"{moment.microsecond // 1000:03d}Z"
