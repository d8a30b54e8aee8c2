"""Keys of what is stored: refused at start if they do not fit, moved to a new one while everything runs (A8)."""

import asyncio
import base64
from collections.abc import AsyncIterator
from uuid import UUID

import asyncpg
import pytest

from shared.database import open_pool
from shared.encryption import DecryptionError, Keyring, Secret
from shared.errors import ConfigurationError
from shared.key_rotation import RotationProgress, answer_binding, check_keys, rotate
from shared.token_vault import access_binding, device_code_binding, refresh_binding
from tests.builders import NOON
from tests.canary import a_secret

pytestmark = pytest.mark.integration

OLD = f"old:{base64.b64encode(b'1' * 32).decode()}"
NEW = f"new:{base64.b64encode(b'2' * 32).decode()}"
CODE = UUID(int=1)


@pytest.fixture
async def pool(database_url: str) -> AsyncIterator[asyncpg.Pool]:
    opened = await open_pool(database_url, service="test", max_size=4)
    yield opened
    opened.terminate()


async def store(pool: asyncpg.Pool, keyring: Keyring, count: int = 1) -> None:
    """So many tokens, and a device code, of the keyring's first key."""
    for number in range(count):
        token_id = await pool.fetchval(
            "INSERT INTO user_tokens (user_id) VALUES ($1) RETURNING id", f"{keyring.primary_key_id}-{number}"
        )
        await replace_pair(pool, keyring, token_id, f"pair-{token_id}")
    code = keyring.seal(Secret(a_secret("code")), belongs_to=device_code_binding(CODE))
    await pool.execute(
        "INSERT INTO device_authorizations (task_id, user_id, device_code, device_code_digest, key_id, user_code,"
        " verification_uri, verification_uri_complete, interval_seconds, expires_at, next_poll_at)"
        " VALUES ($1, 'u', $2, '', $3, '', '', '', 5, $4, $4) ON CONFLICT DO NOTHING",
        CODE,
        code.envelope,
        code.key_id,
        NOON,
    )


async def replace_pair(pool: asyncpg.Pool | asyncpg.Connection, keyring: Keyring, token_id: int, secret: str) -> None:
    access = keyring.seal(Secret(a_secret(secret)), belongs_to=access_binding(token_id))
    refresh = keyring.seal(Secret(a_secret(secret)), belongs_to=refresh_binding(token_id))
    await pool.execute(
        "UPDATE user_tokens SET access_token = $2, refresh_token = $3, key_id = $4 WHERE id = $1",
        token_id,
        access.envelope,
        refresh.envelope,
        access.key_id,
    )


async def secrets(pool: asyncpg.Pool, keyring: Keyring) -> list[str]:
    """Every stored secret, opened."""
    found = []
    for row in await pool.fetch("SELECT * FROM user_tokens WHERE access_token IS NOT NULL ORDER BY id"):
        found.append(keyring.open(row["access_token"], belongs_to=access_binding(row["id"])).reveal())
        found.append(keyring.open(row["refresh_token"], belongs_to=refresh_binding(row["id"])).reveal())
    code = await pool.fetchval("SELECT device_code FROM device_authorizations")
    return [*found, keyring.open(code, belongs_to=device_code_binding(CODE)).reveal()]


async def finish(pool: asyncpg.Pool, keyring: Keyring, *, batch: int = 100) -> list[RotationProgress]:
    return [progress async for progress in rotate(pool, keyring, batch=batch)]


class TestCheck:
    async def test_an_empty_database_takes_any_key(self, pool: asyncpg.Pool) -> None:
        await check_keys(pool, Keyring.parse(NEW))

    async def test_keys_that_open_everything_pass(self, pool: asyncpg.Pool) -> None:
        await store(pool, Keyring.parse(OLD))
        await store(pool, Keyring.parse(NEW))

        await check_keys(pool, Keyring.parse(f"{NEW},{OLD}"))

    async def test_a_missing_key_is_named(self, pool: asyncpg.Pool) -> None:
        await store(pool, Keyring.parse(OLD), 3)

        with pytest.raises(ConfigurationError, match="ENCRYPTION_KEYS: key 'old' is missing, 4 stored secrets"):
            await check_keys(pool, Keyring.parse(NEW))

    async def test_a_wrong_key_of_the_right_name_is_noticed(self, pool: asyncpg.Pool) -> None:
        await store(pool, Keyring.parse(OLD))

        with pytest.raises(ConfigurationError, match=r"ENCRYPTION_KEYS: .*does not open it"):
            await check_keys(pool, Keyring.parse(NEW.replace("new:", "old:")))

    async def test_a_device_code_counts_too(self, pool: asyncpg.Pool) -> None:
        await store(pool, Keyring.parse(OLD), 0)

        with pytest.raises(ConfigurationError, match="does not open it"):
            await check_keys(pool, Keyring.parse(NEW.replace("new:", "old:")))

    async def test_an_answer_under_an_idempotency_key_counts_too(self, pool: asyncpg.Pool) -> None:
        sealed = Keyring.parse(OLD).seal(Secret(a_secret("answer")), belongs_to=answer_binding("caller", "key"))
        await pool.execute(
            "INSERT INTO idempotent_requests (caller, idempotency_key, request_digest, answer)"
            " VALUES ('caller', 'key', '', $1)",
            sealed.envelope,
        )

        await check_keys(pool, Keyring.parse(OLD))
        with pytest.raises(ConfigurationError, match="does not open it"):
            await check_keys(pool, Keyring.parse(NEW.replace("new:", "old:")))


