"""Bodies that are hard to swallow, for chosen orders: each has broken some reader of JSON."""

from typing import Final
from zlib import crc32

from simulator.faults import Fault, Faults

# Ordinary JSON readers refuse these, so the ledger gives them in base64.
UNREADABLE: Final = frozenset({"invalid_utf8", "deep"})
_DEPTH: Final = 10_000
_ALWAYS: Final = ("nul", "duplicate_keys", "huge_number", "invalid_utf8", "deep", "big")


def kind_of(faults: Faults, order_id: str) -> str | None:
    """What is wrong with an order's body; an order that is chosen by the rate stays chosen."""
    fault = faults.get("toxic")
    if fault is None:
        return None
    if fault.orders:
        return fault.orders.get(order_id)
    chance = crc32(order_id.encode())
    if chance / 2**32 >= fault.rate:
        return None
    kinds = fault.kinds or _ALWAYS
    return kinds[chance % len(kinds)]


def poison(kind: str, body: bytes, fault: Fault | None) -> bytes:
    """The body with something added at its end; it stays an object."""
    size = int(fault.amount) if fault is not None else 0
    return body[:-1] + b"," + _addition(kind, size) + b"}"


def _addition(kind: str, size: int) -> bytes:
    match kind:
        case "nul":
            # PostgreSQL's jsonb refuses it.
            return b'"toxic":"a\\u0000b"'
        case "duplicate_keys":
            return b'"toxic":1,"toxic":2'
        case "huge_number":
            return b'"toxic":1e400'
        case "invalid_utf8":
            return b'"toxic":"\xff\xc3("'
        case "deep":
            return b'"toxic":' + b"[" * _DEPTH + b"]" * _DEPTH
        case _:
            return b'"toxic":"' + b"x" * size + b'"'
