"""How often a key may call."""

import logging
from datetime import timedelta

import asyncpg
import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.api.gate import Gate
from services.api.keys import KeyStore
from services.api.middleware import HEADERS
from services.api.problems import TooManyRequestsError
from services.api.rates import Rates
from shared.api_keys import AccessScope
from tests.api.two_sellers import a_key

LIST = "/api/v1/tokens/"

pauses = st.lists(st.floats(min_value=0, max_value=200, allow_nan=False), min_size=1, max_size=200)


class TestRates:
    @given(pauses, st.integers(min_value=1, max_value=60))
    def test_never_more_than_a_minutes_worth_and_what_came_back(self, waits: list[float], limit: int) -> None:
        rates, now, allowed = Rates(), 0.0, 0
        for wait in waits:
            now += wait
            allowed += rates.take("key", limit, now).is_allowed

        assert allowed <= limit + now * limit / 60 + 1e-6

    @given(pauses, st.integers(min_value=1, max_value=60))
    def test_whoever_waits_as_told_is_let_through(self, waits: list[float], limit: int) -> None:
        rates, now = Rates(), 0.0
        for wait in waits:
            now += wait
            standing = rates.take("key", limit, now)
            if not standing.is_allowed:
                now += standing.retry_after + 1e-6
                standing = rates.take("key", limit, now)
            assert standing.is_allowed
            assert 0 <= standing.remaining < limit
            assert 0 < standing.whole_in <= 60 + 1e-6

    def test_an_allowance_is_used_at_once_and_comes_back_evenly(self) -> None:
        rates = Rates()

        at_once = [rates.take("key", 3, 0.0).is_allowed for _ in range(4)]
        later = [rates.take("key", 3, 20.0).is_allowed for _ in range(2)]
        other = rates.take("other", 3, 20.0)

        assert at_once == [True, True, True, False]
        assert later == [True, False]
        assert (other.remaining, other.whole_in) == (2, 20.0)
        assert other.headers() == [
            (b"ratelimit-policy", b'"minute";q=3;w=60'),
            (b"ratelimit", b'"minute";r=2;t=20'),
        ]


@pytest.mark.integration
class TestGate:
    async def test_a_key_that_calls_too_often_is_told_when_to_come_back(
        self, api: httpx.AsyncClient, pool: asyncpg.Pool, caplog: pytest.LogCaptureFixture
    ) -> None:
        caplog.set_level(logging.INFO, logger="services.api.middleware")
        slow = await a_key(pool, AccessScope.READ, name="slow", requests_per_minute=1)
        other = await a_key(pool, AccessScope.READ, name="other")

        first = await api.get(LIST, headers=slow)
        second = await api.get("/api/v1/orders/nobody", headers=slow)
        of_the_other = await api.get("/api/v1/orders/nobody", headers=other)

        assert (first.status_code, first.headers["ratelimit-policy"]) == (200, '"minute";q=1;w=60')
        assert first.headers["ratelimit"] == '"minute";r=0;t=60'
        assert (second.status_code, second.json()["type"].rpartition(":")[2]) == (429, "too-many-requests")
        assert 1 <= int(second.headers["retry-after"]) <= 60
        assert second.headers["ratelimit"].startswith('"minute";r=0;t=')
        assert of_the_other.status_code == 404
        assert of_the_other.headers["ratelimit-policy"] == '"minute";q=12000;w=60'
        lines = [(record.caller, record.status) for record in caplog.records if record.message == "request"]  # type: ignore[attr-defined]
        assert lines == [("slow", 200), ("slow", 429), ("other", 404)]

    async def test_the_allowance_comes_back_by_the_clock(self, pool: asyncpg.Pool) -> None:
        key = await a_key(pool, AccessScope.READ, name="slow", requests_per_minute=2)
        now = 0.0
        reached = 0

        async def app(*_: object) -> None:
            nonlocal reached
            reached += 1

        gate = Gate(app, keys=KeyStore(lambda: pool), open_without_keys=False, requests_per_minute=9, clock=lambda: now)

        async def call() -> None:
            header = (b"authorization", key["Authorization"].encode())
            scope = {"type": "http", "path": LIST, "headers": [header], "state": {HEADERS: []}}
            await gate(scope, None, None)  # type: ignore[arg-type]

        await call()
        await call()
        with pytest.raises(TooManyRequestsError) as refused:
            await call()
        now = 30.0
        await call()

        assert refused.value.retry_after == timedelta(seconds=30)
        assert reached == 3

    async def test_where_no_key_is_needed_nothing_is_counted(self, api: httpx.AsyncClient) -> None:
        assert "ratelimit" not in (await api.get(LIST)).headers
