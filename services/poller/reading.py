"""Pages of a journal, less what is stored already, as records in unbroken steps.

A line that cannot be read is a dead letter, and the cursor passes it with the next readable one. Where there is none
behind it the cursor stays before it, and the line is met again: nothing else is to be read there.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from uuid import UUID

import asyncpg

from services.poller.positions import Cursor, Link, chain, wanted_after
from services.poller.publish import Publisher
from shared.allegro.client import AllegroClient, JournalPage
from shared.allegro.errors import AllegroUnavailableError, AnswerTooLargeError
from shared.messages import OrderEvent
from shared.request_limits import Traffic

PAGE_SIZE = 1000
_SMALLER = 10

_KNOWN = "SELECT event_id FROM order_events WHERE user_token_id = $1 AND event_id = ANY($2::bigint[])"


@dataclass(frozen=True)
class Page:
    """A page of a journal, reduced to what is worth publishing."""

    links: Sequence[Link]
    read_up_to: int
    is_last: bool
    received_at: datetime
    clock_ahead: timedelta | None

    def head(self, events: int) -> "Page":
        """So many of its events; what is behind them is read again."""
        if len(self.links) <= events:
            return self
        links = self.links[:events]
        return replace(self, links=links, read_up_to=links[-1].event.event_id, is_last=False)


class PageReader:
    """Reads pages for whoever publishes them."""

    def __init__(
        self,
        pool: asyncpg.Pool,
        allegro: AllegroClient,
        publisher: Publisher,
        *,
        tracked_event_types: Collection[str],
    ) -> None:
        self._pool = pool
        self._allegro = allegro
        self._publisher = publisher
        self._tracked = tracked_event_types

    async def page(self, token_id: int, cursor: Cursor, *, after: int, traffic: Traffic = "live") -> Page:
        """The page after a position; what of it is unreadable has been set aside.

        Raises the errors of shared.allegro.errors, and PublishFailedError.
        """
        answer, limit = await self._answer(token_id, after, traffic)
        if answer.unreadable:
            await self._publisher.unreadable(token_id, answer.unreadable, after=after)
        stored = cursor.stored_event_id
        asked = [event.event_id for event in answer.events if event.event_id <= stored]
        known = {row["event_id"] for row in await self._pool.fetch(_KNOWN, token_id, asked)} if asked else ()
        return Page(
            links=list(chain(answer.events, after=after, stored_event_id=stored, known=known)),
            read_up_to=max((event.event_id for event in answer.events), default=after),
            is_last=_lines(answer) < limit,
            received_at=answer.received_at,
            clock_ahead=answer.clock_ahead,
        )

    async def _answer(self, token_id: int, after: int, traffic: Traffic) -> tuple[JournalPage, int]:
        """The answer, and how many events were asked for: fewer and fewer, while it would be too large to be read.

        But so many that one of them can be read: without a position, what is behind them cannot be asked for.
        """
        too_few, limit, too_many = 0, PAGE_SIZE, PAGE_SIZE + 1
        too_large: AnswerTooLargeError | None = None
        while True:
            try:
                answer = await self._allegro.events(token_id, after=after, limit=limit, traffic=traffic)
            except AnswerTooLargeError as error:
                too_many, too_large = limit, error
            else:
                if _lines(answer) < limit or any(event.event_id > after for event in answer.events):
                    return answer, limit
                too_few = limit
            if too_many == too_few + 1:
                raise too_large or AllegroUnavailableError("a full page of the journal without a position behind it")
            limit = (too_few + too_many) // 2 if too_few else limit // _SMALLER

    def records(
        self, token_id: int, page: Page, cursor: Cursor, *, run_id: UUID, run_last: int, run_requests: int = 0
    ) -> list[OrderEvent]:
        """The records of a page, for a run that is complete when `run_last` is stored."""
        return [
            OrderEvent(
                token_id=token_id,
                event_id=link.event.event_id,
                follows_event_id=link.follows,
                event_type=link.event.event_type,
                occurred_at=link.event.occurred_at,
                order_id=link.event.order_id,
                revision=link.event.revision,
                bought_at=link.event.bought_at,
                fetch=link.event.event_id > cursor.covered_event_id
                and (not self._tracked or link.event.event_type in self._tracked),
                wanted_after=wanted_after(
                    link.event.event_id, received_at=page.received_at, clock_ahead=page.clock_ahead
                ),
                run_id=run_id,
                run_last_event_id=run_last,
                run_requests=run_requests,
                event=link.event.raw,
            )
            for link in page.links
        ]


def _lines(answer: JournalPage) -> int:
    return len(answer.events) + len(answer.unreadable)
