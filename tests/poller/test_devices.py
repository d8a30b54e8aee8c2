"""Waiting for consent: every ending is told honestly, and the one answer with tokens is never thrown away (A2, A3)."""

import asyncio
import hashlib
from datetime import timedelta
from typing import Any
from uuid import UUID, uuid4

import asyncpg
import pytest

from services.poller.devices import DevicePoller
from services.poller.leases import Leases
from services.poller.slots import Slots
from shared.allegro.errors import (
    AllegroUnavailableError,
    AuthorizationEndedError,
    AuthorizationPendingError,
    InvalidClientError,
    NotPermittedError,
    RateLimitedError,
    SlowDownError,
)
from shared.allegro.oauth import TokenPair
from shared.encryption import Keyring, Secret
from shared.token_vault import TokenVault, device_code_binding
from tests.canary import a_secret
from tests.poller.conftest import SETTINGS

pytestmark = pytest.mark.integration

KEYRING = Keyring({"k1": bytes(32)})


def a_pair(*, seller_id: str = "4711", scopes: tuple[str, ...] = ("allegro:api:orders:read",)) -> TokenPair:
    return TokenPair(Secret(a_secret("access")), Secret(a_secret("refresh")), 43_199, scopes, seller_id)


class Allegro:
    """Answers polls as told: errors are raised; `during` runs while the answer is on its way."""

    def __init__(self) -> None:
        self.answer: TokenPair | Exception = AuthorizationPendingError("pending")
        self.polls: list[str] = []
        self.during: Any = None

    async def poll_device_code(self, code: Secret, *, patience_seconds: float) -> TokenPair:
        assert 0 < patience_seconds <= 5
        self.polls.append(code.reveal())
        if self.during is not None:
            await self.during()
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer


class Replica:
    def __init__(self, pool: asyncpg.Pool, allegro: Allegro, owner: str = "one") -> None:
        self.leases = Leases(pool, seconds=60)
        self.leases.owner = owner
        self.slots = Slots("devices", 8)
        vault = TokenVault(pool, KEYRING, allegro, None)  # type: ignore[arg-type]
        self.poller = DevicePoller(
            pool,
            allegro,  # type: ignore[arg-type]
            vault,
            KEYRING,
            self.leases,
            self.slots,
            SETTINGS,
        )

    async def turn(self) -> None:
        await self.poller.turn()
        await self.slots.idle()


@pytest.fixture
def allegro() -> Allegro:
    return Allegro()


@pytest.fixture
def replica(pool: asyncpg.Pool, allegro: Allegro) -> Replica:
    return Replica(pool, allegro)


async def an_authorization(pool: asyncpg.Pool, *, user_id: str = "shop-1", expires_in: int = 3600) -> UUID:
    """A pending authorisation that is due."""
    task_id = uuid4()
    code = Secret(a_secret(f"code-{task_id}"))
    sealed = KEYRING.seal(code, belongs_to=device_code_binding(task_id))
    await pool.execute(
        "INSERT INTO device_authorizations (task_id, user_id, device_code, device_code_digest, key_id, user_code,"
        "  verification_uri, verification_uri_complete, interval_seconds, expires_at, next_poll_at)"
        " VALUES ($1, $2, $3, $4, $5, 'abc', 'u', 'u', 5, now() + $6::interval, now())",
        task_id,
        user_id,
        sealed.envelope,
        hashlib.sha256(code.reveal().encode()).digest(),
        sealed.key_id,
        timedelta(seconds=expires_in),
    )
    return task_id


async def row(pool: asyncpg.Pool, task_id: UUID) -> asyncpg.Record:
    return await pool.fetchrow(
        "SELECT * FROM device_authorizations WHERE task_id = $1",
        task_id,
    )


async def lose_the_lease_of_all(pool: asyncpg.Pool) -> None:
    """Time has passed: leases have run out, and whoever takes them over may ask."""
    await pool.execute(
        "UPDATE device_authorizations SET lease_until = now() - interval '1 second', next_poll_at = now()"
    )


