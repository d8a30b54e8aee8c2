"""Keys of the API: what opens it, and how soon what is revoked no longer does."""

import asyncio
from datetime import UTC, datetime, timedelta

import asyncpg
import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.api import keys as keys_module
from services.api.keys import KeyStore
from shared.api_keys import (
    AccessScope,
    ApiKey,
    ApiKeyNameTakenError,
    UnknownApiKeyError,
    all_keys,
    create_key,
    public_id_of,
    revoke_key,
)
from tests.api.two_sellers import a_key

LIST = "/api/v1/tokens/"


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


@pytest.mark.integration
class TestKeys:
    async def test_until_there_is_a_key_nobody_on_this_machine_needs_one(
        self, api: httpx.AsyncClient, pool: asyncpg.Pool
    ) -> None:
        before = await api.get(LIST)
        await a_key(pool, AccessScope.READ)
        async with asyncio.timeout(10):
            while (after := await api.get(LIST)).status_code == 200:  # noqa: ASYNC110 - keys are read again by the clock
                await asyncio.sleep(0.05)

        assert (before.status_code, after.status_code) == (200, 401)

    async def test_revoking_the_last_key_opens_nothing(self, api: httpx.AsyncClient, pool: asyncpg.Pool) -> None:
        key = await a_key(pool, AccessScope.ADMIN, name="only")
        assert (await api.get(LIST, headers=key)).status_code == 200

        await revoke_key(pool, "only")
        async with asyncio.timeout(10):
            while (await api.get(LIST, headers=key)).status_code == 200:  # noqa: ASYNC110 - as above
                await asyncio.sleep(0.05)

        assert (await api.get(LIST)).status_code == 401

    async def test_only_the_very_key_opens(self, api: httpx.AsyncClient, pool: asyncpg.Pool) -> None:
        key = (await create_key(pool, "one", AccessScope.READ)).reveal()
        other = (await create_key(pool, "two", AccessScope.READ)).reveal()
        swapped = key[:17] + other[17:]

        opened = [await api.get(LIST, headers={"Authorization": f"{scheme} {key}"}) for scheme in ("Bearer", "bearer")]
        wrong = [swapped, key[:-1], key + "x", key.upper(), "aob_", "", "ż", key.replace("aob", "oab")]
        refused = [await api.get(LIST, headers=[(b"authorization", f"Bearer {one}".encode())]) for one in wrong]
        refused.append(await api.get(LIST, headers={"Authorization": f"Basic {key}"}))

        assert [answer.status_code for answer in opened] == [200, 200]
        assert {answer.status_code for answer in refused} == {401}
        assert len({answer.json()["detail"] for answer in refused}) == 1, "nothing is told of why"

    async def test_an_expired_key_opens_nothing(self, api: httpx.AsyncClient, pool: asyncpg.Pool) -> None:
        key = await a_key(pool, AccessScope.READ, expires_at=datetime.now(UTC) - timedelta(seconds=1))

        assert (await api.get(LIST, headers=key)).status_code == 401

    async def test_only_hashes_are_stored_and_the_use_is_noted(
        self, api: httpx.AsyncClient, pool: asyncpg.Pool
    ) -> None:
        key = (await create_key(pool, "one", AccessScope.READ)).reveal()
        await api.get(LIST, headers=bearer(key))

        row = await pool.fetchval("SELECT k::text FROM api_keys k")
        secret = key.split("_", 2)[2]
        assert secret not in row
        assert secret.encode().hex() not in row
        (stored,) = await all_keys(pool)
        assert stored.last_used_at is not None

    async def test_the_database_is_not_asked_at_every_request(
        self, pool: asyncpg.Pool, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(keys_module, "_FRESH_SECONDS", 3600.0)
        key = (await create_key(pool, "one", AccessScope.READ)).reveal()
        store = KeyStore(lambda: pool)
        assert await store.find(key) is not None
        await pool.execute("ALTER TABLE api_keys RENAME TO gone")

        found = await asyncio.gather(*(store.find(key) for _ in range(20)))

        assert all(found)

    async def test_a_name_means_one_key_for_ever(self, pool: asyncpg.Pool) -> None:
        await create_key(pool, "one", AccessScope.READ)
        await revoke_key(pool, "one")

        with pytest.raises(ApiKeyNameTakenError):
            await create_key(pool, "one", AccessScope.READ)
        with pytest.raises(UnknownApiKeyError):
            await revoke_key(pool, "one")

    @pytest.mark.parametrize("name", ["anonymous", "Anonymous", " anonymous "])
    async def test_no_key_is_called_like_those_without_a_key(self, pool: asyncpg.Pool, name: str) -> None:
        with pytest.raises(ApiKeyNameTakenError, match="without a key"):
            await create_key(pool, name, AccessScope.READ)

        assert await all_keys(pool) == []

    async def test_unknown_keys_share_a_look_and_a_new_one_is_soon_known(
        self, pool: asyncpg.Pool, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        looks = 0

        async def counted(connection: asyncpg.Pool) -> list[ApiKey]:
            nonlocal looks
            looks += 1
            return await all_keys(connection)

        monkeypatch.setattr(keys_module, "all_keys", counted)
        store = KeyStore(lambda: pool)
        await store.is_empty()
        new = (await create_key(pool, "new", AccessScope.READ)).reveal()
        invented = [f"aob_{number:012x}_{'x' * 43}" for number in range(200)]

        found = await asyncio.gather(*(store.find(key) for key in [*invented, new]))

        assert [key.name for key in found if key is not None] == ["new"]
        assert looks == 2


class TestForm:
    @given(st.text(max_size=80))
    def test_anything_may_be_presented(self, text: str) -> None:
        assert public_id_of(text) is None or text.startswith("aob_")

    def test_a_scope_holds_those_before_it(self) -> None:
        read, control, admin = AccessScope
        assert [admin.includes(read), control.includes(read), read.includes(read)] == [True] * 3
        assert [read.includes(control), control.includes(admin)] == [False] * 2
