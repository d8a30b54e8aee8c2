"""What we read of Allegro's bodies: the few fields we need; everything else stays in the bytes as they came (P9).

Nothing here trusts a field to be there or to have its documented type (allegro-api.md 3, 5: `delivery` null, `invoice`
absent, numbers as strings). What identifies a thing must be readable; the rest is None where it is not.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal, InvalidOperation
from typing import Any, TypeVar

import msgspec

from shared.errors import PermanentError
from shared.json_text import originals, readable, shallow
from shared.messages import RawJson


class UnreadableBodyError(PermanentError):
    """A body that lacks what identifies it, or is no JSON object at all; the text quotes nothing of it."""


@dataclass(frozen=True)
class JournalEvent:
    """One line of the journal."""

    event_id: int
    event_type: str
    occurred_at: datetime | None
    order_id: str | None
    revision: str | None
    bought_at: datetime | None
    raw: RawJson


@dataclass(frozen=True)
class ListedOrder:
    """An order with the two facts that a walk needs; `bought_at` is that of its newest line item (#1109)."""

    order_id: str
    bought_at: datetime | None
    raw: RawJson


@dataclass(frozen=True)
class UnreadablePart:
    """An element of a page that cannot be read, exactly as it came, and why; it costs no other element."""

    raw: bytes
    error: UnreadableBodyError
    after: int | None = None
    """Of the journal: the position that was read before it."""


@dataclass(frozen=True)
class OrderPage:
    """A page of the list, and when it was asked for."""

    orders: tuple[ListedOrder, ...]
    total_count: int | None
    requested_at: datetime
    unreadable: tuple[UnreadablePart, ...] = ()


@dataclass(frozen=True)
class FetchedOrder:
    """One order by its id, and when it was asked for."""

    order: ListedOrder
    requested_at: datetime


class OrderFacts(msgspec.Struct, frozen=True, gc=False):
    """What the columns of `orders` hold of an order; a Struct, since one is made for every order that is stored."""

    order_id: str
    status: str
    fulfillment_status: str | None
    buyer_id: str | None
    buyer_login: str | None
    buyer_email: str | None
    total_amount: Decimal | None
    currency: str | None
    bought_at: datetime | None
    updated_at: datetime | None
    revision: str | None
    line_item_ids: tuple[str, ...]


_NULL = msgspec.Raw(b"null")


class _Lens(msgspec.Struct):
    """A struct whose values are left as they are: a surprise in one, whatever it is, must not cost the others.

    That it has another type than documented is the least; numbers may be of any length, and then nobody reads them.
    """


class _Strict(msgspec.Struct, gc=False):
    """A struct with the documented types: ten times as fast, and right for nearly every body."""


class _StrictItem(_Strict):
    id: str | None = None
    boughtAt: str | None = None  # noqa: N815 - Allegro's name


class _StrictFulfillment(_Strict):
    status: str | None = None


class _StrictBuyer(_Strict):
    id: str | None = None
    login: str | None = None
    email: str | None = None


class _StrictTotal(_Strict):
    amount: str | None = None
    currency: str | None = None


class _StrictSummary(_Strict):
    totalToPay: _StrictTotal | None = None  # noqa: N815


class _StrictOrder(_Strict):
    id: str
    status: str | None = None
    fulfillment: _StrictFulfillment | None = None
    buyer: _StrictBuyer | None = None
    summary: _StrictSummary | None = None
    lineItems: list[_StrictItem] | None = None  # noqa: N815
    updatedAt: str | None = None  # noqa: N815
    revision: str | None = None


class _StrictForm(_Strict):
    id: str | None = None
    revision: str | None = None


class _StrictEventOrder(_Strict):
    checkoutForm: _StrictForm | None = None  # noqa: N815
    lineItems: list[_StrictItem] | None = None  # noqa: N815


class _StrictEvent(_Strict):
    id: str
    type: str | None = None
    occurredAt: str | None = None  # noqa: N815
    order: _StrictEventOrder | None = None


class _StrictIdentified(_Strict):
    id: str
    lineItems: list[_StrictItem] | None = None  # noqa: N815


class _Order(_Lens):
    id: msgspec.Raw = _NULL
    status: msgspec.Raw = _NULL
    fulfillment: msgspec.Raw = _NULL
    buyer: msgspec.Raw = _NULL
    summary: msgspec.Raw = _NULL
    lineItems: msgspec.Raw = _NULL  # noqa: N815 - Allegro's name
    updatedAt: msgspec.Raw = _NULL  # noqa: N815
    revision: msgspec.Raw = _NULL


class _Identified(_Lens):
    id: msgspec.Raw = _NULL
    lineItems: msgspec.Raw = _NULL  # noqa: N815


class _Event(_Lens):
    id: msgspec.Raw = _NULL
    type: msgspec.Raw = _NULL
    occurredAt: msgspec.Raw = _NULL  # noqa: N815
    order: msgspec.Raw = _NULL


class _List(_Lens):
    checkoutForms: list[msgspec.Raw]  # noqa: N815
    totalCount: msgspec.Raw = _NULL  # noqa: N815


class _Events(_Lens):
    events: list[msgspec.Raw]


_STRICT_ORDER = msgspec.json.Decoder(_StrictOrder)
_STRICT_IDENTIFIED = msgspec.json.Decoder(_StrictIdentified)
_STRICT_EVENT = msgspec.json.Decoder(_StrictEvent)
_ORDER = msgspec.json.Decoder(_Order)
_IDENTIFIED = msgspec.json.Decoder(_Identified)
_EVENT = msgspec.json.Decoder(_Event)
_LIST = msgspec.json.Decoder(_List)
_EVENTS = msgspec.json.Decoder(_Events)
_ANY: msgspec.json.Decoder[Any] = msgspec.json.Decoder()
_RAW = msgspec.json.Decoder(msgspec.Raw)
_MEMBERS = msgspec.json.Decoder(dict[str, msgspec.Raw])
_ITEMS = msgspec.json.Decoder(list[msgspec.Raw])

_MOST_POSITION_DIGITS = 19

_UNREADABLE = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)

