"""Ids. Forms, line items and payments have version 1 UUIDs (section 5); a form's id leads back to where it came from.

Layout: the time is when the form was made; the last digits of the time (100 ns) and the clock sequence carry the
order's number, the node the seller's. So nobody has to keep millions of ids to find an order by its id.
"""

import re
from functools import lru_cache
from typing import NamedTuple

_GREGORIAN_TO_UNIX_100NS = 0x01B21DD213814000
_TICKS_PER_MS = 10_000
# Allegro's own node is constant (…-904f-89bb34047197); an odd first octet marks it as made up (RFC 9562, 5.1).
_NODE_PREFIX = 0x89 << 40
_LIVE_BIT = 0x2000
_VARIANT = 0x8000
# A form is made some tenths of a second after its line items were bought (sandbox, October 2026).
FORM_DELAY_MS = 300

MAX_LINES = 7
MAX_SELLERS = 1 << 16
_PAYMENT_SLOT = 8
_SURCHARGE_SLOT = 9

_UUID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-([0-9a-f])[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}", re.IGNORECASE)


class Origin(NamedTuple):
    """Where an id says that it comes from; an id may lie, so derive it again and compare."""

    seller: int
    live: bool
    bought_ms: int
    number_digits: int


def _uuid1(at_ms: int, low_ticks: int, tail: bytes) -> bytes:
    digits = b"%015x" % (at_ms * _TICKS_PER_MS + low_ticks + _GREGORIAN_TO_UNIX_100NS)
    return b"%b-%b-1%b-%b" % (digits[7:], digits[3:7], digits[:3], tail)


@lru_cache(maxsize=65536)
def _tail(seller: int, sequence: int) -> bytes:
    return b"%04x-%012x" % (sequence, _NODE_PREFIX | seller << 16 | 0x7197)


class Ids:
    """All ids of one order, as bytes: they go into bodies."""

    __slots__ = ("_bought_ms", "_low_ticks", "_tail")

    def __init__(self, seller: int, number: int, live: bool, bought_ms: int) -> None:
        self._tail = _tail(seller, _VARIANT | (_LIVE_BIT if live else 0) | number // 1000 & 0x1FFF)
        self._low_ticks = number % 1000 * 10
        self._bought_ms = bought_ms

    def form(self) -> bytes:
        return _uuid1(self._bought_ms + FORM_DELAY_MS, self._low_ticks, self._tail)

    def line(self, bought_ms: int, line: int) -> bytes:
        return _uuid1(bought_ms, self._low_ticks + 1 + line, self._tail)

    def payment(self) -> bytes:
        return _uuid1(self._bought_ms + FORM_DELAY_MS, self._low_ticks + _PAYMENT_SLOT, self._tail)

    def surcharge(self, at_ms: int) -> bytes:
        return _uuid1(at_ms, self._low_ticks + _SURCHARGE_SLOT, self._tail)


def is_time_uuid(text: str) -> bool:
    """Allegro answers 422 "Not valid time UUID" to anything else (section 5)."""
    match = _UUID.fullmatch(text)
    return match is not None and match[1] == "1"


def origin(form: str) -> Origin | None:
    """Read a form's id; None if it cannot be one of ours."""
    if not is_time_uuid(form):
        return None
    low, middle, high, sequence, node = (int(part, 16) for part in form.split("-"))
    ticks = ((high & 0xFFF) << 48 | middle << 32 | low) - _GREGORIAN_TO_UNIX_100NS
    at_ms, low_ticks = divmod(ticks, _TICKS_PER_MS)
    return Origin(
        seller=node >> 16 & 0xFFFFFF,
        live=bool(sequence & _LIVE_BIT),
        bought_ms=at_ms - FORM_DELAY_MS,
        number_digits=(sequence & 0x1FFF) * 1000 + low_ticks // 10,
    )


def seller_id(seller: int) -> str:
    """The numeric id that tokens carry as `user_name` (#326, #9955)."""
    return str(110_000_001 + seller)


def seller_number(seller: str) -> int | None:
    """The inverse of `seller_id`, of any number; whether there is such a seller is for the caller to know."""
    if not re.fullmatch(r"\d{1,12}", seller):
        return None
    number = int(seller) - 110_000_001
    return number if number >= 0 else None
