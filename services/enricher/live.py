"""Live events: the records of one token become looks at its orders."""

import asyncio
import logging
import random
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from itertools import chain, repeat
from typing import Literal

from aiokafka import ConsumerRecord

from services.enricher.hunt import Hunt, Quarry, Range
from services.enricher.merge import Wanted, merge, plan
from services.enricher.pages import PagePlaces
from services.enricher.publish import Publisher
from services.enricher.recent import RecentLooks
from services.enricher.retry import RETRY_WITHOUT_ACCESS, retry_delay
from services.enricher.stopped import StoppedOf, StopWatch
from shared.allegro.bodies import ListedOrder, OrderPage
from shared.allegro.client import AllegroClient
from shared.allegro.errors import (
    AccessDeniedError,
    AllegroOutageError,
    OrderNotFoundError,
    RateLimitedError,
    ReauthorizationRequiredError,
)
from shared.allegro.tally import Tally
from shared.clock import Clock
from shared.errors import PermanentError, TransientError
from shared.logs import correlated
from shared.messages import (
    OrderEvent,
    OrderFetch,
    OrderFetchFailed,
    OrderMissing,
    OrderObserved,
    Record,
    UnreadableRecordError,
    correlation_id_of,
    decode,
    token_of,
    traceparent_of,
)
from shared.together import together
from shared.tracing import is_on, span

logger = logging.getLogger(__name__)

_Look = OrderObserved | OrderMissing | OrderFetchFailed


class LiveHandler:
    """Looks at the orders that events name; `detail_concurrency` single fetches of one token at a time."""

    def __init__(
        self,
        allegro: AllegroClient,
        publisher: Publisher,
        clock: Clock,
        recent: RecentLooks,
        stopped_of: StoppedOf,
        *,
        list_lag: timedelta,
        detail_concurrency: int,
        pages: PagePlaces | None = None,
    ) -> None:
        self._allegro = allegro
        self._publisher = publisher
        self._clock = clock
        self._recent = recent
        self._stopped_of = stopped_of
        self._list_lag = list_lag
        self._detail_concurrency = detail_concurrency
        self._pages = pages or PagePlaces()

    async def handle(self, raw_records: Sequence[ConsumerRecord]) -> None:
        """Work off records of one token; what cannot be read is set aside, what fails stays owed."""
        first, *others = raw_records
        with (
            correlated(correlation_id_of(first.headers), token=token_of(first.key)),
            span(
                f"process {first.topic}",
                {"messaging.system": "kafka", "messaging.batch.message_count": len(raw_records)},
                kind="consumer",
                parent=traceparent_of(first.headers),
                links=_traceparents(others),
            ),
        ):
            wanted, origins = await self._wanted(raw_records)
            if wanted:
                token_id = int(first.key)  # that of all records of a lane
                await self._look(token_id, wanted, origins)
                logger.info("looked at orders", extra={"token_id": token_id, "orders": len(wanted)})

    async def _wanted(
        self, raw_records: Iterable[ConsumerRecord]
    ) -> tuple[Sequence[Wanted], Mapping[str, list[ConsumerRecord]]]:
        """The looks that the records ask for, and the records that name each order; what cannot be read is set aside.

        A look may take minutes: the decoded records, as large as those that came, are not kept that long.
        """
        records = []
        origins: defaultdict[str, list[ConsumerRecord]] = defaultdict(list)
        for raw in raw_records:
            try:
                record = _read(raw)
            except UnreadableRecordError as error:
                await self._publisher.dead_letter(raw, error)
            else:
                records.append(record)
                origins[record.order_id or ""].append(raw)
        return merge(records, self._recent), origins

    async def _look(self, token_id: int, wanted: Sequence[Wanted], origins: Mapping[str, list[ConsumerRecord]]) -> None:
        requests = {request.order_id: request for request in wanted}
        choice = plan(wanted, now=self._clock.now(), list_lag=self._list_lag)
        missed, in_vain = await self._hunt(token_id, choice.hunted, requests)
        spent = dict.fromkeys(missed[:1], in_vain)
        await self._fetch_and_publish(
            token_id, [requests[order_id] for order_id in (*choice.single, *missed)], origins, spent
        )

    async def _fetch_and_publish(
        self,
        token_id: int,
        wanted: Sequence[Wanted],
        origins: Mapping[str, list[ConsumerRecord]],
        spent: Mapping[str, int],
    ) -> None:
        """Single fetches; a result is published as soon as those before it are acknowledged, with what came meanwhile.

        So no fetch waits for Kafka, and no result waits for a slower answer to another fetch. A look that nobody wants
        any more is not made. `spent` are requests that were made in vain before, by order.
        """
        waiting = iter(wanted)
        stops = StopWatch(self._stopped_of, token_id, wanted)
        # What was fetched and cannot be published is fetched again: not much of it, therefore.
        results: asyncio.Queue[_Look | None] = asyncio.Queue(maxsize=2 * self._detail_concurrency)

        async def fetch() -> None:
            for request in waiting:
                order_id = request.order_id
                if await stops.is_stopped(request):
                    await results.put(None)
                    continue
                await results.put(await self._single(token_id, request, origins[order_id], spent.get(order_id, 0)))

        async def publish() -> None:
            published = 0
            while published < len(wanted):
                ready = [await results.get()]
                while not results.empty():
                    ready.append(results.get_nowait())
                await self._publish(look for look in ready if look is not None)
                published += len(ready)

        await together([publish(), *(fetch() for _ in range(min(self._detail_concurrency, len(wanted))))])

    async def _hunt(
        self, token_id: int, quarries: Iterable[Quarry], wanted_by_id: Mapping[str, Wanted]
    ) -> tuple[Sequence[str], int]:
        """Look on list pages; returns the ids that have to be fetched one by one, and the requests made in vain."""
        hunt = Hunt(quarries)
        spent = 0
        while (wanted := hunt.next_range()) is not None:
            spent = await self._look_on_page(token_id, hunt, wanted, wanted_by_id, spent)
        return hunt.missed, spent

    async def _look_on_page(
        self, token_id: int, hunt: Hunt, wanted: Range, wanted_by_id: Mapping[str, Wanted], spent: int
    ) -> int:
        """Publish what a page shows; returns the requests made in vain by now, of which `spent` were made before.

        When it returns, nothing holds the page any more: whoever waits for a place holds none.
        """
        async with self._pages.place() as place:
            with Tally() as tally:
                page = await self._page(token_id, wanted)
            spent += tally.requests
            if page is None:
                hunt.abandon()
                return spent
            await place.page_came()
            found = hunt.take(page)
            observed_at = page.requested_at - self._list_lag
            costs = chain([spent], repeat(0))
            await self._publish(
                _observed(token_id, order, observed_at, "list", wanted_by_id[order.order_id], requests)
                for order, requests in zip(found, costs, strict=False)
            )
            return 0 if found else spent

    async def _page(self, token_id: int, wanted: Range) -> OrderPage | None:
        """A page of the list; None if there is none: pages only save requests.

        Each order is fetched by itself then, and fails, if so, by its own cause.
        """
        try:
            return await self._allegro.list_orders(
                token_id, bought_from=wanted.bought_from, bought_to=wanted.bought_to, traffic="live"
            )
        except RateLimitedError:
            raise  # single fetches would only be more of what is too much
        except (TransientError, PermanentError, ReauthorizationRequiredError):
            return None

    async def _single(self, token_id: int, wanted: Wanted, origins: Sequence[ConsumerRecord], spent: int) -> _Look:
        """One look, which cost what was `spent` before and its own requests; a failure is a result as well, since what
        becomes of it is written by the writer."""
        started_at = self._clock.now()
        with Tally() as tally:
            try:
                fetched = await self._allegro.order(token_id, wanted.order_id, traffic="live")
            except AllegroOutageError:
                raise  # nobody was asked: not an attempt. The records wait, and with them whatever comes behind.
            except OrderNotFoundError as error:
                # An order that we never had leaves no other trace than its event and this.
                logger.warning(
                    "Allegro has no such order",
                    extra={"token_id": token_id, "order_id": wanted.order_id, "error": str(error)},
                )
                return OrderMissing(
                    token_id=token_id,
                    order_id=wanted.order_id,
                    observed_at=error.requested_at or started_at,
                    reason=str(error),
                    requests=spent + tally.requests,
                )
            except AccessDeniedError as error:
                return _failed(token_id, wanted, error, RETRY_WITHOUT_ACCESS, spent + tally.requests)
            except (ReauthorizationRequiredError, TransientError) as error:
                # Without consent nothing is sent out, however due it is; with a new one it must not wait for long.
                delay = retry_delay(wanted.attempts + 1, jitter=random.random())  # noqa: S311 - spreads load
                asked = error.retry_after if isinstance(error, TransientError) else None
                wait = max(delay, asked or delay)
                return _failed(token_id, wanted, error, wait, spent + tally.requests)
            except PermanentError as error:
                for raw in origins:
                    await self._publisher.dead_letter(raw, error, attempts=wanted.attempts + 1)
                return _failed(token_id, wanted, error, None, spent + tally.requests)
        return _observed(token_id, fetched.order, fetched.requested_at, "detail", wanted, spent + tally.requests)

    async def _publish(self, results: Iterable[Record]) -> None:
        published = list(results)
        await self._publisher.results(published)
        for result in published:
            if isinstance(result, OrderObserved):
                self._recent.note((result.token_id, result.order_id), result.observed_at)


