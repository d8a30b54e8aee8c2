"""What a lane's records ask for: one look an order (promise P6)."""

from datetime import datetime, timedelta

from services.enricher.hunt import Quarry
from services.enricher.merge import Plan, Wanted, merge, plan
from services.enricher.recent import RecentLooks
from services.enricher.retry import retry_delay
from shared.messages import OrderEvent, OrderFetch
from tests.builders import A_RUN, ANOTHER_RUN, NOON, after, an_event

LAG = timedelta(seconds=30)


def test_events_of_one_order_become_one_look_after_the_last_of_them() -> None:
    events = [an_event(100 + number, wanted_after=after(number)) for number in range(5)]

    assert [(look.order_id, look.wanted_after) for look in merge(events, RecentLooks())] == [
        (events[0].order_id, after(4))
    ]


def test_a_look_is_counted_for_the_runs_of_all_its_events() -> None:
    events = [an_event(100, run_id=A_RUN, last=100), an_event(101, run_id=ANOTHER_RUN, last=150)]
    again = OrderFetch(token_id=1, order_id=events[0].order_id or "", wanted_after=NOON)

    (look,) = merge([*events, again], RecentLooks())

    assert {(run.run_id, run.last_event_id) for run in look.wanted_by} == {(A_RUN, 100), (ANOTHER_RUN, 150)}


def test_an_order_looked_at_after_the_event_is_not_looked_at_again() -> None:
    recent = RecentLooks()
    recent.note((1, "a"), after(10))

    wanted = merge([an_event(1, order_id="a", wanted_after=after(10)), an_event(2, order_id="b")], recent)
    newer = merge([an_event(3, order_id="a", wanted_after=after(11))], recent)

    assert [look.order_id for look in wanted] == ["b"]
    assert [look.order_id for look in newer] == ["a"]


def test_what_the_poller_sends_again_is_looked_at_unless_it_was_since_the_poller_asked() -> None:
    """The look that we remember may have been lost on its way to the database; a later one answers the question."""
    recent = RecentLooks()
    recent.note((1, "a"), after(10))

    def again(asked_at: datetime | None, wanted_after: datetime = NOON) -> bool:
        record = OrderFetch(token_id=1, order_id="a", wanted_after=wanted_after, asked_at=asked_at)
        return bool(merge([record], recent))

    assert again(None)
    assert again(after(11))
    assert again(after(5), wanted_after=after(11))
    assert not again(after(10))


def test_events_covered_by_the_initial_load_or_without_an_order_ask_for_nothing() -> None:
    assert merge([an_event(1, fetch=False), an_event(2, order_id=None)], RecentLooks()) == []


def test_a_look_is_for_one_run_only_where_all_its_records_say_so() -> None:
    ours, theirs, anybodys = (
        OrderFetch(token_id=1, order_id="a", wanted_after=NOON, run_id=run_id) for run_id in (A_RUN, ANOTHER_RUN, None)
    )
    event = an_event(1, order_id="a", run_id=A_RUN)

    groups: list[list[OrderEvent | OrderFetch]] = [
        [ours, ours],
        [ours, theirs],
        [ours, anybodys],
        [ours, event],
        [event, ours],
    ]
    only_for = [merge(records, RecentLooks())[0].only_for for records in groups]

    assert only_for == [A_RUN, None, None, None, None]


def test_only_what_is_older_than_the_list_lag_and_a_minute_is_hunted() -> None:
    old = Wanted("old", after(0), NOON, 0)
    young = Wanted("young", after(50), NOON, 0)
    undated = Wanted("undated", after(0), None, 0)
    failed = Wanted("failed", after(0), NOON, 1)

    chosen = plan([old, young, undated, failed], now=after(65), list_lag=LAG)
    laggard = plan([old], now=after(65), list_lag=timedelta(seconds=90))

    assert chosen == Plan((Quarry("old", NOON),), ("young", "undated", "failed"))
    assert laggard == Plan((), ("old",))


def test_recent_looks_forget_the_oldest() -> None:
    recent = RecentLooks(capacity=2)
    for number in range(3):
        recent.note((1, str(number)), NOON)

    assert recent.since((1, "0"), NOON) is None
    assert recent.since((1, "2"), NOON) == NOON


def test_retries_double_and_are_capped() -> None:
    assert [retry_delay(attempts, jitter=1.0).total_seconds() for attempts in (1, 2, 3, 50)] == [30, 60, 120, 21600]
    assert retry_delay(1, jitter=0.0).total_seconds() == 15
