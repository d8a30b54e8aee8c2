"""What one batch does to the tables, on a real PostgreSQL: promises P1, P2, P3, P9, P11, P12."""

import itertools
import json
from collections.abc import AsyncIterator, Sequence
from typing import Any

import asyncpg
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from services.writer.batch import advance_cursor, collect
from services.writer.store import RefusedError, Store, Written
from shared.clock import to_event_id
from shared.database import open_pool
from shared.messages import (
    OrderFetchFailed,
    OrderMissing,
    RawJson,
    Record,
    WantedBy,
    WindowFinished,
    WindowPlace,
    WindowProgressed,
)
from shared.service import is_transient
from tests.builders import (
    A_RUN,
    AN_ORDER,
    ANOTHER_RUN,
    NOON,
    a_run,
    a_token,
    after,
    an_event,
    an_observation,
    an_order_body,
    consumed,
)

pytestmark = pytest.mark.integration


@pytest.fixture
async def pool(database_url: str) -> AsyncIterator[asyncpg.Pool]:
    pool = await open_pool(database_url, service="test", max_size=4)
    await a_token(pool)
    yield pool
    await pool.close()


async def store(pool: asyncpg.Pool, *records: Record) -> Written:
    batch = collect([consumed(record) for record in records], dead_letter_topic="dead-letters")
    return await Store(pool).apply(batch)


async def the_order(pool: asyncpg.Pool, order_id: str = AN_ORDER) -> asyncpg.Record:
    return await pool.fetchrow("SELECT * FROM orders WHERE allegro_order_id = $1", order_id)


async def the_run(pool: asyncpg.Pool, run_id: object = A_RUN) -> asyncpg.Record:
    return await pool.fetchrow("SELECT * FROM sync_history WHERE run_id = $1", run_id)


async def everything(pool: asyncpg.Pool) -> dict[str, Any]:
    """All rows that the writer writes, with PostgreSQL's own mark of a row's version."""
    tables = ("orders", "order_events", "pending_fetches", "journal_cursors", "sync_history", "run_windows")
    return {table: await pool.fetch(f"SELECT xmin::text, t.* FROM {table} t ORDER BY 2, 3") for table in tables}


def place(sequence: int, *, attempt: int = 1) -> WindowPlace:
    return WindowPlace(run_id=A_RUN, attempt=attempt, sequence=sequence)


def walk_end(orders: int, *, attempt: int = 1, **fields: Any) -> WindowFinished:
    return WindowFinished(token_id=1, run_id=A_RUN, attempt=attempt, orders=orders, requests=3, **fields)