async def test_a_consent_is_committed_with_everything_that_begins_with_it(
    pool: asyncpg.Pool, replica: Replica, allegro: Allegro
) -> None:
    task_id = await an_authorization(pool)
    allegro.answer = a_pair(scopes=("allegro:api:orders:read", "allegro:api:profile:read"))

    await replica.turn()

    ended = await row(pool, task_id)
    token = await pool.fetchrow("SELECT * FROM user_tokens")
    schedule = await pool.fetchrow("SELECT *, next_run <= now() AS is_due FROM active_sync_schedules")
    assert (ended["status"], ended["user_token_id"], ended["device_code"]) == ("SUCCESS", token["id"], None)
    assert (token["user_id"], token["seller_id"], token["login_after"] is not None) == ("shop-1", "4711", True)
    assert (schedule["interval_seconds"], schedule["is_due"]) == (180, True)
    assert await pool.fetchval("SELECT stored_event_id FROM journal_cursors") == 0
    assert await pool.fetchval("SELECT kind || ' ' || status FROM task_history") == "initial queued"


@pytest.mark.parametrize(
    ("error", "due_in", "interval"),
    [
        (AuthorizationPendingError("pending"), 5, 5),
        (SlowDownError("slow_down"), 10, 10),
        (AllegroUnavailableError("403: bot protection"), 5, 5),
        (RateLimitedError("429"), 5, 5),
        (InvalidClientError("invalid_client"), 5, 5),
        (NotPermittedError("no permission within 5 s"), 5, 5),
    ],
)
async def test_what_is_no_decision_is_asked_again_and_never_faster_than_allowed(
    pool: asyncpg.Pool, replica: Replica, allegro: Allegro, error: Exception, due_in: int, interval: int
) -> None:
    task_id = await an_authorization(pool)
    allegro.answer = error
    before = await pool.fetchval("SELECT clock_timestamp()")

    await replica.turn()
    after = await pool.fetchval("SELECT clock_timestamp()")
    await replica.turn()

    waiting = await row(pool, task_id)
    pause = timedelta(seconds=due_in)
    assert (waiting["status"], waiting["interval_seconds"], waiting["lease_owner"]) == ("PENDING", interval, None)
    assert before + pause < waiting["next_poll_at"] < after + pause
    assert len(allegro.polls) == 1


@pytest.mark.parametrize("reason", ["denied", "expired", "code_used", "rejected"])
async def test_an_end_without_tokens_says_why(
    pool: asyncpg.Pool, replica: Replica, allegro: Allegro, reason: str
) -> None:
    task_id = await an_authorization(pool)
    allegro.answer = AuthorizationEndedError(reason, "Start again.")

    await replica.turn()

    ended = await row(pool, task_id)
    assert (ended["status"], ended["reason"], ended["message"]) == ("FAILURE", reason, "Start again.")
    assert ended["device_code"] is None
    assert ended["finished_at"] is not None
    assert await pool.fetchval("SELECT count(*) FROM user_tokens") == 0


async def test_a_code_that_expired_is_asked_for_once_more_and_ends(
    pool: asyncpg.Pool, replica: Replica, allegro: Allegro
) -> None:
    """The poller may have been down when the seller consented."""
    in_time = await an_authorization(pool, user_id="shop-1", expires_in=-5)
    allegro.answer = a_pair()
    await replica.turn()
    too_late = await an_authorization(pool, user_id="shop-2", expires_in=-5)
    allegro.answer = AllegroUnavailableError("503")

    await replica.turn()

    assert (await row(pool, in_time))["status"] == "SUCCESS"
    ended = await row(pool, too_late)
    assert (ended["status"], ended["reason"]) == ("FAILURE", "expired")


async def test_a_code_that_expires_while_nobody_may_ask_is_asked_for_afterwards(
    pool: asyncpg.Pool, replica: Replica, allegro: Allegro
) -> None:
    task_id = await an_authorization(pool, expires_in=-5)
    allegro.answer = NotPermittedError("no permission within 5 s")
    await replica.turn()
    during = (await row(pool, task_id))["status"]
    await lose_the_lease_of_all(pool)
    allegro.answer = a_pair()

    await replica.turn()

    assert (during, (await row(pool, task_id))["status"]) == ("PENDING", "SUCCESS")


async def test_a_code_that_no_key_opens_ends_when_it_expires(
    pool: asyncpg.Pool, replica: Replica, allegro: Allegro
) -> None:
    """A key may be missing in this process by mistake; the other codes do not suffer for it."""
    unreadable = await an_authorization(pool)
    good = await an_authorization(pool, user_id="shop-2")
    await pool.execute(
        "UPDATE device_authorizations SET device_code = '\\x0101' WHERE task_id = $1",
        unreadable,
    )
    allegro.answer = a_pair()
    await replica.turn()
    before = (await row(pool, unreadable))["status"]
    await pool.execute(
        "UPDATE device_authorizations SET expires_at = now(), next_poll_at = now() WHERE task_id = $1", unreadable
    )

    await replica.turn()

    assert before == "PENDING"
    assert (await row(pool, unreadable))["reason"] == "expired"
    assert (await row(pool, good))["status"] == "SUCCESS"