_Body = TypeVar("_Body")


def _read(decoder: msgspec.json.Decoder[_Body], raw: bytes) -> tuple[_Body, bytes]:
    """What the decoder makes of the body, and the text that it read: a stand-in where it must; raises _UNREADABLE."""
    try:
        return decoder.decode(raw), raw
    except _UNREADABLE:
        text = readable(raw)
    try:
        return decoder.decode(text), text
    except msgspec.ValidationError:
        raise
    except (msgspec.DecodeError, RecursionError):  # whichever comes first, far down: as `shared/messages.py` does
        text = shallow(text)
        return decoder.decode(text), text


def order_facts(raw: bytes) -> OrderFacts:
    """Read the facts of an order; raises UnreadableBodyError if it is no order at all."""
    try:
        return _strict_facts(_STRICT_ORDER.decode(raw))
    except _UNREADABLE:
        # Some field is not what it should be: which one, and whether it matters, is seen below.
        return _tolerant_facts(raw)


def _strict_facts(order: _StrictOrder) -> OrderFacts:
    if not order.id:
        raise UnreadableBodyError("order.id: missing")
    fulfillment, buyer, summary, items = order.fulfillment, order.buyer, order.summary, order.lineItems or ()
    total = summary.totalToPay if summary is not None else None
    return OrderFacts(
        order_id=_clean(order.id),
        status=_clean(order.status) if order.status else "UNKNOWN",
        fulfillment_status=_clean_or_none(fulfillment.status) if fulfillment is not None else None,
        buyer_id=_clean_or_none(buyer.id) if buyer is not None else None,
        buyer_login=_clean_or_none(buyer.login) if buyer is not None else None,
        buyer_email=_clean_or_none(buyer.email) if buyer is not None else None,
        total_amount=_decimal(total.amount) if total is not None else None,
        currency=_clean_or_none(total.currency) if total is not None else None,
        bought_at=_newest_of(item.boughtAt for item in items),
        updated_at=_moment(order.updatedAt),
        revision=_clean_or_none(order.revision),
        line_item_ids=tuple(_clean(item.id) for item in items if item.id is not None),
    )