class TestOrders:
    async def test_an_order_is_stored_json_equal_with_unknown_fields_and_its_facts(self, pool: asyncpg.Pool) -> None:
        written = await store(pool, an_observation(futureField={"a": [1.50, None, "ł"]}))

        order = await the_order(pool)
        assert written == Written(orders_added=1)
        assert json.loads(order["order_data"]) == json.loads(an_order_body(futureField={"a": [1.50, None, "ł"]}))
        assert order["order_raw"] is None
        assert (order["status"], order["fulfillment_status"]) == ("READY_FOR_PROCESSING", "NEW")
        assert (str(order["total_amount"]), order["currency"]) == ("85.97", "PLN")
        assert order["bought_at"] == NOON

    async def test_the_later_look_wins_whatever_the_order_of_arrival(self, pool: asyncpg.Pool) -> None:
        await store(pool, an_observation(after(10), note="new"))
        written = await store(pool, an_observation(after(5), note="old"))

        assert written == Written(orders_unchanged=1)
        assert json.loads((await the_order(pool))["order_data"])["note"] == "new"

    async def test_the_same_order_twice_in_a_batch_keeps_the_later_look(self, pool: asyncpg.Pool) -> None:
        await store(pool, an_observation(after(10), note="new"), an_observation(after(5), note="old"))

        assert json.loads((await the_order(pool))["order_data"])["note"] == "new"

    async def test_equal_content_on_a_list_page_writes_nothing(self, pool: asyncpg.Pool) -> None:
        await store(pool, an_observation(after(0)))
        before = await everything(pool)

        await store(pool, an_observation(after(60), by="list"))

        assert await everything(pool) == before

    async def test_an_exact_look_at_equal_content_keeps_out_an_older_look_that_comes_late(
        self, pool: asyncpg.Pool
    ) -> None:
        await store(pool, an_observation(after(10), note="a"))
        await store(pool, an_observation(after(20), note="a"))

        await store(pool, an_observation(after(15), note="b", by="list"))

        assert json.loads((await the_order(pool))["order_data"])["note"] == "a"

    async def test_a_missing_order_keeps_its_copy_and_may_come_back(self, pool: asyncpg.Pool) -> None:
        await store(pool, an_observation(after(0)))

        await store(pool, OrderMissing(token_id=1, order_id=AN_ORDER, observed_at=after(10), reason="404"))
        gone = await the_order(pool)
        await store(pool, an_observation(after(5)))
        still_gone = await the_order(pool)
        await store(pool, an_observation(after(20)))
        back = await the_order(pool)

        assert (gone["gone_at"], gone["gone_reason"]) == (after(10), "404")
        assert gone["order_data"] == back["order_data"]
        assert still_gone["gone_at"] == after(10)
        assert back["gone_at"] is None

    async def test_a_second_look_at_a_missing_order_keeps_out_an_older_list_that_comes_late(
        self, pool: asyncpg.Pool
    ) -> None:
        await store(pool, an_observation(after(0)))
        for seconds in (10, 20):
            await store(pool, OrderMissing(token_id=1, order_id=AN_ORDER, observed_at=after(seconds), reason="404"))

        await store(pool, an_observation(after(15), note="b", by="list"))

        gone = await the_order(pool)
        assert (gone["gone_at"], gone["observed_at"]) == (after(10), after(20))

    async def test_an_order_that_was_missing_before_it_came_is_gone_unless_it_came_back(
        self, pool: asyncpg.Pool
    ) -> None:
        """Its event was looked at after a merge, and then comes what a list had shown before the merge."""
        for seconds in (10, 20):
            await store(pool, OrderMissing(token_id=1, order_id=AN_ORDER, observed_at=after(seconds), reason="404"))
        none_yet = await pool.fetchval("SELECT count(*) FROM orders")

        await store(pool, an_observation(after(15), by="list"))
        gone = await the_order(pool)
        await store(pool, an_observation(after(30)))
        back = await the_order(pool)

        assert none_yet == 0
        assert (gone["gone_at"], gone["gone_reason"], gone["observed_at"]) == (after(20), "404", after(20))
        assert back["gone_at"] is None
        assert await pool.fetchval("SELECT count(*) FROM missing_orders") == 0

    @pytest.mark.parametrize("seen_first", [False, True])
    async def test_the_latest_of_all_looks_counts_in_whatever_order_and_batches_they_come(
        self, pool: asyncpg.Pool, seen_first: bool
    ) -> None:
        """P3, for every order of four looks, each split of them into two batches, and either kind of the latest."""
        kinds = [seen_first, not seen_first] * 2
        cases = list(itertools.product(itertools.permutations(range(4)), range(4)))
        for number, (order, split) in enumerate(cases):
            looks = [
                an_observation(after(10 * at), order_id=f"o-{number}", note=str(at))
                if kinds[at]
                else OrderMissing(token_id=1, order_id=f"o-{number}", observed_at=after(10 * at), reason=str(at))
                for at in order
            ]
            for batch in filter(None, (looks[:split], looks[split:])):
                await store(pool, *batch)

        rows = await pool.fetch("SELECT order_data ->> 'note' AS note, gone_at FROM orders")
        assert len(rows) == len(cases)
        seen = max(at for at in range(4) if kinds[at])
        assert {row["note"] for row in rows} <= {str(at) for at in range(4) if kinds[at]}
        assert {row["gone_at"] is None for row in rows} == {seen == 3}
        if seen == 3:
            assert {row["note"] for row in rows} == {"3"}


