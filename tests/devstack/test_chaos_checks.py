"""What the checks of `make chaos` say when something went wrong: a check that never finds anything is none."""

import io
import json
from collections.abc import AsyncIterator
from typing import Any

import asyncpg
import pytest
from rich.console import Console

from devstack.chaos import run, verdict
from devstack.chaos.injector import Injected
from devstack.chaos.plan import Injection, Kind
from devstack.chaos.spoiled import spoiled_records
from devstack.chaos.states import differences
from devstack.chaos.watch import Life, violations, watch_rows
from shared.clock import to_event_id
from shared.database import open_pool
from shared.messages import UnreadableRecordError, decode
from shared.topics import Topics
from tests.builders import A_RUN, AN_ORDER, NOON, a_run, a_token, after

_INTEGRATION = pytest.mark.integration


@pytest.fixture
async def pool(database_url: str) -> AsyncIterator[asyncpg.Pool]:
    opened = await open_pool(database_url, service="test", max_size=2)
    yield opened
    await opened.close()


@pytest.fixture
async def database(pool: asyncpg.Pool) -> AsyncIterator[asyncpg.Connection]:
    async with pool.acquire() as connection:
        await watch_rows(connection)
        yield connection


async def an_order(database: asyncpg.Connection, token: int) -> None:
    await database.execute(
        "INSERT INTO orders (user_token_id, allegro_order_id, status, order_data, observed_at, observed_by, updated_at)"
        " VALUES ($1, $2, 'BOUGHT', '{}', $3, 'detail', $3)",
        token,
        AN_ORDER,
        NOON,
    )


async def an_event(database: asyncpg.Connection, token: int, event_id: int, order_id: str = AN_ORDER) -> None:
    await database.execute(
        "INSERT INTO order_events (user_token_id, event_id, event_type, allegro_order_id, event_data)"
        " VALUES ($1, $2, 'BOUGHT', $3, '{}')",
        token,
        event_id,
        order_id,
    )


@_INTEGRATION
async def test_a_token_that_went_back_or_died_is_noted(pool: asyncpg.Pool, database: asyncpg.Connection) -> None:
    token = await a_token(pool)
    await database.execute("UPDATE user_tokens SET generation = generation + 1")
    assert await violations(database) == []

    await database.execute("UPDATE user_tokens SET generation = generation - 1")
    await database.execute("UPDATE user_tokens SET status = 'refresh_failed'")

    assert [found.split(" ", 1)[1] for found in await violations(database)] == [
        f"token {token} went back to an older pair"
    ]
    assert len((await verdict.wrong_rows(database))["tokens"]) == 1


@_INTEGRATION
async def test_a_counter_that_went_back_and_a_run_that_does_not_end_are_found(
    pool: asyncpg.Pool, database: asyncpg.Connection
) -> None:
    await a_token(pool)
    await a_run(pool)
    await database.execute("UPDATE sync_history SET events_stored = 5")
    assert await violations(database) == []

    await database.execute("UPDATE sync_history SET events_stored = 4")

    assert len(await violations(database)) == 1
    assert any("has not ended" in complaint for complaint in await verdict.stuck(database))


@_INTEGRATION
async def test_an_order_that_is_still_wanted_is_stuck(pool: asyncpg.Pool, database: asyncpg.Connection) -> None:
    token = await a_token(pool)
    assert await verdict.stuck(database) == []

    await database.execute(
        "INSERT INTO pending_fetches (user_token_id, allegro_order_id, wanted_after, next_attempt_at)"
        " VALUES ($1, $2, now(), now())",
        token,
        AN_ORDER,
    )

    assert await verdict.stuck(database) == [f"order {AN_ORDER} is still to be fetched"]


@_INTEGRATION
async def test_an_order_that_went_back_was_written_in_vain_or_deleted_is_noted(
    pool: asyncpg.Pool, database: asyncpg.Connection
) -> None:
    token = await a_token(pool)
    await an_order(database, token)
    await database.execute("UPDATE orders SET observed_at = $1, order_data = '{\"a\": 1}', updated_at = $1", after(1))
    assert await violations(database) == []

    await database.execute("UPDATE orders SET observed_at = $1, order_data = '{}'", NOON)
    await database.execute("UPDATE orders SET updated_at = $1", after(9))
    await database.execute("DELETE FROM orders")

    assert [found.split(" ", 1)[1].split(" from ")[0] for found in await violations(database)] == [
        f"order {AN_ORDER} went back",
        f"order {AN_ORDER} was written without a change",
        f"order {AN_ORDER} was deleted",
    ]


