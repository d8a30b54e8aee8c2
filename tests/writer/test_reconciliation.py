"""What a listing brings to light, on a real PostgreSQL: requirements B9 and B11, promises P2 and P12."""

import itertools
from collections.abc import AsyncIterator, Sequence
from datetime import datetime, timedelta
from uuid import UUID

import asyncpg
import pytest
from msgspec.structs import replace

from services.writer.batch import collect
from services.writer.store import Store, Written
from shared.database import open_pool
from shared.messages import (
    CoveredRange,
    OrderFetchFailed,
    OrderMissing,
    OrderObserved,
    Record,
    WindowFinished,
    WindowPlace,
    WindowProgressed,
)
from tests.builders import A_RUN, ANOTHER_RUN, a_run, a_token, after, an_event, an_observation, consumed

pytestmark = pytest.mark.integration


@pytest.fixture
async def pool(database_url: str) -> AsyncIterator[asyncpg.Pool]:
    pool = await open_pool(database_url, service="test", max_size=4)
    await a_token(pool)
    await a_run(pool, kind="reconcile")
    yield pool
    await pool.close()


async def store(pool: asyncpg.Pool, *records: Record) -> Written:
    return await Store(pool).apply(collect([consumed(record) for record in records], dead_letter_topic="dead"))


def listed(
    order_id: str, sequence: int, *, run_id: UUID = A_RUN, observed_at: datetime | None = None, note: str = ""
) -> OrderObserved:
    place = WindowPlace(run_id=run_id, attempt=1, sequence=sequence)
    return an_observation(observed_at or after(100), order_id=order_id, by="list", place=place, note=note)


def page(*order_ids: str, attempt: int = 1, observed_at: datetime | None = None) -> WindowProgressed:
    covered = CoveredRange(
        bought_from=after(-60),
        bought_until=after(60),
        order_ids=order_ids,
        observed_at=observed_at or after(100),
    )
    return WindowProgressed(token_id=1, run_id=A_RUN, attempt=attempt, page=1, requests=1, covered=covered)


def end(orders: int) -> WindowFinished:
    return WindowFinished(token_id=1, run_id=A_RUN, attempt=1, orders=orders, requests=1)


def gone(order_id: str, seconds: float = 200, *, requests: int = 0) -> OrderMissing:
    return OrderMissing(token_id=1, order_id=order_id, observed_at=after(seconds), reason="404", requests=requests)


def a_failure(order_id: str, *, requests: int = 0) -> OrderFetchFailed:
    return OrderFetchFailed(
        token_id=1,
        order_id=order_id,
        wanted_after=after(100),
        attempts=1,
        retry_after_seconds=60,
        error="503",
        requests=requests,
    )


async def owed(pool: asyncpg.Pool) -> list[str]:
    return [row[0] for row in await pool.fetch("SELECT allegro_order_id FROM pending_fetches ORDER BY 1")]


async def findings(pool: asyncpg.Pool) -> list[tuple[str, str, str]]:
    rows = await pool.fetch("SELECT allegro_order_id, finding, cause FROM reconciliation_findings ORDER BY 1")
    return [tuple(row) for row in rows]


async def the_run(pool: asyncpg.Pool) -> asyncpg.Record:
    return await pool.fetchrow("SELECT * FROM sync_history WHERE run_id = $1", A_RUN)


async def test_a_stopped_listing_is_owed_no_looks_but_what_others_want_is(pool: asyncpg.Pool) -> None:
    await store(pool, *(an_observation(order_id=order_id) for order_id in ("a", "b", "c")))
    await store(pool, page("a"), listed("a", 0))
    await store(pool, an_event(order_id="c", run_id=ANOTHER_RUN, wanted_after=after(300)))
    before = await owed(pool)

    await store(pool, WindowFinished(token_id=1, run_id=A_RUN, attempt=1, orders=1, requests=1, outcome="stopped"))

    assert (before, await owed(pool)) == (["b", "c"], ["c"])
    assert (await the_run(pool))["status"] == "stopped"