class TestEvents:
    async def test_events_are_stored_once_and_the_cursor_follows(self, pool: asyncpg.Pool) -> None:
        await store(pool, an_event(100), an_event(200, follows=100))
        written = await store(pool, an_event(100), an_event(200, follows=100), an_event(300, follows=200))

        assert written.events == 1
        assert await pool.fetchval("SELECT count(*) FROM order_events") == 3
        assert await pool.fetchval("SELECT stored_event_id FROM journal_cursors") == 300

    async def test_the_cursor_does_not_cross_a_lost_event(self, pool: asyncpg.Pool) -> None:
        await store(pool, an_event(100), an_event(300, follows=200))
        at_the_gap = await pool.fetchval("SELECT stored_event_id FROM journal_cursors")
        await store(pool, an_event(200, follows=100), an_event(300, follows=200))

        assert at_the_gap == 100
        assert await pool.fetchval("SELECT stored_event_id FROM journal_cursors") == 300

    async def test_an_event_is_owed_a_look_until_one_made_after_it_is_stored(self, pool: asyncpg.Pool) -> None:
        await store(pool, an_event(100, wanted_after=after(10)))
        await store(pool, an_observation(after(9)))
        owed = await pool.fetchval("SELECT count(*) FROM pending_fetches")
        await store(pool, an_observation(after(10)))

        assert owed == 1
        assert await pool.fetchval("SELECT count(*) FROM pending_fetches") == 0

    async def test_an_event_that_a_stored_look_covers_is_owed_nothing(self, pool: asyncpg.Pool) -> None:
        await store(pool, an_observation(after(20)))
        await store(pool, an_event(100, wanted_after=after(10)))

        assert await pool.fetchval("SELECT count(*) FROM pending_fetches") == 0

    async def test_several_events_of_an_order_owe_one_look_after_the_last(self, pool: asyncpg.Pool) -> None:
        await store(pool, an_event(100, wanted_after=after(1)), an_event(200, follows=100, wanted_after=after(2)))

        rows = await pool.fetch("SELECT wanted_after FROM pending_fetches")
        assert [row["wanted_after"] for row in rows] == [after(2)]

    async def test_a_failed_look_is_postponed_and_a_repeated_failure_record_changes_nothing(
        self, pool: asyncpg.Pool
    ) -> None:
        failure = OrderFetchFailed(
            token_id=1, order_id=AN_ORDER, wanted_after=NOON, attempts=1, retry_after_seconds=30, error="503"
        )
        await store(pool, an_event(100))
        await store(pool, failure)
        before = await everything(pool)
        await store(pool, failure)

        row = await pool.fetchrow("SELECT attempts, last_error FROM pending_fetches")
        assert tuple(row) == (1, "503")
        assert await everything(pool) == before

    async def test_a_new_event_of_an_order_that_could_not_be_looked_at_is_owed_a_first_attempt(
        self, pool: asyncpg.Pool
    ) -> None:
        await store(pool, an_event())
        await pool.execute("UPDATE pending_fetches SET attempts = 4, next_attempt_at = now() + interval '6 hours'")

        await store(pool, an_event(to_event_id(NOON) + 1, follows=to_event_id(NOON)))

        owed = await pool.fetchrow(
            "SELECT attempts, next_attempt_at < now() + interval '3 minutes' FROM pending_fetches"
        )
        assert tuple(owed) == (0, True)


