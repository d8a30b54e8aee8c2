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
    """Two integers an event. The part about the past is derived when somebody first reads, not when one first writes:
    live activity spreads over all sellers, and most may never be read."""

    def __init__(self, history: History, oldest_ms: int) -> None:
        self._history = history
        self._oldest_ms = oldest_ms
        self._new = _Part()

    def append(self, event_id: int, entry: Entry) -> None:
        """Ids must rise, and be above those of the past; the caller makes them."""
        self._new.append(event_id, entry)

    def count_since(self, oldest_us: int) -> int:
        return self._past.count_since(oldest_us) + self._new.count_since(oldest_us)

    def latest(self) -> tuple[int, Entry] | None:
        return self._new.latest() or self._past.latest()

    def after(self, cursor: int, wanted: Callable[[str], bool] | None = None) -> Iterator[tuple[int, Entry]]:
        """Every entry with a greater id, oldest first; `wanted` looks at the type."""
        yield from self._past.after(cursor, wanted)
        yield from self._new.after(cursor, wanted)

    @cached_property
    def _past(self) -> "_Part":
        part = _Part()
        last = 0
        for written_us, order, place, kind in sorted(self._history.events(self._oldest_ms)):
            last = max(written_us, last + 1)
            part.append(last, Entry(order, False, place, kind))
        return part


class _Part:
    """Ids that rise, each with the packed place of its step."""

    def __init__(self) -> None:
        self._ids = array("Q")
        self._references = array("Q")

    def append(self, event_id: int, entry: Entry) -> None:
        self._ids.append(event_id)
        self._references.append(_pack(entry))

    def count_since(self, oldest_us: int) -> int:
        return len(self._ids) - bisect_left(self._ids, oldest_us)

    def latest(self) -> tuple[int, Entry] | None:
        return (self._ids[-1], _unpack(self._references[-1])) if self._ids else None

    def after(self, cursor: int, wanted: Callable[[str], bool] | None) -> Iterator[tuple[int, Entry]]:
        for position in range(bisect_right(self._ids, cursor), len(self._ids)):
            entry = _unpack(self._references[position])
            if wanted is None or wanted(event_type(entry.kind)):
                yield self._ids[position], entry


def _pack(entry: Entry) -> int:
    return ((entry.order << 1 | entry.live) << _PLACE_BITS | entry.place) << _KIND_BITS | entry.kind


def _unpack(reference: int) -> Entry:
    rest, kind = divmod(reference, 1 << _KIND_BITS)
    rest, place = divmod(rest, 1 << _PLACE_BITS)
    return Entry(rest >> 1, bool(rest & 1), place, kind)