class TestUnlistedOrders:
    async def test_a_stored_order_that_was_not_listed_is_owed_a_look_and_not_marked(self, pool: asyncpg.Pool) -> None:
        await store(pool, an_observation(order_id="a"), an_observation(order_id="b"))

        await store(pool, page("a"), listed("a", 0))

        assert await owed(pool) == ["b"]
        assert await pool.fetchval("SELECT count(*) FROM orders WHERE gone_at IS NOT NULL") == 0

    async def test_orders_outside_of_the_range_are_left_alone(self, pool: asyncpg.Pool) -> None:
        await store(pool, an_observation(order_id="before", bought_at=after(-61)))
        await store(pool, an_observation(order_id="at the end", bought_at=after(60)))

        await store(pool, page())

        assert await owed(pool) == []

    async def test_an_order_looked_at_after_the_page_is_known_better_than_by_the_list(self, pool: asyncpg.Pool) -> None:
        await store(pool, an_observation(after(100), order_id="new"))

        await store(pool, page(observed_at=after(100)))

        assert await owed(pool) == []

    async def test_an_order_known_to_be_gone_is_not_asked_for_again(self, pool: asyncpg.Pool) -> None:
        await store(pool, an_observation(order_id="a"), gone("a", 10))

        await store(pool, page())

        assert await owed(pool) == []

    async def test_a_page_of_an_overtaken_walk_wants_nothing(self, pool: asyncpg.Pool) -> None:
        await store(pool, an_observation(order_id="a"))
        await pool.execute("UPDATE run_windows SET attempt = 2")

        await store(pool, page())

        assert await owed(pool) == []

    async def test_a_wrongly_empty_list_costs_a_bounded_number_of_looks(self, pool: asyncpg.Pool) -> None:
        """And the run says that it is not complete, however often the page comes."""
        await store(pool, *(an_observation(order_id=f"o-{number}") for number in range(1_003)))

        await store(pool, page())
        await store(pool, page())
        wanted = await owed(pool)
        await store(pool, *(gone(order_id) for order_id in wanted), end(0))

        assert len(wanted) == 1_000
        run = await the_run(pool)
        assert (run["status"], run["error"]) == ("stalled", "3 orders could not be looked at")


class TestTheRun:
    async def test_it_ends_when_the_last_look_is_made(self, pool: asyncpg.Pool) -> None:
        await store(pool, an_observation(order_id="a"), an_observation(order_id="b"))
        await store(pool, page("a"), listed("a", 0), end(1))
        waiting = await the_run(pool)

        await store(pool, gone("b"))

        run = await the_run(pool)
        assert (waiting["status"], waiting["completed_at"]) == ("running", None)
        assert (run["status"], run["orders_processed"], run["requests"]) == ("completed", 1, 1)
        assert await pool.fetchval("SELECT status FROM task_history") == "completed"

    async def test_a_look_that_fails_for_now_holds_it_up_no_longer(self, pool: asyncpg.Pool) -> None:
        await store(pool, an_observation(order_id="a"))
        await store(pool, page(), end(0))

        await store(pool, a_failure("a"))

        run = await the_run(pool)
        assert (run["status"], run["error"]) == ("stalled", "1 orders could not be looked at")
        assert run["completed_at"] is not None
        assert await pool.fetchval("SELECT status FROM task_history") == "stalled"
        assert await owed(pool) == ["a"]

    async def test_a_first_load_says_as_well_that_a_look_failed_and_stands_at_its_end(self, pool: asyncpg.Pool) -> None:
        await pool.execute("UPDATE sync_history SET kind = 'initial'")
        await store(pool, an_observation(order_id="a"))
        await store(pool, page(), end(0))

        await store(pool, a_failure("a"))

        run = await the_run(pool)
        assert (run["status"], run["error"]) == ("stalled", "1 orders could not be looked at")
        assert await pool.fetchval("SELECT position = bought_to FROM run_windows")

    @pytest.mark.parametrize("kind", ["reconcile", "orders"])
    async def test_a_look_that_became_a_dead_letter_is_not_forgotten(self, pool: asyncpg.Pool, kind: str) -> None:
        await store(pool, an_observation(order_id="a"), an_observation(order_id="b"))
        await store(pool, page())
        await pool.execute("UPDATE sync_history SET kind = $1", kind)

        for_good = replace(a_failure("a"), retry_after_seconds=None)
        await store(pool, for_good, gone("b"), end(0))
        await store(pool, for_good)

        run = await the_run(pool)
        assert (run["status"], run["error"]) == ("stalled", "1 orders could not be looked at")
        assert run["orders_unseen"] == 1
        assert tuple(await pool.fetchrow("SELECT status, error FROM task_history")) == (run["status"], run["error"])

    async def test_it_has_spent_what_its_walk_and_its_looks_have(self, pool: asyncpg.Pool) -> None:
        """However often the walk tells its own sum, before the looks and after them."""
        await store(pool, an_observation(order_id="a"), an_observation(order_id="b"))
        await store(pool, page(), page())
        await store(pool, a_failure("a", requests=3))
        await store(pool, gone("b", requests=2))
        meanwhile = (await the_run(pool))["requests"]

        await store(pool, WindowFinished(token_id=1, run_id=A_RUN, attempt=1, orders=0, requests=4))
        await store(pool, gone("a", requests=1))

        assert (meanwhile, (await the_run(pool))["requests"]) == (1 + 3 + 2, 4 + 3 + 2)

    async def test_everything_that_comes_again_changes_nothing(self, pool: asyncpg.Pool) -> None:
        await store(pool, an_observation(order_id="a"), an_observation(order_id="b"))
        records: Sequence[Record] = (page("a", "c"), listed("a", 0, note="new"), listed("c", 1), gone("b"), end(2))
        for record in records:
            await store(pool, record)
        before = [dict(row) for row in await pool.fetch("SELECT * FROM sync_history")], await findings(pool)

        repeated = [await store(pool, record) for record in records]
        together = await store(pool, *records)

        after_it = [dict(row) for row in await pool.fetch("SELECT * FROM sync_history")], await findings(pool)
        assert after_it == before
        assert await owed(pool) == []
        assert not any(written.found_by_listing for written in (*repeated, together))
        run = await the_run(pool)
        assert (run["status"], run["orders_processed"]) == ("completed", 2)
        assert (run["orders_added"], run["orders_updated"]) == (1, 1)