class TestRuns:
    async def test_a_journal_run_ends_when_its_orders_are_stored(self, pool: asyncpg.Pool) -> None:
        await store(pool, an_event(100, last=200), an_event(200, follows=100, order_id="b", last=200))
        begun = await the_run(pool)
        await store(pool, an_observation(after(1)))
        half = await the_run(pool)
        await store(pool, an_observation(after(1), order_id="b"))
        ended = await the_run(pool)

        assert (begun["status"], begun["events_stored"]) == ("running", 2)
        assert (half["status"], half["orders_processed"]) == ("running", 1)
        assert (ended["status"], ended["orders_processed"], ended["orders_added"]) == ("completed", 2, 2)

    async def test_a_run_tells_what_it_cost_whatever_comes_again(self, pool: asyncpg.Pool) -> None:
        failure = OrderFetchFailed(
            token_id=1, order_id="b", wanted_after=NOON, attempts=1, retry_after_seconds=30, error="503", requests=3
        )
        read = {"run_requests": 2}
        for _ in range(2):
            await store(
                pool,
                replace(an_event(100, last=200), **read),
                replace(an_event(200, follows=100, order_id="b", last=200), **read),
            )
            await store(pool, failure)
            await store(pool, replace(an_observation(after(1)), requests=1))
        after_the_first = await the_run(pool)
        missing = OrderMissing(token_id=1, order_id="b", observed_at=after(1), reason="404", requests=1)
        await store(pool, missing, missing)

        ended = await the_run(pool)
        assert (after_the_first["status"], after_the_first["requests"]) == ("running", 2 + 3 + 1)
        assert (ended["status"], ended["requests"]) == ("completed", 2 + 3 + 1 + 1)

    async def test_what_two_runs_share_is_paid_by_one_of_them(self, pool: asyncpg.Pool) -> None:
        await store(pool, an_event(100, run_id=A_RUN), an_event(200, follows=100, run_id=ANOTHER_RUN))
        await store(pool, replace(an_observation(after(1)), requests=1))

        runs = await pool.fetch("SELECT orders_processed, requests FROM sync_history ORDER BY requests")
        assert [tuple(run) for run in runs] == [(1, 0), (1, 1)]

    async def test_a_walk_ends_with_exact_counts_only_when_every_number_is_stored(self, pool: asyncpg.Pool) -> None:
        await a_run(pool)
        await store(pool, an_observation(order_id="a", place=place(0), by="list"), walk_end(3))
        await store(pool, an_observation(order_id="c", place=place(2), by="list"), walk_end(3))
        with_a_gap = await the_run(pool)
        await store(
            pool,
            an_observation(order_id="b", place=place(1), by="list"),
            an_observation(order_id="c", place=place(2), by="list"),
            walk_end(3, orders_expected=3),
        )
        ended = await the_run(pool)

        assert (with_a_gap["status"], with_a_gap["orders_processed"]) == ("running", 1)
        assert (ended["status"], ended["orders_processed"], ended["orders_added"]) == ("completed", 3, 3)
        assert (ended["requests"], ended["orders_expected"]) == (3, 3)
        assert await pool.fetchval("SELECT status FROM task_history") == "completed"

    async def test_orders_of_an_overtaken_attempt_are_stored_but_not_counted(self, pool: asyncpg.Pool) -> None:
        await a_run(pool, attempt=2)
        await store(pool, an_observation(place=place(0, attempt=1), by="list"), walk_end(1, attempt=1))

        run = await the_run(pool)
        assert (run["status"], run["orders_processed"]) == ("running", 0)
        assert await the_order(pool) is not None

    async def test_a_resumed_walk_knows_its_position_and_what_it_counted_there(self, pool: asyncpg.Pool) -> None:
        await a_run(pool)
        await store(
            pool,
            an_observation(order_id="a", place=place(0), by="list", bought_at=after(1)),
            an_observation(order_id="b", place=place(1), by="list", bought_at=after(2)),
            an_observation(order_id="c", place=place(2), by="list", bought_at=after(2)),
        )

        row = await pool.fetchrow("SELECT next_sequence, position, boundary_order_ids FROM run_windows")
        assert tuple(row) == (3, after(2), ["b", "c"])

    async def test_a_stopped_walk_leaves_a_truthful_run(self, pool: asyncpg.Pool) -> None:
        await a_run(pool)
        await store(pool, an_observation(place=place(0), by="list"), walk_end(1, outcome="stopped"))

        run = await the_run(pool)
        assert (run["status"], run["orders_processed"]) == ("stopped", 1)
        assert run["completed_at"] is not None

    async def test_a_change_that_comes_after_the_end_of_its_run_is_a_run_of_its_own(self, pool: asyncpg.Pool) -> None:
        await a_run(pool)
        await store(pool, walk_end(0, outcome="failed", error="Allegro had no answer"))
        ended = await the_run(pool)
        late = [an_observation(place=place(0)), an_observation(after(60), order_id="other", place=place(1))]

        await store(pool, *late)
        await store(pool, *late)
        await store(pool, an_observation(after(120), body=an_order_body(status="CANCELLED")))

        assert await the_run(pool) == ended
        others = await pool.fetch(
            "SELECT kind, status, orders_processed, orders_added, orders_updated FROM sync_history"
            " WHERE run_id <> $1 ORDER BY started_at",
            A_RUN,
        )
        assert [tuple(run) for run in others] == [("journal", "completed", 2, 2, 0), ("journal", "completed", 1, 0, 1)]

    async def test_events_of_a_stopped_reading_are_counted_for_it(self, pool: asyncpg.Pool) -> None:
        await a_run(pool, kind="journal", attempt=None)
        await pool.execute("UPDATE sync_history SET status = 'stopped', completed_at = now()")

        await store(pool, an_event())

        run = await the_run(pool)
        assert (run["status"], run["events_stored"]) == ("stopped", 1)

    async def test_an_orders_run_ends_when_nothing_is_owed_to_it(self, pool: asyncpg.Pool) -> None:
        await a_run(pool, run_id=ANOTHER_RUN, kind="orders", attempt=None)
        await pool.execute(
            "INSERT INTO pending_fetches (user_token_id, allegro_order_id, wanted_after, run_ids, next_attempt_at)"
            " VALUES (1, $1, $2, $3, now())",
            AN_ORDER,
            NOON,
            [ANOTHER_RUN],
        )
        await store(pool, OrderMissing(token_id=1, order_id=AN_ORDER, observed_at=after(1), reason="404"))

        run = await the_run(pool, ANOTHER_RUN)
        assert (run["status"], run["orders_processed"]) == ("completed", 1)


