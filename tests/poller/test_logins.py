"""Logins are asked for after a consent, and again until there was an answer; by one replica at a time."""

import asyncio
from datetime import timedelta

import asyncpg
import pytest

from services.poller.logins import LoginLearner
from services.poller.slots import Slots
from shared.allegro.client import Seller
from shared.allegro.errors import AccessDeniedError, AllegroUnavailableError, ReauthorizationRequiredError
from tests.builders import a_token

pytestmark = pytest.mark.integration

PROFILE = "allegro:api:profile:read"


class Allegro:
    """Answers `/me` as told."""

    def __init__(self) -> None:
        self.answer: Seller | Exception = Seller("4711", "the-shop")
        self.asked: list[int] = []

    async def me(self, token_id: int) -> Seller:
        self.asked.append(token_id)
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer


@pytest.fixture
def allegro() -> Allegro:
    return Allegro()


async def turn(pool: asyncpg.Pool, allegro: Allegro) -> None:
    slots = Slots("logins", 4)
    await LoginLearner(pool, allegro, slots).turn()  # type: ignore[arg-type]
    await slots.idle()


async def a_due_token(pool: asyncpg.Pool, *, user_id: str = "shop-1", scopes: tuple[str, ...] = (PROFILE,)) -> int:
    token_id = await a_token(pool, user_id=user_id)
    await pool.execute("UPDATE user_tokens SET login_after = now(), scopes = $2 WHERE id = $1", token_id, list(scopes))
    return token_id


async def due_in(pool: asyncpg.Pool) -> timedelta | None:
    wait: timedelta | None = await pool.fetchval("SELECT login_after - now() FROM user_tokens")
    return wait


async def test_a_login_is_learnt_once(pool: asyncpg.Pool, allegro: Allegro) -> None:
    await a_due_token(pool)

    await turn(pool, allegro)
    await turn(pool, allegro)

    row = await pool.fetchrow("SELECT seller_login, seller_id, login_after FROM user_tokens")
    assert tuple(row) == ("the-shop", "4711", None)
    assert len(allegro.asked) == 1


@pytest.mark.parametrize(
    ("error", "least", "most"),
    [
        (AllegroUnavailableError("503"), timedelta(minutes=59), timedelta(minutes=61)),
        (ConnectionResetError("PostgreSQL went away"), timedelta(minutes=59), timedelta(minutes=61)),
        (ReauthorizationRequiredError("unlinked"), timedelta(minutes=59), timedelta(minutes=61)),
        (AccessDeniedError("403"), timedelta(hours=23), timedelta(hours=25)),
    ],
)
async def test_a_question_without_answer_is_asked_again_later(
    pool: asyncpg.Pool, allegro: Allegro, error: Exception, least: timedelta, most: timedelta
) -> None:
    await a_due_token(pool)
    allegro.answer = error
    await turn(pool, allegro)
    await turn(pool, allegro)
    wait = await due_in(pool)
    allegro.answer = Seller("4711", "the-shop")
    await pool.execute("UPDATE user_tokens SET login_after = now()")

    await turn(pool, allegro)

    assert wait is not None
    assert least < wait < most
    assert len(allegro.asked) == 2
    assert await pool.fetchval("SELECT seller_login FROM user_tokens") == "the-shop"


@pytest.mark.parametrize(
    ("scopes", "asked"),
    [((), 1), ((PROFILE, "allegro:api:orders:read"), 1), (("allegro:api:orders:read",), 0)],
)
async def test_a_token_whose_scopes_are_known_not_to_suffice_is_not_tried(
    pool: asyncpg.Pool, allegro: Allegro, scopes: tuple[str, ...], asked: int
) -> None:
    await a_due_token(pool, scopes=scopes)

    await turn(pool, allegro)

    assert len(allegro.asked) == asked


@pytest.mark.parametrize("status", ["reauthorization_required", "deactivated"])
async def test_a_token_that_cannot_call_is_left_alone(pool: asyncpg.Pool, allegro: Allegro, status: str) -> None:
    await a_due_token(pool)
    await pool.execute("UPDATE user_tokens SET status = $1", status)

    await turn(pool, allegro)

    assert allegro.asked == []


async def test_replicas_share_the_work(pool: asyncpg.Pool, allegro: Allegro) -> None:
    tokens = [await a_due_token(pool, user_id=f"shop-{number}") for number in range(12)]

    await asyncio.gather(*(turn(pool, allegro) for _ in range(5)))

    assert sorted(allegro.asked) == tokens