def _tolerant_facts(raw: bytes) -> OrderFacts:
    try:
        order, text = _read(_ORDER, raw)
    except _UNREADABLE as error:
        raise UnreadableBodyError(f"order: not a JSON object: {type(error).__name__}") from error
    total = _get(order.summary, "totalToPay")
    return OrderFacts(
        order_id=_clean(_order_id(order, raw, text)),
        status=_text(_value(order.status)) or "UNKNOWN",
        fulfillment_status=_text(_value(_get(order.fulfillment, "status"))),
        buyer_id=_text(_value(_get(order.buyer, "id"))),
        buyer_login=_text(_value(_get(order.buyer, "login"))),
        buyer_email=_text(_value(_get(order.buyer, "email"))),
        total_amount=_decimal(_value(_get(total, "amount"))),
        currency=_text(_value(_get(total, "currency"))),
        bought_at=_newest(order.lineItems),
        updated_at=_moment(_value(order.updatedAt)),
        revision=_text(_value(order.revision)),
        line_item_ids=tuple(
            identifier
            for item in _items(order.lineItems)
            if (identifier := _text(_value(_get(item, "id")))) is not None
        ),
    )


def _order_id(order: _Order | _Identified, raw: bytes, text: bytes) -> str:
    """What identifies the order; raises UnreadableBodyError. `text` is what was read of `raw`."""
    identifier = _value(order.id)
    if not isinstance(identifier, str) or not identifier:
        raise UnreadableBodyError("order.id: missing")
    if text is not raw and identifier.encode() not in raw:
        raise UnreadableBodyError("order.id: unreadable")
    return identifier


def listed_order(raw: bytes) -> ListedOrder:
    """Read what a walk needs of an order; raises UnreadableBodyError."""
    try:
        strict = _STRICT_IDENTIFIED.decode(raw)
    except _UNREADABLE:
        return _tolerant_listed_order(raw)
    if not strict.id:
        raise UnreadableBodyError("order.id: missing")
    return ListedOrder(strict.id, _newest_of(item.boughtAt for item in strict.lineItems or ()), RawJson.of(raw))


def _tolerant_listed_order(raw: bytes) -> ListedOrder:
    try:
        order, text = _read(_IDENTIFIED, raw)
    except _UNREADABLE as error:
        raise UnreadableBodyError(f"order: not a JSON object: {type(error).__name__}") from error
    return ListedOrder(_order_id(order, raw, text), _newest(order.lineItems), RawJson.of(raw))


def order_list(raw: bytes, *, requested_at: datetime) -> OrderPage:
    """Read a page of the list; raises UnreadableBodyError where it is none. An unreadable order costs only itself."""
    try:
        page, text = _read(_LIST, raw)
    except _UNREADABLE as error:
        raise UnreadableBodyError(f"list of orders: unreadable: {type(error).__name__}") from error
    total = _value(page.totalCount)
    orders: list[ListedOrder] = []
    unreadable: list[UnreadablePart] = []
    for part in _cut(raw, text, page.checkoutForms):
        try:
            orders.append(listed_order(part))
        except UnreadableBodyError as error:
            unreadable.append(UnreadablePart(part, error))
    known_total = total if isinstance(total, int) and total >= 0 else None
    return OrderPage(tuple(orders), known_total, requested_at, tuple(unreadable))


def journal_event(raw: bytes) -> JournalEvent:
    """Read one line of the journal; raises UnreadableBodyError if its id is no journal position."""
    try:
        event = _STRICT_EVENT.decode(raw)
    except _UNREADABLE:
        return _tolerant_event(raw)
    order = event.order or _StrictEventOrder()
    form = order.checkoutForm or _StrictForm()
    return JournalEvent(
        event_id=_known_position(event.id),
        event_type=_clean(event.type) if event.type else "UNKNOWN",
        occurred_at=_moment(event.occurredAt),
        order_id=_clean_or_none(form.id),
        revision=_clean_or_none(form.revision),
        bought_at=_newest_of(item.boughtAt for item in order.lineItems or ()),
        raw=RawJson.of(raw),
    )


def _tolerant_event(raw: bytes) -> JournalEvent:
    try:
        event, _ = _read(_EVENT, raw)
    except _UNREADABLE as error:
        raise UnreadableBodyError(f"event: not a JSON object: {type(error).__name__}") from error
    form = _get(event.order, "checkoutForm")
    return JournalEvent(
        event_id=_known_position(_value(event.id)),
        event_type=_text(_value(event.type)) or "UNKNOWN",
        occurred_at=_moment(_value(event.occurredAt)),
        order_id=_text(_value(_get(form, "id"))),
        revision=_text(_value(_get(form, "revision"))),
        bought_at=_newest(_get(event.order, "lineItems")),
        raw=RawJson.of(raw),
    )


