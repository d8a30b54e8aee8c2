"""JSON that `jsonb` refuses although it is valid: kept byte for byte beside a readable stand-in (promise P9).

PostgreSQL refuses NUL (`\\u0000`) and lone surrogates in strings, numbers beyond `numeric`, and very deep nesting.
None of them may cost an order. The exact bytes go to `order_raw`/`event_raw`; `order_data`/`event_data` holds the
nearest thing that can be queried. Of a field that an object has twice `jsonb` keeps the last without a word: there the
bytes are kept as well.
"""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass

from shared.json_text import may_lose_a_field, readable

_ESCAPED_NUL = re.compile(rb"(?<!\\)((?:\\\\)*)\\u0000")
_REPLACEMENT = rb"\1\\ufffd"


@dataclass(frozen=True)
class Storable:
    """What goes into the two columns."""

    data: bytes
    raw: bytes | None


def as_it_came(raw: bytes) -> Storable:
    """Nearly always: the column alone holds what was received."""
    return Storable(raw, raw if may_lose_a_field(raw) else None)


def stand_ins(raw: bytes, *, summary: dict[str, str | None]) -> Iterator[Storable]:
    """What to try, in this order, once the database refused the bytes as they came.

    First the same document with the characters it cannot hold replaced by U+FFFD, then `summary` alone.
    """
    yield Storable(_ESCAPED_NUL.sub(_REPLACEMENT, readable(raw)), raw)
    plain = {name: value.replace("\0", "\N{REPLACEMENT CHARACTER}") for name, value in summary.items() if value}
    yield Storable(json.dumps(plain).encode(), raw)
