"""Several events of one order are one look: what a lane's records ask for, and how it is got. Pure."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from uuid import UUID

from services.enricher.hunt import Quarry
from services.enricher.recent import RecentLooks
from shared.messages import OrderEvent, OrderFetch, WantedBy

# A backlog older than this is fetched by list pages (promise P6).
_BACKLOG_AGE = timedelta(minutes=1)


@dataclass(frozen=True)
class Wanted:
    """One order to look at, for all the records that name it."""

    order_id: str
    wanted_after: datetime
    bought_at: datetime | None
    attempts: int
    wanted_by: frozenset[WantedBy] = frozenset()
    only_for: UUID | None = None
    """The run that alone wants the look, as far as its records tell: it is not needed when that run was stopped."""


def merge(records: Iterable[OrderEvent | OrderFetch], recent: RecentLooks) -> list[Wanted]:
    """One look an order, in the order in which they were first named.

    What we have looked after is dropped. For a record `order-fetch` only a look counts that was made after the poller
    asked: an earlier one may not have reached the database.
    """
    wanted: dict[str, Wanted] = {}
    for record in records:
        request = _wanted(record, recent)
        if request is not None:
            known = wanted.get(request.order_id)
            wanted[request.order_id] = request if known is None else _both(known, request)
    return list(wanted.values())


def _wanted(record: OrderEvent | OrderFetch, recent: RecentLooks) -> Wanted | None:
    match record:
        case OrderFetch():
            asked_at = record.asked_at
            if asked_at and recent.since((record.token_id, record.order_id), max(record.wanted_after, asked_at)):
                return None
            return Wanted(
                record.order_id, record.wanted_after, record.bought_at, record.attempts, only_for=record.run_id
            )
        case OrderEvent(order_id=str(order_id), fetch=True):
            if recent.since((record.token_id, order_id), record.wanted_after):
                return None
            return Wanted(order_id, record.wanted_after, record.bought_at, 0, frozenset({_run(record)}))
        case _:
            return None


def _both(one: Wanted, other: Wanted) -> Wanted:
    return Wanted(
        one.order_id,
        max(one.wanted_after, other.wanted_after),
        max(filter(None, (one.bought_at, other.bought_at)), default=None),
        max(one.attempts, other.attempts),
        one.wanted_by | other.wanted_by,
        one.only_for if one.only_for == other.only_for else None,
    )


def _run(event: OrderEvent) -> WantedBy:
    return WantedBy(run_id=event.run_id, last_event_id=event.run_last_event_id)


@dataclass(frozen=True)
class Plan:
    """Which orders to look for on list pages, and which to fetch one by one at once."""

    hunted: tuple[Quarry, ...]
    single: tuple[str, ...]


def plan(wanted: Sequence[Wanted], *, now: datetime, list_lag: timedelta) -> Plan:
    """Choose: a list page serves only what is older than its lag and than a minute, and whose purchase is dated."""
    newest = now - max(list_lag, _BACKLOG_AGE)
    hunted = [
        Quarry(request.order_id, request.bought_at)
        for request in wanted
        if request.bought_at is not None and request.wanted_after <= newest and request.attempts == 0
    ]
    chosen = {quarry.order_id for quarry in hunted}
    return Plan(tuple(hunted), tuple(request.order_id for request in wanted if request.order_id not in chosen))
