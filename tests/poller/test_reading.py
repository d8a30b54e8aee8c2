"""Pages of a journal of which some are too large to be read, and some lines cannot be read at all."""

from collections.abc import Sequence
from datetime import timedelta
from typing import Any

import pytest

from services.poller.positions import Cursor
from services.poller.reading import PageReader
from shared.allegro.bodies import JournalEvent, UnreadableBodyError, UnreadablePart, journal_event
from shared.allegro.client import JournalPage
from shared.allegro.errors import AllegroUnavailableError, AnswerTooLargeError
from tests.builders import NOON

_NEW = Cursor(stored_event_id=0, published_event_id=0, unconfirmed_for=None, rewinds=0, covered_event_id=0)
_ODD = UnreadablePart(b'{"id":"odd"}', UnreadableBodyError("event.id: not a journal position"))


class Journal:
    """Lines, each of some size; no more than `most` of them, taken together, are read."""

    def __init__(self, lines: Sequence[tuple[JournalEvent | UnreadablePart, int]], *, most: int = 1000) -> None:
        self._lines = lines
        self._most = most
        self.limits: list[int] = []

    async def events(self, _token_id: int, *, after: int, limit: int, traffic: str) -> JournalPage:
        assert traffic == "live"
        self.limits.append(limit)
        behind = 0
        for number, (line, _) in enumerate(self._lines):
            if isinstance(line, JournalEvent) and line.event_id <= after:
                behind = number + 1
        page = self._lines[behind : behind + limit]
        if sum(size for _, size in page) > self._most:
            raise AnswerTooLargeError("larger than is read")
        events = tuple(line for line, _ in page if isinstance(line, JournalEvent))
        unreadable = tuple(line for line, _ in page if isinstance(line, UnreadablePart))
        return JournalPage(events, NOON, timedelta(0), unreadable)


class Aside:
    """What was set aside, and behind which position."""

    def __init__(self) -> None:
        self.lines: list[tuple[bytes, int]] = []

    async def unreadable(self, token_id: int, lines: Sequence[UnreadablePart], *, after: int) -> None:
        assert token_id == 1
        self.lines += [(line.raw, after) for line in lines]


def a_line(event_id: int) -> JournalEvent:
    return journal_event(b'{"id":"%d","type":"BOUGHT","order":{"checkoutForm":{"id":"o-1"}}}' % event_id)


def a_reader(journal: Any, aside: Any) -> PageReader:
    pool: Any = None  # nothing is stored: it is not asked
    return PageReader(pool, journal, aside, tracked_event_types=())


async def test_fewer_events_are_asked_for_while_the_answer_would_be_too_large() -> None:
    journal = Journal([(a_line(number), 90) for number in range(1, 31)])

    page = await a_reader(journal, Aside()).page(1, _NEW, after=0)

    assert journal.limits == [1000, 100, 10]
    assert (len(page.links), page.read_up_to, page.is_last) == (10, 10, False)


async def test_an_unreadable_line_on_a_smaller_page_counts_as_a_line_of_it_and_is_set_aside() -> None:
    journal = Journal([(a_line(1), 90), (_ODD, 90), *[(a_line(number), 90) for number in range(2, 31)]])
    aside = Aside()

    page = await a_reader(journal, aside).page(1, _NEW, after=0)

    assert aside.lines == [(_ODD.raw, 0)]
    assert (len(page.links), page.read_up_to, page.is_last) == (9, 9, False)


@pytest.mark.parametrize(("odd", "limits"), [(1, [1000, 100, 10, 1, 5, 3, 2]), (4, [1000, 100, 10, 1, 5])])
async def test_unreadable_lines_before_a_large_event_are_passed_with_an_event_behind_them(
    odd: int, limits: list[int]
) -> None:
    """A page of one line would show no position behind which to go on."""
    journal = Journal([*[(_ODD, 1)] * odd, (a_line(1), 700), (a_line(2), 700), *[(a_line(9), 1)] * 200])
    aside = Aside()

    page = await a_reader(journal, aside).page(1, _NEW, after=0)

    assert journal.limits == limits
    assert aside.lines == [(_ODD.raw, 0)] * odd
    assert (page.read_up_to, page.is_last) == (1, False)


async def test_a_full_page_without_a_position_is_an_error_and_nothing_is_set_aside() -> None:
    journal, aside = Journal([(_ODD, 0)] * 1000), Aside()

    with pytest.raises(AllegroUnavailableError, match="without a position"):
        await a_reader(journal, aside).page(1, _NEW, after=0)

    assert (journal.limits, aside.lines) == ([1000], [])


async def test_unreadable_lines_before_an_event_that_cannot_be_read_are_an_error_after_a_few_requests() -> None:
    journal = Journal([(_ODD, 1), (_ODD, 1), (a_line(1), 2000)])

    with pytest.raises(AnswerTooLargeError):
        await a_reader(journal, Aside()).page(1, _NEW, after=0)

    assert len(journal.limits) < 10