class TestFindings:
    async def test_missing_stale_and_gone_orders_are_noted_and_counted(self, pool: asyncpg.Pool) -> None:
        await store(pool, *(an_observation(order_id=order_id) for order_id in ("gone", "same", "stale")))

        first = await store(
            pool,
            page("same", "stale", "missing"),
            an_observation(
                after(100), order_id="same", by="list", place=WindowPlace(run_id=A_RUN, attempt=1, sequence=0)
            ),
            listed("stale", 1, note="new"),
            listed("missing", 2),
            end(3),
        )
        second = await store(pool, gone("gone"))

        assert await findings(pool) == [
            ("gone", "gone", "unannounced"),
            ("missing", "missing", "unannounced"),
            ("stale", "stale", "unannounced"),
        ]
        assert first.found_by_listing == {"missing": 1, "stale": 1}
        assert second.found_by_listing == {"gone": 1}

    async def test_what_the_journal_had_told_is_not_found_by_the_listing_alone(self, pool: asyncpg.Pool) -> None:
        await store(pool, an_event(order_id="owed", run_id=ANOTHER_RUN, wanted_after=after(90)))

        written = await store(pool, listed("owed", 0))

        assert await findings(pool) == [("owed", "missing", "owed")]
        assert written.found_by_listing == {}

    async def test_what_the_journal_tells_of_a_moment_later_was_not_found_by_the_listing_alone(
        self, pool: asyncpg.Pool
    ) -> None:
        await store(pool, an_observation(order_id="a"), an_observation(order_id="b"))
        found = await store(pool, listed("a", 0, note="x"), listed("b", 1, note="x"), listed("c", 2))
        found_at = await pool.fetchval("SELECT max(found_at) FROM reconciliation_findings")
        on_its_way = an_event(1, order_id="a", run_id=ANOTHER_RUN, wanted_after=found_at)
        newer = an_event(2, order_id="b", run_id=ANOTHER_RUN, wanted_after=found_at + timedelta(seconds=1))

        told = [await store(pool, on_its_way, newer) for _ in range(2)]

        assert await findings(pool) == [
            ("a", "stale", "owed"),
            ("b", "stale", "unannounced"),
            ("c", "missing", "unannounced"),
        ]
        assert found.found_by_listing == {"stale": 2, "missing": 1}
        assert [written.announced_later for written in told] == [{"stale": 1}, {}]

    async def test_an_order_that_is_gone_for_its_age_says_so_and_is_no_loss_of_the_journal(
        self, pool: asyncpg.Pool
    ) -> None:
        day = 24 * 3600.0
        await store(pool, an_observation(order_id="old", bought_at=after(-366 * day)))
        await store(pool, an_observation(order_id="young", bought_at=after(-10)))
        for order_id in ("old", "young"):
            await pool.execute(
                "INSERT INTO pending_fetches (user_token_id, allegro_order_id, wanted_after, run_ids, next_attempt_at)"
                " VALUES (1, $1, $2, ARRAY[$3::uuid], now())",
                order_id,
                after(100),
                A_RUN,
            )

        written = await store(pool, gone("old"), gone("young"))
        again = await store(pool, gone("old", 300))

        reasons = await pool.fetch("SELECT allegro_order_id, gone_reason, gone_at FROM orders ORDER BY 1")
        assert [tuple(row) for row in reasons] == [
            ("old", "aged out: 404", after(200)),
            ("young", "404", after(200)),
        ]
        assert (written.found_by_listing, again.found_by_listing) == ({"gone": 1}, {})

    async def test_the_first_load_of_a_seller_is_no_comparison(self, pool: asyncpg.Pool) -> None:
        await pool.execute("UPDATE sync_history SET kind = 'initial'")

        written = await store(pool, listed("a", 0))

        assert await findings(pool) == []
        assert written.found_by_listing == {}

    async def test_they_go_with_their_run(self, pool: asyncpg.Pool) -> None:
        await store(pool, listed("a", 0))

        await pool.execute("DELETE FROM sync_history")

        assert await findings(pool) == []