async def test_other_codes_of_the_user_are_superseded(pool: asyncpg.Pool, replica: Replica, allegro: Allegro) -> None:
    first = await an_authorization(pool)
    await pool.execute("UPDATE device_authorizations SET next_poll_at = now() + interval '1 hour'")
    second = await an_authorization(pool)
    stranger = await an_authorization(pool, user_id="shop-2")
    await pool.execute(
        "UPDATE device_authorizations SET next_poll_at = now() + interval '1 hour' WHERE task_id = $1", stranger
    )
    allegro.answer = a_pair()

    await replica.turn()

    assert (await row(pool, second))["status"] == "SUCCESS"
    assert ((await row(pool, first))["status"], (await row(pool, first))["reason"]) == ("FAILURE", "superseded")
    assert (await row(pool, stranger))["status"] == "PENDING"


async def test_two_replicas_never_poll_one_code_at_once(pool: asyncpg.Pool, allegro: Allegro) -> None:
    await an_authorization(pool)

    await asyncio.gather(*(Replica(pool, allegro, f"replica-{number}").turn() for number in range(5)))

    assert len(allegro.polls) == 1


async def test_tokens_that_come_after_the_lease_ran_out_are_kept(
    pool: asyncpg.Pool, replica: Replica, allegro: Allegro
) -> None:
    """Meanwhile another replica was told that the code is used: by us."""
    task_id = await an_authorization(pool)
    other = Allegro()
    other.answer = AuthorizationEndedError("code_used", "Start again.")

    async def lose_the_lease() -> None:
        await lose_the_lease_of_all(pool)
        await Replica(pool, other, "another").turn()

    allegro.during = lose_the_lease
    allegro.answer = a_pair()

    await replica.turn()

    ended = await row(pool, task_id)
    assert other.polls
    assert (ended["status"], ended["reason"]) == ("SUCCESS", None)
    assert await pool.fetchval("SELECT status FROM user_tokens") == "active"


async def test_whoever_takes_over_from_a_poller_that_died_asks_no_faster_than_allowed(
    pool: asyncpg.Pool, replica: Replica, allegro: Allegro
) -> None:
    """A lease may be shorter than the interval, above all after `slow_down`."""
    task_id = await an_authorization(pool)
    await pool.execute("UPDATE device_authorizations SET interval_seconds = 40")
    before = await pool.fetchval("SELECT clock_timestamp()")
    await replica.poller.claim(1)  # it asked and was killed
    after = await pool.fetchval("SELECT clock_timestamp()")
    await pool.execute("UPDATE device_authorizations SET lease_until = now() - interval '1 second'")

    await Replica(pool, allegro, "another").turn()

    assert allegro.polls == []
    # The one that died may have waited for its permission for 5 s before it asked.
    pause = timedelta(seconds=40 + 5)
    assert before + pause < (await row(pool, task_id))["next_poll_at"] < after + pause


async def test_consents_to_several_codes_at_once_leave_one_token_and_nothing_that_waits(
    pool: asyncpg.Pool, allegro: Allegro, caplog: pytest.LogCaptureFixture
) -> None:
    """As when a seller opened the link twice; none waits for rows that another holds while it waits for this one."""
    for _ in range(6):
        await an_authorization(pool)
    allegro.answer = a_pair()
    everybody_asked = asyncio.Barrier(6)
    allegro.during = everybody_asked.wait

    await asyncio.gather(*(Replica(pool, allegro, f"replica-{number}").turn() for number in range(6)))

    ends = await pool.fetch("SELECT status, reason, device_code FROM device_authorizations ORDER BY status DESC")
    assert [tuple(end) for end in ends] == [("SUCCESS", None, None)] + [("FAILURE", "superseded", None)] * 5
    assert await pool.fetchval("SELECT count(*) FROM user_tokens") == 1
    assert "Deadlock" not in caplog.text
    assert not any(record.message == "a consent is not stored yet" for record in caplog.records)