def journal_events(raw: bytes) -> tuple[tuple[JournalEvent, ...], tuple[UnreadablePart, ...]]:
    """Read a page of the journal, in Allegro's order, and what of it is unreadable.

    Raises UnreadableBodyError where it is no such page.
    """
    try:
        page, text = _read(_EVENTS, raw)
    except _UNREADABLE as error:
        raise UnreadableBodyError(f"journal page: unreadable: {type(error).__name__}") from error
    events: list[JournalEvent] = []
    unreadable: list[UnreadablePart] = []
    for part in _cut(raw, text, page.events):
        try:
            events.append(journal_event(part))
        except UnreadableBodyError as error:
            unreadable.append(UnreadablePart(part, error, after=events[-1].event_id if events else None))
    return tuple(events), tuple(unreadable)


def latest_event_id(raw: bytes) -> int | None:
    """Read the newest position from event-stats; None where there is none, or the key is missing (#8496)."""
    try:
        stats, _ = _read(_RAW, raw)
    except _UNREADABLE as error:
        raise UnreadableBodyError(f"event-stats: unreadable: {type(error).__name__}") from error
    return _position(_value(_get(_get(stats, "latestEvent"), "id")))


def seller(raw: bytes) -> tuple[str, str]:
    """Read id and login from `/me`; raises UnreadableBodyError."""
    try:
        me, _ = _read(_RAW, raw)
    except _UNREADABLE as error:
        raise UnreadableBodyError(f"me: unreadable: {type(error).__name__}") from error
    identifier, login = _text(_value(_get(me, "id"))), _text(_value(_get(me, "login")))
    if identifier is None or login is None:
        raise UnreadableBodyError("me: id or login missing")
    return identifier, login


def _cut(raw: bytes, text: bytes, parts: Iterable[msgspec.Raw]) -> Iterable[bytes]:
    """The parts of a page as they came, where `text` is what was read of it."""
    return map(RawJson, parts) if text is raw else originals(raw, text, parts)


def _position(value: Any) -> int | None:
    """A journal position fits into 63 bits; Python itself refuses to read numbers of thousands of digits."""
    text = str(value)
    if not (text.isascii() and text.isdigit() and len(text) <= _MOST_POSITION_DIGITS):
        return None
    position = int(text)
    return position if position < 2**63 else None


def _known_position(value: Any) -> int:
    position = _position(value)
    if position is None:
        raise UnreadableBodyError("event.id: not a journal position")
    return position


def _value(raw: msgspec.Raw) -> Any:
    """What a part of a body says; None where it cannot be read."""
    try:
        return _ANY.decode(raw)
    except (*_UNREADABLE, ValueError):  # numbers of thousands of digits
        return None


def _get(raw: msgspec.Raw, name: str) -> msgspec.Raw:
    try:
        return _MEMBERS.decode(raw).get(name, _NULL)
    except _UNREADABLE:
        return _NULL


def _items(raw: msgspec.Raw) -> Iterable[msgspec.Raw]:
    try:
        return _ITEMS.decode(raw)
    except _UNREADABLE:
        return ()


def _text(value: Any) -> str | None:
    match value:
        case str():
            return _clean(value)
        case bool() | None:
            return None
        case int():
            return str(value)
        case _:
            return None


def _clean(text: str) -> str:
    """PostgreSQL's text cannot hold a NUL."""
    return text.replace("\0", "\N{REPLACEMENT CHARACTER}") if "\0" in text else text


def _clean_or_none(text: str | None) -> str | None:
    return None if text is None else _clean(text)


def _decimal(value: Any) -> Decimal | None:
    """Amounts are strings; anything that PostgreSQL's numeric could not hold is None."""
    if not isinstance(value, str | int) or isinstance(value, bool):
        return None
    try:
        amount = Decimal(value)
    except InvalidOperation:
        return None
    return amount if amount.is_finite() and abs(amount.adjusted()) < 1000 else None


def _moment(value: Any) -> datetime | None:
    """Times are UTC, ISO 8601 with `Z` (#10170)."""
    if not isinstance(value, str):
        return None
    try:
        moment = datetime.fromisoformat(value)
        if moment.tzinfo is UTC:
            return moment
        return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)
    except (ValueError, OverflowError):
        return None


def _newest(line_items: msgspec.Raw) -> datetime | None:
    return _newest_of(_value(_get(item, "boughtAt")) for item in _items(line_items))


def _newest_of(values: Iterable[Any]) -> datetime | None:
    moments = [moment for value in values if (moment := _moment(value)) is not None]
    return max(moments, default=None)