def _traceparents(records: Sequence[ConsumerRecord]) -> Sequence[str]:
    """Of the records that are worked off together with the first, if anybody wants to know."""
    return [parent for record in records if (parent := traceparent_of(record.headers))] if is_on() else ()


def _read(raw: ConsumerRecord) -> OrderEvent | OrderFetch:
    """The record on this topic; raises UnreadableRecordError."""
    record = decode(raw.value)
    if not isinstance(record, OrderEvent | OrderFetch):
        raise UnreadableRecordError(f"kind: {record.kind} does not belong on this topic")
    if raw.key != record.key:
        raise UnreadableRecordError("token_id: differs from the record's key")
    if token_of(raw.key) is None:
        raise UnreadableRecordError("token_id: larger than any of ours")
    return record


def _observed(
    token_id: int,
    order: ListedOrder,
    observed_at: datetime,
    by: Literal["detail", "list"],
    wanted: Wanted,
    requests: int,
) -> OrderObserved:
    return OrderObserved(
        token_id=token_id,
        order_id=order.order_id,
        observed_at=observed_at,
        observed_by=by,
        wanted_by=tuple(wanted.wanted_by),
        requests=requests,
        order=order.raw,
    )


def _failed(
    token_id: int, wanted: Wanted, error: Exception, retry_after: timedelta | None, requests: int
) -> OrderFetchFailed:
    return OrderFetchFailed(
        token_id=token_id,
        order_id=wanted.order_id,
        wanted_after=wanted.wanted_after,
        attempts=wanted.attempts + 1,
        retry_after_seconds=None if retry_after is None else retry_after.total_seconds(),
        error=f"{type(error).__name__}: {error}",
        requests=requests,
    )