async def test_a_poller_that_dies_with_the_answer_ends_honestly(
    pool: asyncpg.Pool, replica: Replica, allegro: Allegro
) -> None:
    task_id = await an_authorization(pool)
    await replica.poller.claim(1)  # it polled, had the tokens, and was killed
    await lose_the_lease_of_all(pool)
    allegro.answer = AuthorizationEndedError("code_used", "It was used and its answer was lost. Start again.")

    await Replica(pool, allegro, "another").turn()

    ended = await row(pool, task_id)
    assert (ended["status"], ended["reason"]) == ("FAILURE", "code_used")


async def test_a_poller_that_is_asked_to_end_stores_the_tokens_first(
    pool: asyncpg.Pool, replica: Replica, allegro: Allegro
) -> None:
    task_id = await an_authorization(pool)
    allegro.answer = a_pair()
    blocker = await pool.acquire()
    transaction = blocker.transaction()
    await transaction.start()
    await blocker.execute("LOCK TABLE user_tokens IN ACCESS EXCLUSIVE MODE")
    await replica.poller.turn()
    async with asyncio.timeout(60):
        while not await pool.fetchval("SELECT count(*) FROM pg_locks WHERE NOT granted"):
            await pool.fetchval("SELECT pg_sleep(0.01)")

    ending = asyncio.create_task(replica.slots.__aexit__(None, None, None))
    await asyncio.sleep(0)
    await transaction.rollback()
    await pool.release(blocker)
    await ending

    assert (await row(pool, task_id))["status"] == "SUCCESS"


async def test_a_poller_that_is_asked_to_end_waits_for_an_answer_that_is_on_its_way(
    pool: asyncpg.Pool, replica: Replica, allegro: Allegro
) -> None:
    """Allegro has issued the tokens, and will not do so again."""
    task_id = await an_authorization(pool)
    allegro.answer = a_pair()
    asked, answered = asyncio.Event(), asyncio.Event()

    async def on_its_way() -> None:
        asked.set()
        await answered.wait()

    allegro.during = on_its_way
    await replica.poller.turn()
    await asked.wait()

    ending = asyncio.create_task(replica.slots.__aexit__(None, None, None))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    answered.set()
    await ending

    assert (await row(pool, task_id))["status"] == "SUCCESS"


async def test_tokens_wait_for_postgresql(
    pool: asyncpg.Pool, replica: Replica, allegro: Allegro, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("services.poller.devices._KEEP_PAUSE_SECONDS", 0.01)
    task_id = await an_authorization(pool)
    allegro.answer = a_pair()
    store, failures = replica.poller._store, iter([ConnectionResetError(), asyncpg.DeadlockDetectedError("x")])

    async def failing(*arguments: Any) -> Any:
        for error in failures:
            raise error
        return await store(*arguments)

    monkeypatch.setattr(replica.poller, "_store", failing)

    await replica.turn()

    assert (await row(pool, task_id))["status"] == "SUCCESS"


async def test_another_seller_is_not_mixed_with_the_first(
    pool: asyncpg.Pool, replica: Replica, allegro: Allegro
) -> None:
    await an_authorization(pool)
    allegro.answer = a_pair(seller_id="4711")
    await replica.turn()
    second = await an_authorization(pool)
    allegro.answer = a_pair(seller_id="4712")

    await replica.turn()

    ended = await row(pool, second)
    assert (ended["status"], ended["reason"]) == ("FAILURE", "different_seller")
    assert await pool.fetchval("SELECT seller_id FROM user_tokens") == "4711"


async def test_a_second_consent_goes_on_where_the_cursor_stands(
    pool: asyncpg.Pool, replica: Replica, allegro: Allegro
) -> None:
    await an_authorization(pool)
    allegro.answer = a_pair()
    await replica.turn()
    await pool.execute("UPDATE journal_cursors SET stored_event_id = 1234")
    await pool.execute("UPDATE user_tokens SET status = 'reauthorization_required'")
    await pool.execute("UPDATE active_sync_schedules SET status = 'paused'")
    await pool.execute("UPDATE task_history SET status = 'completed'")
    await an_authorization(pool)

    await replica.turn()

    assert await pool.fetchval("SELECT stored_event_id FROM journal_cursors") == 1234
    assert await pool.fetchval("SELECT status FROM user_tokens") == "active"
    assert await pool.fetchval("SELECT status FROM active_sync_schedules") == "active"
    assert await pool.fetchval("SELECT count(*) FROM task_history WHERE status = 'queued'") == 1