@_INTEGRATION
async def test_what_changed_and_what_was_looked_at_is_noted(pool: asyncpg.Pool, database: asyncpg.Connection) -> None:
    await an_order(database, await a_token(pool))

    await database.execute("UPDATE orders SET observed_at = $1", after(1))
    await database.execute("UPDATE orders SET observed_at = $1, order_data = '{\"a\": 1}'", after(2))
    await database.execute("UPDATE orders SET gone_at = $1", after(3))

    changes = [row["op"] for row in await database.fetch("SELECT op FROM chaos.changes ORDER BY id")]
    looks = [row["observed_at"] for row in await database.fetch("SELECT observed_at FROM chaos.looks ORDER BY 1")]
    assert changes == ["added", "updated", "gone"]
    assert looks == [NOON, after(1), after(2)]


@_INTEGRATION
async def test_an_event_that_was_changed_or_deleted_is_noted(pool: asyncpg.Pool, database: asyncpg.Connection) -> None:
    token = await a_token(pool)
    await an_event(database, token, 7)
    assert await violations(database) == []

    await database.execute("UPDATE order_events SET event_type = 'BOUGHT'")
    await database.execute("DELETE FROM order_events")

    assert [found.split(" ", 1)[1] for found in await violations(database)] == ["event 7: UPDATE", "event 7: DELETE"]


@_INTEGRATION
async def test_a_cursor_that_went_back_is_noted(pool: asyncpg.Pool, database: asyncpg.Connection) -> None:
    token = await a_token(pool, cursor=5)
    await database.execute("UPDATE journal_cursors SET stored_event_id = 6")
    assert await violations(database) == []

    await database.execute("UPDATE journal_cursors SET stored_event_id = 5")

    assert [found.split(" ", 1)[1] for found in await violations(database)] == [
        f"the cursor of token {token} went back from 6 to 5"
    ]


@_INTEGRATION
@pytest.mark.parametrize(
    ("counted", "complaint"),
    [
        ("events_stored = 0", "the runs stored 0 events and the table has 1"),
        ("events_stored = 2", "the runs stored 2 events and the table has 1"),
        ("events_stored = 1, orders_added = 2", "the runs added 2 orders and the table has 1"),
        ("events_stored = 1, orders_updated = 1", "the runs changed 1 orders, which changed 0 times"),
        ("events_stored = 1, orders_processed = 3", f"run {A_RUN} (full) says 3 orders processed and its walk 0"),
    ],
)
async def test_sums_that_do_not_agree_with_the_tables_are_found(
    pool: asyncpg.Pool, database: asyncpg.Connection, counted: str, complaint: str
) -> None:
    token = await a_token(pool)
    await a_run(pool)
    async with database.transaction():
        await an_order(database, token)
        await an_event(database, token, 7)
        await database.execute("UPDATE sync_history SET events_stored = 1, orders_added = 1")
    assert (await verdict.wrong_rows(database))["counters"] == []

    await database.execute(f"UPDATE sync_history SET {counted}")

    assert complaint in (await verdict.wrong_rows(database))["counters"]


@_INTEGRATION
async def test_what_a_transaction_counts_for_a_token_is_what_it_did(
    pool: asyncpg.Pool, database: asyncpg.Connection
) -> None:
    token = await a_token(pool)
    await a_run(pool)
    await an_event(database, token, 7)
    await database.execute("UPDATE sync_history SET events_stored = 1")

    assert sorted((await verdict.wrong_rows(database))["counters"]) == [
        f"a transaction counted 0 orders added, 0 changed and {events} events too many for token {token}"
        for events in (-1, 1)
    ]


@_INTEGRATION
async def test_unpublished_states_are_found(pool: asyncpg.Pool, database: asyncpg.Connection) -> None:
    token = await a_token(pool)
    await database.execute("DELETE FROM order_state_outbox")
    assert (await verdict.wrong_rows(database))["outbox"] == []

    await database.execute("INSERT INTO order_state_outbox (user_token_id, allegro_order_id) VALUES ($1, 'a')", token)

    assert (await verdict.wrong_rows(database))["outbox"] == ["1 states wait to be published"]


@_INTEGRATION
async def test_dead_letters_are_those_of_spoiled_records_and_no_others(database: asyncpg.Connection) -> None:
    assert await verdict.dead_letters(database, []) == []
    assert await verdict.dead_letters(database, [b"spoiled"]) == ["no dead letter of spoiled"]

    for number, value in enumerate((b"spoiled", b"sound", None)):
        await database.execute(
            'INSERT INTO dead_letters (service, topic, partition, "offset", value, digest, error_type, error)'
            " VALUES ('writer', 'orders', 0, $1, $2, '', 'ValueError', $3)",
            number,
            value,
            f"why {number}",
        )

    assert sorted(await verdict.dead_letters(database, [b"spoiled"])) == [
        "dead letter of writer on orders: why 1",
        "dead letter of writer on orders: why 2",
    ]


