"""The vault against a real PostgreSQL and a real HTTP server: one refresh at a time, and no pair lost (A5-A8, P7)."""

import asyncio
import logging
import re
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import timedelta
from functools import partial

import asyncpg
import pytest
from aiohttp import web

from shared.allegro.errors import (
    AllegroUnavailableError,
    InvalidClientError,
    RateLimitedError,
    ReauthorizationRequiredError,
)
from shared.allegro.http import open_http
from shared.database import open_pool
from shared.encryption import Keyring, Secret
from shared.token_vault import (
    _LIMIT_LOCK,
    _LOCKED_SECONDS,
    DifferentSellerError,
    TokenUnreadableError,
    refresh_backoff,
)
from tests.canary import a_secret
from tests.shared.allegro.builders import TWO_KEYS, Way, a_pair, settings
from tests.shared.allegro.fake_allegro import SELLER, FakeAllegro, Gate

pytestmark = pytest.mark.integration


@pytest.fixture
async def other_way(database_url: str, allegro: FakeAllegro) -> AsyncIterator[Way]:
    """The same installation seen from another process, as far as one process can be two."""
    another = await open_pool(database_url, service="other", max_size=10)
    chosen = settings(allegro.url)
    async with open_http(chosen) as http:
        yield await Way(another, http, chosen).synchronise()
    await another.close()