def a_form(order_id: str, *items: str, seconds: float = 0) -> OrderObserved:
    lines = [{"id": item, "boughtAt": "2026-10-10T12:00:00.000Z"} for item in items]
    return an_observation(after(seconds), order_id=order_id, lineItems=lines)


class TestMerging:
    @pytest.mark.parametrize(
        "records",
        list(itertools.permutations([a_form("one", "1"), a_form("two", "2"), a_form("both", "1", "2"), gone("one")])),
    )
    async def test_successor_and_predecessors_are_linked_in_any_order_of_arrival(
        self, pool: asyncpg.Pool, records: Sequence[Record]
    ) -> None:
        for record in records:
            await store(pool, record)
        await store(pool, gone("two"), gone("one", 210))

        assert await successors(pool) == {"one": "both", "two": "both", "both": None}

    @pytest.mark.parametrize("order", list(itertools.permutations(["a", "b", "c"])))
    async def test_a_form_that_is_merged_again_leads_to_the_last(
        self, pool: asyncpg.Pool, order: Sequence[str]
    ) -> None:
        forms = {"a": ("1",), "b": ("1", "2"), "c": ("1", "2", "3")}
        for order_id in order:
            await store(pool, a_form(order_id, *forms[order_id]))
            if order_id != "c":
                await store(pool, gone(order_id))

        assert await successors(pool) == {"a": "c", "b": "c", "c": None}

    async def test_the_report_says_merged_also_when_the_successor_comes_later(self, pool: asyncpg.Pool) -> None:
        await store(pool, a_form("one", "1"))
        await store(pool, page(), end(0))
        await store(pool, gone("one"))
        at_first = await findings(pool)

        await store(pool, a_form("both", "1", "2"))

        assert at_first == [("one", "gone", "unannounced")]
        assert await findings(pool) == [("one", "merged", "unannounced")]

    async def test_each_change_of_a_link_is_published(self, pool: asyncpg.Pool) -> None:
        await store(pool, a_form("one", "1"), gone("one"))
        await pool.execute("DELETE FROM order_state_outbox")

        await store(pool, a_form("both", "1", "2"))
        await store(pool, a_form("both", "1", "2"))

        noted = [row[0] for row in await pool.fetch("SELECT allegro_order_id FROM order_state_outbox ORDER BY 1")]
        assert noted == ["both", "one"]

    async def test_orders_of_one_buyer_without_a_common_item_are_not_linked(self, pool: asyncpg.Pool) -> None:
        await store(pool, a_form("one", "1"), a_form("other", "2"), gone("one"))

        assert await successors(pool) == {"one": None, "other": None}

    async def test_orders_of_another_seller_are_not_linked(self, pool: asyncpg.Pool) -> None:
        other = await a_token(pool, user_id="shop-2")
        await store(pool, a_form("one", "1"), gone("one"), replace(a_form("both", "1", "2"), token_id=other))

        assert await successors(pool) == {"one": None, "both": None}

    async def test_an_order_that_was_gone_before_it_came_has_the_successor_that_came_before_it(
        self, pool: asyncpg.Pool
    ) -> None:
        await store(pool, gone("one"))
        await store(pool, a_form("both", "1", "2", seconds=210))

        await store(pool, a_form("one", "1", seconds=190))

        assert await successors(pool) == {"one": "both", "both": None}

    async def test_an_order_that_comes_back_has_no_successor_any_more(self, pool: asyncpg.Pool) -> None:
        await store(pool, a_form("one", "1"), a_form("both", "1", "2"))
        await store(pool, gone("one"))

        await store(pool, a_form("one", "1", seconds=300))

        assert await successors(pool) == {"one": None, "both": None}

    async def test_line_items_of_any_shape_break_nothing(self, pool: asyncpg.Pool) -> None:
        shapes: list[object] = [[], {}, "text", [1], [{"id": 5}], [{"id": None}], None]
        for number, items in enumerate(shapes):
            await store(pool, an_observation(order_id=f"o-{number}", lineItems=items))
            await store(pool, gone(f"o-{number}"))

        assert set((await successors(pool)).values()) == {None}


async def successors(pool: asyncpg.Pool) -> dict[str, str | None]:
    rows = await pool.fetch("SELECT allegro_order_id, successor_order_id FROM orders")
    return {row[0]: row[1] for row in rows}