def test_spoiled_records_differ_from_each_other_and_from_those_before() -> None:
    topics = Topics()
    values = [value for tag in ("one", "two") for _, _, value in spoiled_records(topics, tag)]

    assert len(set(values)) == len(values) == 64
    for value in values:
        with pytest.raises(UnreadableRecordError):
            decode(value)


A_LISTING = {"user_id": "shop-1", "orders_processed": 5, "orders_added": 1, "orders_updated": 2, "status": "completed"}


@pytest.mark.parametrize(
    ("wrong", "complaint"),
    [
        ({"orders_processed": 4}, "the last listing of shop-1 says orders_processed 4 instead of 5"),
        ({"orders_added": 2}, "the last listing of shop-1 says orders_added 2 instead of 1"),
        ({"orders_updated": 0}, "the last listing of shop-1 says orders_updated 0 instead of 2"),
        ({"status": "stalled"}, "the last listing of shop-1 is stalled"),
    ],
)
def test_a_listing_that_counts_wrongly_or_does_not_end_well_is_found(wrong: dict[str, Any], complaint: str) -> None:
    truth = {"looked_at": 0, "added": 1, "updated": 2}
    assert verdict.wrong_listing(A_LISTING, listed=5, **truth) == []
    assert verdict.wrong_listing({**A_LISTING, **wrong}, listed=5, **truth) == [complaint]


@pytest.mark.parametrize(("processed", "is_right"), [(2, False), (3, True), (4, True), (5, True), (6, False)])
def test_a_listing_may_leave_out_what_was_looked_at_for_that(processed: int, is_right: bool) -> None:
    run = {**A_LISTING, "orders_processed": processed}

    assert (verdict.wrong_listing(run, listed=5, looked_at=2, added=1, updated=2) == []) is is_right


def test_what_a_listing_repairs_that_the_journal_had_told_of_was_lost() -> None:
    changes = [{"order_id": "withheld", "op": "added"}, {"order_id": "lost", "op": "updated"}]

    assert verdict.unexpected_changes(changes, {"withheld"}) == [
        "order lost was updated by the last listing, and its events had come"
    ]


@pytest.mark.parametrize(
    ("announced", "last_event_id", "hidden", "expected"),
    [
        (True, "11", False, False),
        (True, "11", True, False),
        (True, "10", False, False),
        (True, "10", True, True),  # the event is one that the load covers, and the load did not show it
        (False, "11", False, True),
        (False, None, False, True),
        (None, None, False, False),
        (None, None, True, True),
    ],
)
def test_only_what_was_kept_from_us_may_be_left_to_a_listing(
    announced: bool | None, last_event_id: str | None, hidden: bool, expected: bool
) -> None:
    line = {"announced": announced, "last_event_id": last_event_id, "hidden": hidden}

    assert verdict.may_differ(line, covered_event_id=10) is expected


def an_order_row(**fields: Any) -> dict[str, Any]:
    return {"allegro_order_id": "a", "data": '{"x": 1}', "raw": None, "gone": False, "successor": None, **fields}


def a_state(**fields: Any) -> dict[str, Any]:
    return {"gone_at": None, "successor_order_id": None, "order": {"x": 1}, **fields}


@pytest.mark.parametrize(
    ("states", "complaint"),
    [
        ({}, "order a has no state on the topic"),
        ({"a": a_state(gone_at="2026-10-10T12:00:00Z")}, "the state of order a does not know whether it is gone"),
        ({"a": a_state(successor_order_id="b")}, "the state of order a names the successor b"),
        ({"a": a_state(order={"x": 2})}, "the state of order a: $.x is 2 instead of 1"),
        ({"a": a_state(), "b": a_state()}, "a state of order b, which is not stored"),
    ],
)
def test_a_state_that_differs_from_the_table_is_found(states: dict[str, Any], complaint: str) -> None:
    assert differences([an_order_row()], {"a": a_state()}) == []
    assert differences([an_order_row()], states) == [complaint]