class TestAccessToken:
    async def test_a_valid_token_is_read_anew_at_every_call(self, way: Way, allegro: FakeAllegro) -> None:
        token_id = await way.connected(a_pair("first"))
        first = await way.vault.access_token(token_id)
        await way.connected(a_pair("second"))

        second = await way.vault.access_token(token_id)

        assert (first.secret, second.secret) == (Secret(a_secret("first")), Secret(a_secret("second")))
        assert second.generation == first.generation + 1
        assert allegro.token_requests == 0

    async def test_calls_at_once_share_a_query_and_decrypt_once_and_the_next_one_anew(
        self, way: Way, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        token_id = await way.connected(a_pair("first"))
        opened: list[str] = []

        def open_(keyring: Keyring, envelope: bytes, *, belongs_to: str) -> Secret:
            opened.append(belongs_to)
            return _open(keyring, envelope, belongs_to=belongs_to)

        _open = Keyring.open
        monkeypatch.setattr(Keyring, "open", open_)

        bearers = await asyncio.gather(*(way.vault.access_token(token_id) for _ in range(10)))
        at_once = len(opened)
        await way.vault.access_token(token_id)

        assert {bearer.secret for bearer in bearers} == {Secret(a_secret("first"))}
        assert (at_once, len(opened)) == (1, 2)

    async def test_an_expired_token_is_refreshed_before_it_is_used(self, way: Way, allegro: FakeAllegro) -> None:
        token_id = await way.connected(allegro.pair())
        await way.expire(token_id)

        bearer = await way.vault.access_token(token_id)

        row = await way.row(token_id)
        assert allegro.refreshes == 1
        assert bearer.generation == row["generation"] == 3
        assert row["status"] == "active"
        assert timedelta(hours=11) < row["expires_in"] < timedelta(hours=12)
        assert timedelta(hours=5.9) < row["refresh_in"] < timedelta(hours=9.1)

    async def test_tokens_of_one_moment_are_not_refreshed_at_one_moment(self, way: Way, allegro: FakeAllegro) -> None:
        for number in range(20):
            await way.connected(allegro.pair(), user_id=f"shop-{number}")

        spread = await way.pool.fetchval(
            "SELECT max(expires_at - refresh_after) - min(expires_at - refresh_after) FROM user_tokens"
        )
        assert timedelta(minutes=10) < spread < timedelta(hours=3)

    @pytest.mark.parametrize("status", ["deactivated", "reauthorization_required"])
    async def test_an_inactive_token_is_not_given_out(self, way: Way, allegro: FakeAllegro, status: str) -> None:
        token_id = await way.connected(allegro.pair())
        await way.change(token_id, f"status = '{status}', status_reason = 'told so'")

        with pytest.raises(ReauthorizationRequiredError, match="told so"):
            await way.vault.access_token(token_id)

    async def test_an_unknown_token_is_not_given_out(self, way: Way) -> None:
        with pytest.raises(ReauthorizationRequiredError, match="does not exist"):
            await way.vault.access_token(4711)

    async def test_a_token_of_an_unknown_key_waits_for_the_key(self, way: Way, allegro: FakeAllegro) -> None:
        token_id = await way.connected(allegro.pair())
        async with open_http(way.settings) as http:
            newer = Way(way.pool, http, way.settings, keys=TWO_KEYS)
            await newer.connected(allegro.pair())

        with pytest.raises(TokenUnreadableError, match="no key 'k2'"):
            await way.vault.access_token(token_id)


class TestOneRefreshAtATime:
    async def test_a_hundred_callers_in_two_processes_cause_one_refresh(
        self,
        way: Way,
        other_way: Way,
        allegro: FakeAllegro,
    ) -> None:
        token_id = await way.connected(allegro.pair())
        await way.expire(token_id)

        bearers = await asyncio.gather(
            *(each.vault.access_token(token_id) for each in (way, other_way) for _ in range(50))
        )

        assert allegro.refreshes == 1
        assert {bearer.generation for bearer in bearers} == {3}

    async def test_a_token_refused_once_is_refreshed_once(self, way: Way, other_way: Way, allegro: FakeAllegro) -> None:
        token_id = await way.connected(allegro.pair())
        allegro.revoke_access()

        await asyncio.gather(*(each.client.me(token_id) for each in (way, other_way) for _ in range(10)))

        assert allegro.refreshes == 1

    async def test_what_is_not_due_is_not_refreshed(self, way: Way, allegro: FakeAllegro) -> None:
        token_id = await way.connected(allegro.pair())

        assert await way.vault.refresh(token_id) == 2
        assert allegro.refreshes == 0
        assert await way.vault.due_tokens(10) == []

    async def test_what_is_due_is_found_and_refreshed_and_no_longer_due(self, way: Way, allegro: FakeAllegro) -> None:
        token_id = await way.connected(allegro.pair())
        await way.change(token_id, "refresh_after = clock_timestamp()")
        due = await way.vault.due_tokens(10)

        generation = await way.vault.refresh(token_id)

        assert (due, generation) == ([token_id], 3)
        assert await way.vault.due_tokens(10) == []

    async def test_force_refreshes_what_is_not_due(self, way: Way, allegro: FakeAllegro) -> None:
        token_id = await way.connected(allegro.pair())

        assert await way.vault.refresh(token_id, force=True) == 3
        assert allegro.refreshes == 1

    async def test_the_intention_is_written_down_before_the_call(self, way: Way, allegro: FakeAllegro) -> None:
        token_id = await way.connected(allegro.pair())
        gate = Gate()
        allegro.on_received = gate.hold
        refresh = asyncio.create_task(way.vault.refresh(token_id, force=True))
        await gate.reached.wait()

        row = await way.row(token_id)
        gate.open()
        await refresh

        assert row["refresh_in"] < timedelta(0)

    async def test_orders_can_be_stored_while_a_refresh_waits_for_allegro(self, way: Way, allegro: FakeAllegro) -> None:
        token_id = await way.connected(allegro.pair())
        gate = Gate()
        allegro.on_received = gate.hold
        refresh = asyncio.create_task(way.vault.refresh(token_id, force=True))
        await gate.reached.wait()

        async with asyncio.timeout(30):
            await way.pool.execute(
                "INSERT INTO orders (user_token_id, allegro_order_id, status, order_data, observed_at, observed_by)"
                " VALUES ($1, 'o', 'BOUGHT', $2, now(), 'list')",
                token_id,
                b"{}",
            )
        gate.open()
        await refresh

    async def test_a_slow_seller_delays_no_other(self, way: Way, allegro: FakeAllegro) -> None:
        slow, quick = await way.connected(allegro.pair()), await way.connected(allegro.pair(), user_id="shop-2")
        gate = Gate()
        allegro.on_received = gate.hold
        refresh = asyncio.create_task(way.vault.refresh(slow, force=True))
        await gate.reached.wait()

        async with asyncio.timeout(30):
            await way.vault.access_token(quick)
        gate.open()
        await refresh


class TestLostAnswers:
    async def test_a_lost_answer_is_asked_for_again_with_the_same_token(self, way: Way, allegro: FakeAllegro) -> None:
        token_id = await way.connected(allegro.pair())
        allegro.lose = 1

        await way.vault.refresh(token_id, force=True)

        assert allegro.refreshes == 2
        await way.client.me(token_id)

    async def test_a_5xx_is_tried_again_and_never_final(self, way: Way, allegro: FakeAllegro) -> None:
        token_id = await way.connected(allegro.pair())
        allegro.refuse = lambda _request: web.Response(status=503, text="<html>down</html>")
        before = await way.now()

        with pytest.raises(AllegroUnavailableError) as raised:
            await way.vault.refresh(token_id, force=True)

        row = await way.row(token_id)
        assert allegro.token_requests == 3
        assert raised.value.retry_after is not None
        assert before + timedelta(seconds=2.5) < row["refresh_after"] <= await way.now() + timedelta(seconds=5)
        assert (row["status"], row["refresh_failures"], row["grant_rejected_at"]) == ("refresh_failed", 1, None)

    async def test_a_token_whose_refresh_failed_is_used_for_as_long_as_it_lasts(
        self,
        way: Way,
        allegro: FakeAllegro,
    ) -> None:
        token_id = await way.connected(allegro.pair())
        allegro.refuse = lambda request: web.Response(status=503) if request.method == "POST" else None
        with pytest.raises(AllegroUnavailableError):
            await way.vault.refresh(token_id, force=True)

        await way.client.me(token_id)

    async def test_after_a_failure_the_refresh_rests(self, way: Way, allegro: FakeAllegro) -> None:
        token_id = await way.connected(allegro.pair())
        await way.expire(token_id)
        allegro.refuse = lambda _request: web.Response(status=403, text="<html>captcha</html>")
        with pytest.raises(AllegroUnavailableError):
            await way.vault.access_token(token_id)
        asked = allegro.token_requests

        with pytest.raises(AllegroUnavailableError, match="last refresh failed"):
            await way.vault.access_token(token_id)

        assert allegro.token_requests == asked

    async def test_a_429_blocks_everybody_and_is_not_final(self, way: Way, allegro: FakeAllegro) -> None:
        token_id = await way.connected(allegro.pair())
        allegro.refuse = lambda _request: web.Response(status=429, headers={"Retry-After": "700"})

        with pytest.raises(RateLimitedError):
            await way.vault.refresh(token_id, force=True)

        row = await way.row(token_id)
        assert 600 < way.limits.blocked_seconds <= 700
        assert timedelta(seconds=600) < row["refresh_in"]
        assert row["status"] == "refresh_failed"

    async def test_an_app_that_is_not_accepted_is_not_the_sellers_fault(self, way: Way, allegro: FakeAllegro) -> None:
        token_id = await way.connected(allegro.pair())
        allegro.refuse = lambda _request: web.json_response({"error": "Unauthorized"}, status=401)

        with pytest.raises(InvalidClientError, match="ALLEGRO_CLIENT_ID"):
            await way.vault.refresh(token_id, force=True)

        assert (await way.row(token_id))["grant_rejected_at"] is None

    async def test_an_answer_that_makes_no_sense_is_noted_and_the_refresh_rests(
        self, way: Way, allegro: FakeAllegro
    ) -> None:
        token_id = await way.connected(allegro.pair())
        allegro.refuse = lambda _request: web.json_response({"error": "access_denied"}, status=403)

        with pytest.raises(AllegroUnavailableError, match="not refreshed"):
            await way.vault.refresh(token_id, force=True)

        row = await way.row(token_id)
        assert (row["status"], row["refresh_failures"], row["grant_rejected_at"]) == ("refresh_failed", 1, None)
        assert await way.vault.due_tokens(10) == []

    async def test_a_token_that_no_key_opens_rests_too_and_is_not_always_the_first_that_is_due(
        self, way: Way, allegro: FakeAllegro
    ) -> None:
        token_id = await way.connected(allegro.pair())
        await way.change(token_id, r"refresh_token = '\x0102', refresh_after = clock_timestamp()")

        with pytest.raises(TokenUnreadableError, match="ENCRYPTION_KEYS has no key"):
            await way.vault.refresh(token_id)

        row = await way.row(token_id)
        assert (row["status"], row["refresh_failures"], row["schedule"]) == ("refresh_failed", 1, "active")
        assert "ENCRYPTION_KEYS" in row["status_reason"]
        assert await way.vault.due_tokens(10) == []
        assert allegro.token_requests == 0

    async def test_a_pair_is_kept_whose_lock_was_taken_away(
        self, way: Way, allegro: FakeAllegro, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """As if this host had been out of reach for too long: the lock is somebody else's then."""
        monkeypatch.setattr("shared.token_vault._LIMIT_LOCK", "SET LOCAL idle_in_transaction_session_timeout = '100ms'")
        token_id = await way.connected(allegro.pair())
        allegro.grace_seconds = 0.0

        async def until_the_lock_is_free() -> None:
            async with way.pool.acquire() as connection, connection.transaction():
                await connection.execute("SELECT 1 FROM user_tokens FOR UPDATE")

        allegro.on_exchanged = until_the_lock_is_free

        await way.vault.refresh(token_id, force=True)

        assert allegro.refreshes == 1
        assert (await way.row(token_id))["generation"] == 3
        await way.client.me(token_id)

    def test_the_lock_of_a_host_that_vanished_is_gone_before_the_grace_is(self) -> None:
        limits = dict(re.findall(r"SET LOCAL (\w+) = '(\d+)s'", _LIMIT_LOCK))

        # Whoever waits for it outlasts it, and has time left to ask; an attempt that goes on is not disturbed.
        assert _LOCKED_SECONDS < int(limits["idle_in_transaction_session_timeout"]) <= 50
        assert int(limits["idle_in_transaction_session_timeout"]) < int(limits["lock_timeout"]) < 60

    async def test_a_caller_that_is_cancelled_does_not_stop_the_refresh(self, way: Way, allegro: FakeAllegro) -> None:
        token_id = await way.connected(allegro.pair())
        gate = Gate()
        allegro.on_exchanged = gate.hold
        caller = asyncio.create_task(way.vault.refresh(token_id, force=True))
        await gate.reached.wait()
        caller.cancel()
        await asyncio.wait([caller])

        gate.open()
        await way.vault.close()

        assert (await way.row(token_id))["generation"] == 3
        await way.client.me(token_id)

    async def test_a_pair_that_postgresql_could_not_take_is_stored_when_it_is_back(
        self,
        way: Way,
        allegro: FakeAllegro,
        database_url: str,
    ) -> None:
        token_id = await way.connected(allegro.pair())
        allegro.grace_seconds = 0.0
        allegro.on_exchanged = partial(_cut_connections, database_url)

        await way.vault.refresh(token_id, force=True)

        assert allegro.refreshes == 1
        assert (await way.row(token_id))["generation"] == 3
        await way.client.me(token_id)

    async def test_a_consent_that_came_while_postgresql_was_away_is_not_overwritten(
        self, way: Way, allegro: FakeAllegro, database_url: str
    ) -> None:
        """The row's lock went with the connection."""
        token_id = await way.connected(allegro.pair())

        async def consent_meanwhile() -> None:
            await _cut_connections(database_url)
            pool = await open_pool(database_url, service="another", max_size=2)
            async with open_http(way.settings) as http:
                await Way(pool, http, way.settings).connected(a_pair("of the consent"))
            await pool.close()

        allegro.on_exchanged = consent_meanwhile
        generation = await way.vault.refresh(token_id, force=True)

        bearer = await way.vault.access_token(token_id)
        assert (bearer.secret, bearer.generation) == (Secret(a_secret("of the consent")), generation)

    async def test_a_token_that_was_deactivated_while_postgresql_was_away_stays_so(
        self, way: Way, allegro: FakeAllegro, database_url: str
    ) -> None:
        token_id = await way.connected(allegro.pair())
        forget = "UPDATE user_tokens SET status = 'deactivated', access_token = NULL, refresh_token = NULL"
        allegro.on_exchanged = partial(_cut_connections, database_url, forget)

        with pytest.raises(ReauthorizationRequiredError):
            await way.vault.refresh(token_id, force=True)

        row = await way.row(token_id)
        assert (row["status"], row["access_token"], row["refresh_token"]) == ("deactivated", None, None)


async def _cut_connections(database_url: str, then: str = "SELECT 1") -> None:
    """Everybody's, as if PostgreSQL had been restarted; and what somebody does as soon as it is back."""
    connection = await asyncpg.connect(database_url)
    await connection.execute(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
        " WHERE datname = current_database() AND pid <> pg_backend_pid()"
    )
    await connection.execute(then)
    await connection.close()


class TestRefusals:
    async def test_one_refusal_is_no_verdict(self, way: Way, allegro: FakeAllegro) -> None:
        token_id = await way.connected(a_pair())

        with pytest.raises(AllegroUnavailableError, match="not refreshed"):
            await way.vault.refresh(token_id, force=True)

        row = await way.row(token_id)
        assert allegro.token_requests == 1
        assert (row["status"], row["schedule"], row["refresh_failures"]) == ("refresh_failed", "active", 1)
        assert row["grant_rejected_at"] is not None
        assert row["refresh_in"] <= timedelta(seconds=5)

    async def test_a_refusal_that_passes_leaves_no_trace(self, way: Way, allegro: FakeAllegro) -> None:
        token_id = await way.connected(allegro.pair())
        refusal = web.json_response({"error": "invalid_grant"}, status=400)
        allegro.refuse = lambda _request: refusal if allegro.token_requests == 1 else None
        with pytest.raises(AllegroUnavailableError):
            await way.vault.refresh(token_id, force=True)
        await way.change(token_id, "refresh_after = clock_timestamp()")

        await way.vault.refresh(token_id)

        row = await way.row(token_id)
        assert (row["status"], row["refresh_failures"], row["grant_rejected_at"]) == ("active", 0, None)

    async def test_a_refusal_that_outlasts_the_grace_is_final(self, way: Way) -> None:
        token_id = await way.connected(a_pair())
        with pytest.raises(AllegroUnavailableError):
            await way.vault.refresh(token_id, force=True)
        await way.change(
            token_id,
            "grant_rejected_at = clock_timestamp() - interval '76 seconds', refresh_after = clock_timestamp()",
        )

        with pytest.raises(ReauthorizationRequiredError):
            await way.vault.refresh(token_id)

        row = await way.row(token_id)
        assert (row["status"], row["schedule"]) == ("reauthorization_required", "paused")
        assert "does not accept the refresh token" in row["status_reason"]
        assert row["refresh_after"] is None
        with pytest.raises(ReauthorizationRequiredError):
            await way.vault.access_token(token_id)

    async def test_a_refusal_that_is_repeated_within_the_grace_is_no_verdict(self, way: Way) -> None:
        """Allegro's grace is 60 s from the first use, of which only the answer may have been lost."""
        token_id = await way.connected(a_pair())
        with pytest.raises(AllegroUnavailableError):
            await way.vault.refresh(token_id, force=True)
        await way.change(token_id, "grant_rejected_at = clock_timestamp() - interval '60 seconds'")

        with pytest.raises(AllegroUnavailableError):
            await way.vault.refresh(token_id, force=True)

        row = await way.row(token_id)
        assert (row["status"], row["schedule"], row["refresh_failures"]) == ("refresh_failed", "active", 2)

    async def test_an_outage_between_two_refusals_does_not_make_them_final(
        self,
        way: Way,
        allegro: FakeAllegro,
    ) -> None:
        token_id = await way.connected(a_pair())
        await way.change(token_id, "grant_rejected_at = clock_timestamp() - interval '1 day'")
        allegro.refuse = lambda _request: web.Response(status=500)

        with pytest.raises(AllegroUnavailableError):
            await way.vault.refresh(token_id, force=True)

        assert (await way.row(token_id))["status"] == "refresh_failed"

    async def test_refusals_come_back_often_enough_within_the_grace(self) -> None:
        moments = [sum(refresh_backoff(n).total_seconds() for n in range(count)) for count in range(1, 6)]

        assert moments == [5, 15, 35, 75, 155]

    async def test_a_new_consent_ends_it_and_resumes_the_schedule(self, way: Way, allegro: FakeAllegro) -> None:
        token_id = await way.connected(allegro.pair())
        assert await way.vault.require_consent(token_id, "unlinked", generation=2)

        again = await way.connected(allegro.pair())

        row = await way.row(token_id)
        assert again == token_id
        assert (row["status"], row["status_reason"], row["schedule"]) == ("active", None, "active")
        await way.client.me(token_id)

    async def test_a_schedule_that_a_person_paused_stays_paused(self, way: Way, allegro: FakeAllegro) -> None:
        token_id = await way.connected(allegro.pair())
        await way.pool.execute("UPDATE active_sync_schedules SET status = 'paused'")

        await way.vault.refresh(token_id, force=True)

        assert (await way.row(token_id))["schedule"] == "paused"

    async def test_force_tries_what_was_given_up(self, way: Way, allegro: FakeAllegro) -> None:
        token_id = await way.connected(allegro.pair())
        await way.vault.require_consent(token_id, "unlinked", generation=2)

        await way.vault.refresh(token_id, force=True)

        row = await way.row(token_id)
        assert (row["status"], row["schedule"]) == ("active", "active")

    async def test_a_look_with_the_pair_before_has_no_say_in_what_a_new_pair_resumed(
        self, way: Way, allegro: FakeAllegro
    ) -> None:
        token_id = await way.connected(allegro.pair())
        await way.vault.require_consent(token_id, "unlinked", generation=2)
        fence = await way.pool.fetchval("SELECT fence FROM active_sync_schedules")

        await way.vault.refresh(token_id, force=True)

        assert await way.pool.fetchval("SELECT fence FROM active_sync_schedules") > fence

    async def test_a_deactivated_token_stays_so(self, way: Way, allegro: FakeAllegro) -> None:
        token_id = await way.connected(allegro.pair())
        await way.change(token_id, "status = 'deactivated'")

        with pytest.raises(ReauthorizationRequiredError):
            await way.vault.refresh(token_id, force=True)
        assert allegro.token_requests == 0


class TestConsent:
    async def test_the_latest_consent_wins_over_a_refresh_under_way(self, way: Way, allegro: FakeAllegro) -> None:
        token_id = await way.connected(allegro.pair())
        gate = Gate()
        allegro.on_received = gate.hold
        refresh = asyncio.create_task(way.vault.refresh(token_id, force=True))
        await gate.reached.wait()
        consent = asyncio.create_task(way.connected(a_pair("of the consent")))

        gate.open()
        await asyncio.gather(refresh, consent)

        bearer = await way.vault.access_token(token_id)
        assert bearer.secret == Secret(a_secret("of the consent"))

    async def test_another_sellers_consent_is_refused(self, way: Way) -> None:
        token_id = await way.connected(a_pair(seller_id=SELLER))

        with pytest.raises(DifferentSellerError, match=SELLER):
            await way.connected(a_pair("other", seller_id="222"))

        assert (await way.vault.access_token(token_id)).secret == Secret(a_secret("access-1"))

    async def test_the_seller_is_read_from_the_access_token(self, way: Way, allegro: FakeAllegro) -> None:
        access, refresh = allegro.issue()
        token_id = await way.connected(a_pair(access, refresh))

        assert (await way.row(token_id))["seller_id"] == SELLER

    async def test_the_scopes_are_read_from_the_access_token_where_nobody_tells_them(
        self, way: Way, allegro: FakeAllegro
    ) -> None:
        told = await way.connected(replace(allegro.pair(), scopes=("one", "two")), user_id="shop-1")
        read = await way.connected(allegro.pair(), user_id="shop-2")

        assert (await way.row(told))["scopes"] == ["one", "two"]
        assert (await way.row(read))["scopes"] == ["allegro:api:orders:read"]

    async def test_each_consent_has_the_login_asked_for_and_a_refresh_does_not(
        self, way: Way, allegro: FakeAllegro
    ) -> None:
        token_id = await way.connected(allegro.pair())
        after_consent = (await way.row(token_id))["login_after"]
        await way.change(token_id, "login_after = NULL")

        await way.vault.refresh(token_id, force=True)

        assert after_consent is not None
        assert (await way.row(token_id))["login_after"] is None


class TestUnlinking:
    async def test_a_fresh_token_that_is_refused_means_unlinked(self, way: Way, allegro: FakeAllegro) -> None:
        token_id = await way.connected(allegro.pair())
        allegro.unlinked = True

        with pytest.raises(ReauthorizationRequiredError, match="withdrawn consent") as raised:
            await way.client.me(token_id)

        row = await way.row(token_id)
        assert raised.value.trace_id == "trace-1"
        assert allegro.refreshes == 1
        assert (row["status"], row["schedule"]) == ("reauthorization_required", "paused")
        assert row["last_error"] == f"reauthorization required: {row['status_reason']}"
        assert "Trace-Id trace-1" in row["status_reason"]
        assert "eyJ" not in row["status_reason"]

    async def test_a_pair_that_was_replaced_meanwhile_is_not_given_up(self, way: Way, allegro: FakeAllegro) -> None:
        token_id = await way.connected(allegro.pair())
        await way.vault.refresh(token_id, force=True)

        assert not await way.vault.require_consent(token_id, "late", generation=2)
        assert (await way.row(token_id))["status"] == "active"


async def test_no_secret_is_in_a_row_or_a_log_line(
    way: Way,
    allegro: FakeAllegro,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.DEBUG)
    token_id = await way.connected(allegro.pair())
    allegro.revoke_access()
    await way.client.me(token_id)
    allegro.revoke_all()
    with pytest.raises(AllegroUnavailableError) as raised:
        await way.vault.refresh(token_id, force=True)

    dump = str([tuple(row) for row in await way.pool.fetch("SELECT * FROM user_tokens, active_sync_schedules")])
    told = dump + caplog.text + str(raised.value) + repr(raised.value) + str([r.__dict__ for r in caplog.records])
    assert "eyJhbGci" not in told