class TestRotate:
    async def test_everything_moves_to_the_first_key_and_stays_readable(self, pool: asyncpg.Pool) -> None:
        await store(pool, Keyring.parse(OLD), 5)
        before = await secrets(pool, Keyring.parse(OLD))

        progress = await finish(pool, Keyring.parse(f"{NEW},{OLD}"), batch=2)

        assert progress[-1] == RotationProgress(moved=6, left=0)
        assert await secrets(pool, Keyring.parse(NEW)) == before

    async def test_a_rotation_that_was_stopped_is_taken_up_again(self, pool: asyncpg.Pool) -> None:
        keyring = Keyring.parse(f"{NEW},{OLD}")
        await store(pool, Keyring.parse(OLD), 5)
        first = await anext(rotate(pool, keyring, batch=2))

        progress = await finish(pool, keyring)

        assert first == RotationProgress(moved=3, left=3)
        assert progress[-1] == RotationProgress(moved=3, left=0)

    async def test_a_pair_that_is_refreshed_meanwhile_is_not_overwritten(self, pool: asyncpg.Pool) -> None:
        old, keyring = Keyring.parse(OLD), Keyring.parse(f"{NEW},{OLD}")
        await store(pool, old, 3)
        rotation = rotate(pool, keyring, batch=1)
        await anext(rotation)
        # The rotation has read nothing of the last one yet; then a service that has no new key yet refreshes it.
        await replace_pair(pool, old, 3, "refreshed")

        progress = [step async for step in rotation]

        assert progress[-1].left == 0
        assert (await secrets(pool, keyring))[4:6] == [a_secret("refreshed")] * 2

    async def test_a_pair_that_is_refreshed_after_the_rotation_has_read_it_is_not_overwritten(
        self, pool: asyncpg.Pool
    ) -> None:
        keyring = Keyring.parse(f"{NEW},{OLD}")
        await store(pool, Keyring.parse(OLD), 1)
        async with pool.acquire() as connection:
            refresh = connection.transaction()
            await refresh.start()
            await replace_pair(connection, keyring, 1, "refreshed")
            rotation = asyncio.create_task(finish(pool, keyring))
            async with asyncio.timeout(60):
                # It has read the old pair, and waits for the row.
                while not await pool.fetchval("SELECT count(*) FROM pg_locks WHERE NOT granted"):
                    await pool.fetchval("SELECT pg_sleep(0.01)")
            await refresh.commit()

        progress = await rotation

        assert progress[-1] == RotationProgress(moved=1, left=0)
        assert (await secrets(pool, keyring))[:2] == [a_secret("refreshed")] * 2

    async def test_answers_under_idempotency_keys_move_too(self, pool: asyncpg.Pool) -> None:
        old, both = Keyring.parse(OLD), Keyring.parse(f"{NEW},{OLD}")
        for number in range(3):
            sealed = old.seal(
                Secret(a_secret(f"answer-{number}")), belongs_to=answer_binding("caller", f"key-{number}")
            )
            await pool.execute(
                "INSERT INTO idempotent_requests (caller, idempotency_key, request_digest, answer)"
                " VALUES ('caller', $1, '', $2)",
                f"key-{number}",
                sealed.envelope,
            )
        await pool.execute(
            "INSERT INTO idempotent_requests (caller, idempotency_key, request_digest) VALUES ('caller', 'open', '')"
        )
        with pytest.raises(ConfigurationError, match="'old' is missing, 3 stored"):
            await check_keys(pool, Keyring.parse(NEW))

        progress = await finish(pool, both, batch=2)

        answers = await pool.fetch("SELECT idempotency_key, answer FROM idempotent_requests WHERE answer IS NOT NULL")
        opened = [
            Keyring.parse(NEW).open(row["answer"], belongs_to=answer_binding("caller", row["idempotency_key"])).reveal()
            for row in answers
        ]
        assert sorted(opened) == sorted(a_secret(f"answer-{number}") for number in range(3))
        assert progress[-1] == RotationProgress(moved=3, left=0)

    async def test_a_second_rotation_has_nothing_to_do(self, pool: asyncpg.Pool) -> None:
        await store(pool, Keyring.parse(NEW), 2)

        assert await finish(pool, Keyring.parse(NEW)) == [RotationProgress(moved=0, left=0)]

    async def test_tokens_that_were_deactivated_hold_nothing_to_move(self, pool: asyncpg.Pool) -> None:
        await store(pool, Keyring.parse(OLD), 1)
        await pool.execute("UPDATE user_tokens SET access_token = NULL, refresh_token = NULL, key_id = NULL")

        assert (await finish(pool, Keyring.parse(f"{NEW},{OLD}")))[-1] == RotationProgress(moved=1, left=0)

    async def test_a_missing_old_key_stops_it(self, pool: asyncpg.Pool) -> None:
        await store(pool, Keyring.parse(OLD), 1)

        with pytest.raises(DecryptionError, match="no key 'old'"):
            await finish(pool, Keyring.parse(NEW))
