"""One seller's journal of events: ids only rise, a page starts after any integer, 60 days are kept (section 3)."""

from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterator
from functools import cached_property
from typing import NamedTuple

from simulator.history import History
from simulator.timeline import event_type

_KIND_BITS = 5
_PLACE_BITS = 10


class Entry(NamedTuple):
    """The step of an order that an event tells of; steps never change, so the event can be written out again."""

    order: int
    live: bool
    place: int
    kind: int


class Journal:
    """Two integers an event. The part about the past is derived when somebody first looks or writes."""

    def __init__(self, history: History, oldest_ms: int) -> None:
        self._history = history
        self._oldest_ms = oldest_ms

    def append(self, event_id: int, entry: Entry) -> None:
        """Ids must rise; the caller makes them."""
        ids, references = self._index
        ids.append(event_id)
        references.append(_pack(entry))

    def count_since(self, oldest_us: int) -> int:
        ids = self._index[0]
        return len(ids) - bisect_left(ids, oldest_us)

    def latest(self) -> tuple[int, Entry] | None:
        ids, references = self._index
        return (ids[-1], _unpack(references[-1])) if ids else None

    def after(self, cursor: int, wanted: Callable[[str], bool] | None = None) -> Iterator[tuple[int, Entry]]:
        """Every entry with a greater id, oldest first; `wanted` looks at the type."""
        ids, references = self._index
        for position in range(bisect_right(ids, cursor), len(ids)):
            entry = _unpack(references[position])
            if wanted is None or wanted(event_type(entry.kind)):
                yield ids[position], entry

    @cached_property
    def _index(self) -> "tuple[array[int], array[int]]":
        ids, references = array("Q"), array("Q")
        last = 0
        for written_us, order, place, kind in sorted(self._history.events(self._oldest_ms)):
            last = max(written_us, last + 1)
            ids.append(last)
            references.append(_pack(Entry(order, False, place, kind)))
        return ids, references


def _pack(entry: Entry) -> int:
    return ((entry.order << 1 | entry.live) << _PLACE_BITS | entry.place) << _KIND_BITS | entry.kind


def _unpack(reference: int) -> Entry:
    rest, kind = divmod(reference, 1 << _KIND_BITS)
    rest, place = divmod(rest, 1 << _PLACE_BITS)
    return Entry(rest >> 1, bool(rest & 1), place, kind)
