"""Are the tables equal to what Allegro served? Compares PostgreSQL with the simulator's ledger of truth.

Pure comparison above, streams below. Memory does not depend on how many orders there are: the ledger arrives as one
JSON document a line and is compared a few hundred lines at a time.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any, Literal

_CHUNK = 200
_SHOWN = 10

Kind = Literal["order", "event"]
Fault = Literal["missing", "extra", "different"]


@dataclass(frozen=True)
class Difference:
    """One row that is not as it should be."""

    fault: Fault
    kind: Kind
    seller_id: str
    id: str
    reason: str

    def __str__(self) -> str:
        return f"{self.fault} {self.kind} {self.id} of seller {self.seller_id}: {self.reason}"


@dataclass
class Comparison:
    """What was found; `differences` counts all of them, `shown` holds the first."""

    orders: int = 0
    events: int = 0
    differences: int = 0
    shown: list[Difference] = field(default_factory=list)

    @property
    def equal(self) -> bool:
        return self.differences == 0

    def count(self, kind: Kind, number: int) -> None:
        """So many ledger entries were looked at."""
        if kind == "order":
            self.orders += number
        else:
            self.events += number

    def add(self, difference: Difference) -> None:
        self.differences += 1
        if len(self.shown) < _SHOWN:
            self.shown.append(difference)


def parse(document: str | bytes) -> Any:
    """JSON without loss: 0.1 stays 0.1."""
    return json.loads(document, parse_float=Decimal)


def first_difference(expected: Any, stored: Any, path: str = "$") -> str | None:
    """Where two JSON values part, in words; None if they are equal."""
    if isinstance(expected, Mapping) and isinstance(stored, Mapping):
        for key in expected:
            if key not in stored:
                return f"{path}.{key} is not stored"
        for key in stored:
            if key not in expected:
                return f"{path}.{key} is stored and was never served"
        pairs: Iterable[tuple[str, Any, Any]] = ((f"{path}.{key}", expected[key], stored[key]) for key in expected)
    elif isinstance(expected, list) and isinstance(stored, list):
        if len(expected) != len(stored):
            return f"{path} has {len(stored)} elements instead of {len(expected)}"
        pairs = (
            (f"{path}[{number}]", one, other) for number, (one, other) in enumerate(zip(expected, stored, strict=True))
        )
    else:
        # In Python, True == 1; in JSON it is not.
        same_type = isinstance(expected, bool) == isinstance(stored, bool)
        return None if same_type and expected == stored else f"{path} is {stored!r} instead of {expected!r}"
    for inner_path, one, other in pairs:
        difference = first_difference(one, other, inner_path)
        if difference is not None:
            return difference
    return None


def compare_chunk(
    kind: Kind, seller_id: str, expected: Mapping[str, Any], stored: Mapping[str, Any], result: Comparison
) -> None:
    """Add what distinguishes the stored documents from the expected ones of the same ids."""
    result.count(kind, len(expected))
    for id_, document in expected.items():
        if id_ not in stored:
            result.add(Difference("missing", kind, seller_id, id_, "Allegro served it and it is not stored"))
            continue
        reason = first_difference(document, stored[id_])
        if reason is not None:
            result.add(Difference("different", kind, seller_id, id_, reason))