def test_a_slow_recovery_a_fault_in_vain_and_one_that_never_struck_are_complaints() -> None:
    seconds = verdict.RECOVERY_LIMIT_SECONDS + 1
    slow = Injected(Injection(0.0, Kind.KILL, "writer"), 0.0, recovery_seconds=seconds)
    idle = Injected(Injection(0.0, Kind.TOPICS), 0.0, in_vain="there were no records")
    effective = Injected(Injection(9.0, Kind.TOPICS), 9.0)

    assert verdict.too_slow([slow, idle]) == [
        f"kill -9 of a service: writer: recovered after {seconds:.0f} s, 0 of them undisturbed"
    ]
    slow.recovery_seconds = slow.undisturbed_seconds = verdict.UNDISTURBED_LIMIT_SECONDS
    assert verdict.too_slow([slow]) == []
    slow.undisturbed_seconds += 1
    assert len(verdict.too_slow([slow])) == 1
    assert verdict.in_vain([slow, idle]) == ["topics deleted and created again: there were no records"]
    assert verdict.in_vain([slow, idle, effective]) == []
    assert verdict.not_struck(["merges", "timeout"], {"merges": 1}) == ["timeout never struck"]


def test_too_much_memory_is_a_complaint_and_so_is_growth() -> None:
    steady = Life("writer", [verdict.MOST_MEMORY_MB] * 60)
    large = Life("poller", [verdict.MOST_MEMORY_MB + 1.0] * 60)
    growing = Life("api", [50.0 + second for second in range(90)])

    assert verdict.too_much_memory([steady]) == []
    assert verdict.too_much_memory([steady, large]) == [f"poller had {verdict.MOST_MEMORY_MB + 1:.0f} MB"]
    assert verdict.too_much_memory([growing]) == ["api grew by 47 MB in 90 s"]
    assert verdict.too_much_memory([Life("api", [50.0])]) == [
        "of ['api'] no process lived long enough to tell whether it grows"
    ]


def test_recovery_is_the_last_look_that_what_had_happened_by_the_end_of_the_fault_waited_for() -> None:
    fault = Injected(Injection(0.0, Kind.KILL, "writer"), began=90.0, ended=100.0)
    idle = Injected(Injection(0.0, Kind.KILL, "writer"), began=10.0, ended=20.0)
    found = [
        verdict.Wait(visible=80_000_000, settled=130_000_000),
        verdict.Wait(visible=99_000_000, settled=101_000_000),
        verdict.Wait(visible=101_000_000, settled=190_000_000),
    ]

    verdict.note_recovery([fault, idle], found)

    assert (fault.recovery_seconds, idle.recovery_seconds) == (30.0, 0.0)
    assert fault.undisturbed_seconds == 30.0


def test_while_other_faults_last_recovery_is_disturbed() -> None:
    fault = Injected(Injection(0.0, Kind.KILL, "writer"), began=90.0, ended=100.0)
    others = [
        Injected(Injection(0.0, Kind.KILL, "poller"), began=began, ended=ended)
        for began, ended in ((95.0, 105.0), (104.0, 110.0), (120.0, 190.0))
    ]

    verdict.note_recovery([fault, *others], [verdict.Wait(visible=99_000_000, settled=130_000_000)])

    assert (fault.recovery_seconds, fault.undisturbed_seconds) == (30.0, 10.0)


@_INTEGRATION
async def test_events_are_followed_to_the_commit_of_the_first_look_after_them(
    pool: asyncpg.Pool, database: asyncpg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Of a server that does not keep them, commit times are those of the statement.
    monkeypatch.setattr(verdict, "_LOOKS", verdict._LOOKS.replace("pg_xact_commit_timestamp(xmin)", "now()"))
    token = await a_token(pool)
    await an_order(database, token)
    noon = to_event_id(NOON)
    for seconds in (-1, 1):
        await an_event(database, token, noon + seconds * 1_000_000)
    await an_event(database, token, noon + 2, order_id="never-stored")

    found, unseen = await verdict.waits(database)

    assert [wait.visible for wait in found] == [noon - 1_000_000]
    assert unseen == [f"nobody looked at order {AN_ORDER} after event {noon + 1_000_000}"]


def test_a_search_for_secrets_that_had_nothing_to_look_through_is_a_complaint() -> None:
    assert verdict.nothing_looked_at({"files": 3, "records": 0}) == ["there were no records to look through"]


def test_a_run_that_breaks_off_ends_with_a_line_that_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def breaks(*_: object) -> None:
        raise RuntimeError("the harness itself")

    monkeypatch.setattr(run, "_run_in", breaks)
    said = io.StringIO()

    code = run.run(run.Options(), Console(file=said, width=160))

    last = json.loads(said.getvalue().splitlines()[-1])
    assert code == 2
    assert (last["chaos"], last["error"]) == ("broken", "RuntimeError('the harness itself')")
