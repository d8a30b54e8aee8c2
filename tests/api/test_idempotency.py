"""A POST that is sent again under its idempotency key starts nothing again."""

import asyncio
from collections.abc import AsyncIterator
from datetime import timedelta
from itertools import count

import asyncpg
import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.api import middleware
from services.api.idempotency import Answer
from shared.api_keys import AccessScope
from tests.api.conftest import Allegro
from tests.api.two_sellers import MINE, a_key
from tests.builders import a_token

INITIALIZE = "/api/v1/tokens/auth/initialize"
KEY = {"Idempotency-Key": "6f1f8c0e-6a3b-4f0d-9a55-0d8c1f7a2b44"}


@pytest.fixture(autouse=True)
def codes(allegro: Allegro) -> None:
    """Allegro never gives the same device code twice."""
    numbers, answer = count(), allegro.respond

    def respond(request: httpx.Request) -> httpx.Response:
        given = answer(request).json()
        return httpx.Response(200, json=given | {"device_code": f"{given['device_code']}-{next(numbers)}"})

    allegro.respond = respond


def kind(answer: httpx.Response) -> str:
    return str(answer.json()["type"]).rpartition(":")[2]


@pytest.mark.integration
class TestAgain:
    async def test_the_first_answer_comes_again_and_nothing_is_started(
        self, api: httpx.AsyncClient, pool: asyncpg.Pool, allegro: Allegro
    ) -> None:
        first = await api.post(INITIALIZE, json={"user_id": MINE}, headers=KEY)
        again = await api.post(INITIALIZE, json={"user_id": MINE}, headers=KEY)
        other = await api.post(INITIALIZE, json={"user_id": MINE}, headers={"Idempotency-Key": "another"})
        none = await api.post(INITIALIZE, json={"user_id": MINE})

        assert [answer.status_code for answer in (first, again, other, none)] == [201] * 4
        assert again.content == first.content
        assert again.headers["content-type"] == first.headers["content-type"]
        assert (again.headers["idempotent-replayed"], "idempotent-replayed" in first.headers) == ("true", False)
        assert again.headers["x-request-id"] != first.headers["x-request-id"]
        assert other.json()["task_id"] != first.json()["task_id"]
        assert len(allegro.requests) == 3
        stored = await pool.fetch("SELECT r::text AS row FROM idempotent_requests r")
        code = first.json()["device_code"]
        assert [code in row["row"] or code.encode().hex() in row["row"] for row in stored] == [False, False]

    async def test_another_request_under_the_key_is_refused(
        self, api: httpx.AsyncClient, pool: asyncpg.Pool, allegro: Allegro
    ) -> None:
        await a_token(pool, user_id=MINE)
        await api.post(INITIALIZE, json={"user_id": MINE}, headers=KEY)

        other_body = await api.post(INITIALIZE, json={"user_id": "shop-2"}, headers=KEY)
        other_path = await api.post(f"/api/v1/sync/manual/{MINE}", json={"user_id": MINE}, headers=KEY)

        assert (other_body.status_code, kind(other_body)) == (422, "idempotency-key-reused")
        assert (other_path.status_code, kind(other_path)) == (422, "idempotency-key-reused")
        assert len(allegro.requests) == 1

    async def test_of_many_at_the_same_moment_one_starts_something(
        self, api: httpx.AsyncClient, pool: asyncpg.Pool, allegro: Allegro
    ) -> None:
        async def post() -> httpx.Response:
            return await api.post(INITIALIZE, json={"user_id": MINE}, headers=KEY)

        answers = await asyncio.gather(*(post() for _ in range(8)))

        assert len(allegro.requests) == 1
        assert await pool.fetchval("SELECT count(*) FROM device_authorizations") == 1
        for answer in answers:
            assert (answer.status_code, answer.status_code == 201 or kind(answer)) in (
                (201, True),
                (409, "request-in-progress"),
            )
            assert answer.status_code == 201 or answer.headers["retry-after"] == "1"
        assert len({answer.content for answer in answers if answer.status_code == 201}) == 1

    async def test_what_failed_or_was_refused_may_be_tried_again(
        self, api: httpx.AsyncClient, pool: asyncpg.Pool, allegro: Allegro
    ) -> None:
        answer = allegro.respond
        allegro.respond = lambda _request: httpx.Response(500)
        failed = await api.post(INITIALIZE, json={"user_id": MINE}, headers=KEY)
        allegro.respond = answer
        invalid = await api.post(INITIALIZE, json={"user_id": ""}, headers=KEY)
        mended = await api.post(INITIALIZE, json={"user_id": MINE}, headers=KEY)

        assert [failed.status_code, invalid.status_code, mended.status_code] == [502, 422, 201]

    async def test_a_request_that_its_deadline_ended_may_be_tried_again(
        self, api: httpx.AsyncClient, pool: asyncpg.Pool, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        await pool.execute(
            "CREATE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql AS"
            " $$ BEGIN PERFORM pg_sleep(30); RETURN NEW; END $$;"
            " CREATE TRIGGER slow BEFORE INSERT ON device_authorizations FOR EACH ROW EXECUTE FUNCTION slow()"
        )
        monkeypatch.setattr(middleware, "_DEADLINE_SECONDS", 1.0)
        late = await api.post(INITIALIZE, json={"user_id": MINE}, headers=KEY)
        await pool.execute("DROP TRIGGER slow ON device_authorizations")
        monkeypatch.setattr(middleware, "_DEADLINE_SECONDS", 60.0)

        again = await api.post(INITIALIZE, json={"user_id": MINE}, headers=KEY)

        assert (late.status_code, kind(late)) == (503, "unavailable")
        assert again.status_code == 201, again.text

    async def test_the_keys_of_two_callers_have_nothing_to_do_with_each_other(
        self, api: httpx.AsyncClient, pool: asyncpg.Pool
    ) -> None:
        one = await a_key(pool, AccessScope.CONTROL, name="one")
        two = await a_key(pool, AccessScope.CONTROL, name="two")

        first = await api.post(INITIALIZE, json={"user_id": MINE}, headers=KEY | one)
        second = await api.post(INITIALIZE, json={"user_id": MINE}, headers=KEY | two)

        assert [first.status_code, second.status_code] == [201, 201]
        assert first.json()["task_id"] != second.json()["task_id"]

    @pytest.mark.parametrize(
        ("age", "answered", "outcome"),
        [
            pytest.param(timedelta(hours=23), True, (201, 1), id="answered-and-young"),
            pytest.param(timedelta(hours=25), True, (201, 2), id="answered-and-expired"),
            pytest.param(timedelta(seconds=60), False, (409, 1), id="perhaps-still-worked-on"),
            pytest.param(timedelta(seconds=130), False, (201, 2), id="its-process-died"),
        ],
    )
    async def test_a_key_is_free_again_when_it_expires_or_its_request_died(
        self,
        api: httpx.AsyncClient,
        pool: asyncpg.Pool,
        allegro: Allegro,
        age: timedelta,
        answered: bool,
        outcome: tuple[int, int],
    ) -> None:
        await api.post(INITIALIZE, json={"user_id": MINE}, headers=KEY)
        await pool.execute(
            "UPDATE idempotent_requests SET created_at = now() - $1::interval, answer = CASE WHEN $2 THEN answer END",
            age,
            answered,
        )

        again = await api.post(INITIALIZE, json={"user_id": MINE}, headers=KEY)

        assert (again.status_code, len(allegro.requests)) == outcome

    async def test_a_late_answer_does_not_take_the_place_of_a_later_request(
        self, api: httpx.AsyncClient, pool: asyncpg.Pool, allegro: Allegro
    ) -> None:
        # While Allegro answers the first request, its key expires and another one takes it over.
        await pool.execute(
            "CREATE FUNCTION taken_over() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN"
            " UPDATE idempotent_requests SET created_at = clock_timestamp(); RETURN NULL; END $$;"
            " CREATE TRIGGER taken_over AFTER INSERT ON device_authorizations EXECUTE FUNCTION taken_over()"
        )

        first = await api.post(INITIALIZE, json={"user_id": MINE}, headers=KEY)
        second = await api.post(INITIALIZE, json={"user_id": MINE}, headers=KEY)

        assert (first.status_code, second.status_code, kind(second)) == (201, 409, "request-in-progress")

    @pytest.mark.parametrize("key", ["", "with space", "x" * 256, "ż"])
    async def test_a_key_of_another_form_is_named(self, api: httpx.AsyncClient, key: str) -> None:
        answer = await api.post(
            INITIALIZE, json={"user_id": MINE}, headers=[(b"idempotency-key", key.encode()), (b"x-request-id", b"a")]
        )

        assert (answer.status_code, answer.json()["errors"][0]["field"]) == (422, "Idempotency-Key")

    async def test_a_body_without_end_is_refused_with_a_key_too(self, api: httpx.AsyncClient) -> None:
        async def endless() -> AsyncIterator[bytes]:
            for _ in range(40):
                yield b" " * 65536

        answer = await api.post(INITIALIZE, content=endless(), headers=KEY | {"content-type": "application/json"})

        assert (answer.status_code, kind(answer)) == (413, "too-large")


class TestForm:
    @given(
        st.integers(min_value=200, max_value=299),
        st.lists(st.tuples(st.binary(max_size=20), st.binary(max_size=20)), max_size=3),
        st.binary(max_size=200),
    )
    def test_an_answer_comes_back_as_it_was(self, status: int, headers: list[tuple[bytes, bytes]], body: bytes) -> None:
        answer = Answer(status, headers, body)

        assert Answer.from_text(answer.as_text()) == answer