async def test_a_redelivered_batch_changes_no_row_and_no_counter(pool: asyncpg.Pool) -> None:
    await a_run(pool, run_id=A_RUN)
    records: list[Record] = [
        an_event(100, run_id=ANOTHER_RUN, last=200),
        an_event(200, follows=100, order_id="b", run_id=ANOTHER_RUN, last=200),
        an_observation(after(1)),
        an_observation(after(2), order_id="b"),
        an_observation(after(3), order_id="c", by="list", place=place(0)),
        WindowProgressed(token_id=1, run_id=A_RUN, attempt=1, page=1, requests=1, orders_expected=1),
        OrderMissing(token_id=1, order_id="b", observed_at=after(9), reason="404"),
        walk_end(1),
    ]
    await store(pool, *records)
    before = await everything(pool)

    await store(pool, *records)
    for record in records:
        await store(pool, record)

    assert await everything(pool) == before


async def test_a_nul_in_a_string_is_refused_as_such(pool: asyncpg.Pool) -> None:
    with pytest.raises(RefusedError):
        await store(
            pool, an_observation(body=RawJson(b'{"id":"' + AN_ORDER.encode() + b'","status":"X","n":"\\u0000"}'))
        )


@given(
    ids=st.sets(st.integers(1, 10_000), min_size=1, max_size=30),
    lost=st.sets(st.integers(0, 29)),
    shuffle=st.randoms(use_true_random=False),
)
def test_the_cursor_stops_before_the_first_lost_event(ids: set[int], lost: set[int], shuffle: Any) -> None:
    chain = sorted(ids)
    links = [an_event(event_id, follows=before) for before, event_id in zip([0, *chain], chain, strict=False)]
    kept = [link for number, link in enumerate(links) if number not in lost]
    shuffle.shuffle(kept)

    reached = advance_cursor(0, kept)

    first_lost = next((number for number in range(len(chain)) if number in lost), len(chain))
    assert reached == (chain[first_lost - 1] if first_lost else 0)


class TestNumberOfOrders:
    async def test_it_is_that_of_the_rows_whatever_comes_again(self, pool: asyncpg.Pool) -> None:
        batch = [an_observation(order_id=f"o-{number}") for number in range(5)]
        await store(pool, *batch)
        await store(pool, *batch, an_observation(after(5), order_id="o-1", status="CANCELLED"))
        await store(pool, an_event(), an_observation(order_id="o-6"))

        assert await pool.fetchval("SELECT orders_stored FROM journal_cursors") == 6
        assert await pool.fetchval("SELECT count(*) FROM orders") == 6


async def a_server_that_answers(pool: asyncpg.Pool, sqlstate: str) -> None:
    """Every order is answered with an error of PostgreSQL's own."""
    await pool.execute(
        f"CREATE FUNCTION fail() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION 'no'"
        f" USING ERRCODE = '{sqlstate}'; END $$;"
        "CREATE TRIGGER fails BEFORE INSERT ON orders FOR EACH ROW EXECUTE FUNCTION fail()"
    )


@pytest.mark.parametrize("sqlstate", ["22021", "22P05", "23503", "23514", "54000"])
async def test_what_postgresql_says_of_the_data_is_a_refusal(pool: asyncpg.Pool, sqlstate: str) -> None:
    await a_server_that_answers(pool, sqlstate)

    with pytest.raises(RefusedError):
        await store(pool, an_observation())


@pytest.mark.parametrize(
    ("sqlstate", "is_worth_waiting_for"),
    [
        ("25006", True),  # read-only: a failover
        ("53100", True),  # disk full
        ("53200", True),  # out of memory
        ("57014", True),
        ("57P01", True),
        ("58030", True),  # input/output error
        ("XX000", True),
        ("XX001", True),  # data corrupted
        ("40001", True),
        ("55P03", True),
        ("42P01", False),  # no such table: a person has to look, and nothing is set aside meanwhile
        ("42501", False),
        ("0A000", False),
    ],
)
async def test_a_server_in_trouble_refuses_no_record(
    pool: asyncpg.Pool, sqlstate: str, is_worth_waiting_for: bool
) -> None:
    await a_server_that_answers(pool, sqlstate)

    with pytest.raises(asyncpg.PostgresError) as raised:
        await store(pool, an_observation())

    assert is_transient(raised.value) is is_worth_waiting_for


class TestALookThatIsStoredBeforeItsEvent:
    """The two come on different topics: whichever is first, the run is told the same (requirement B8)."""

    EVENTS = (an_event(100, last=101, wanted_after=NOON), an_event(101, follows=100, last=101, wanted_after=after(1)))
    LOOK = replace(an_observation(after(5)), wanted_by=(WantedBy(run_id=A_RUN, last_event_id=101),), requests=2)

    @pytest.mark.parametrize("order", list(itertools.permutations(range(3))), ids=str)
    async def test_the_run_counts_it_once_whatever_comes_first(self, pool: asyncpg.Pool, order: Sequence[int]) -> None:
        records: list[Record] = [*self.EVENTS, self.LOOK]

        for _ in range(2):  # the second time: repeated records
            for number in order:
                await store(pool, records[number])
        await store(pool, *records)

        runs = await pool.fetch(
            "SELECT run_id, kind, status, events_stored, orders_processed, orders_added, orders_updated, requests"
            " FROM sync_history"
        )
        assert [tuple(run) for run in runs] == [(A_RUN, "journal", "completed", 2, 1, 1, 0, 2)]

    async def test_a_run_whose_events_are_lost_ends_when_the_cursor_has_passed_them(self, pool: asyncpg.Pool) -> None:
        await store(pool, self.LOOK)
        waiting = (await the_run(pool))["status"]

        again = [replace(event, run_id=ANOTHER_RUN) for event in self.EVENTS]
        await store(pool, *again)

        assert waiting == "running"
        assert (await the_run(pool))["status"] == "completed"
