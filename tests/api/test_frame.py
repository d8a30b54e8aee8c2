"""What surrounds every request: a start without PostgreSQL, refusals of what no endpoint takes, secrets kept."""

import asyncio
import base64
import json
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime
from typing import Any

import asyncpg
import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import SecretStr

from devstack.ports import free_port, release
from services.api.app import build_app
from services.api.browsers import is_loopback, refuse_foreign_pages
from services.api.problems import ForeignHostError, ForeignOriginError, Problem
from services.api.settings import ApiSettings
from shared.api_keys import AccessScope, create_key
from shared.errors import ConfigurationError
from tests.api.conftest import Allegro
from tests.api.over_tcp import served
from tests.builders import a_token
from tests.canary import a_secret

pytestmark = pytest.mark.integration

HOST = b"127.0.0.1:8000"


def changed(settings: ApiSettings, **fields: Any) -> ApiSettings:
    return settings.model_copy(update=fields)


@asynccontextmanager
async def serving(settings: ApiSettings, **options: Any) -> AsyncIterator[httpx.AsyncClient]:
    app = build_app(settings, transport=httpx.MockTransport(Allegro()), **options)
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as client,
    ):
        yield client


async def eventually(client: httpx.AsyncClient, path: str, status: int) -> None:
    async with asyncio.timeout(30):
        while (await client.get(path)).status_code != status:  # noqa: ASYNC110 - the API is asked as a client would
            await asyncio.sleep(0.05)


async def relay(port: int, database_url: str) -> asyncio.Server:
    """PostgreSQL at another port."""
    address = httpx.URL(database_url)

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        upstream_reader, upstream_writer = await asyncio.open_connection(address.host, address.port)
        await asyncio.gather(_copy(reader, upstream_writer), _copy(upstream_reader, writer))

    return await asyncio.start_server(connected, "127.0.0.1", port)


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
    except ConnectionError:
        pass
    finally:
        writer.close()


class TestStart:
    async def test_without_postgresql_it_lives_and_is_ready_as_soon_as_it_comes(
        self, settings: ApiSettings, database_url: str
    ) -> None:
        port = free_port()
        url = str(httpx.URL(database_url).copy_with(host="127.0.0.1", port=port))
        async with serving(changed(settings, database_url=SecretStr(url))) as client:
            alive, ready = await client.get("/livez"), await client.get("/readyz")
            refused = await client.get("/api/v1/tokens/")
            server = await relay(port, database_url)
            await eventually(client, "/readyz", 200)
            listed = await client.get("/api/v1/tokens/")

        server.close()
        release(port)
        assert (alive.status_code, ready.status_code) == (200, 503)
        assert (refused.status_code, refused.json()["type"].rpartition(":")[2]) == (503, "unavailable")
        assert (listed.status_code, listed.json()) == (200, {"items": [], "next": None})

    async def test_keys_that_do_not_fit_stop_the_start(self, settings: ApiSettings, pool: asyncpg.Pool) -> None:
        async with serving(settings) as client:
            await client.post("/api/v1/tokens/auth/initialize", json={"user_id": "shop-1"})
        other = "k2:" + base64.b64encode(bytes([1] * 32)).decode()

        with pytest.raises(ConfigurationError, match="ENCRYPTION_KEYS"):
            async with serving(changed(settings, encryption_keys=SecretStr(other))):
                pass

    async def test_a_database_without_tables_is_told_in_one_line(
        self, settings: ApiSettings, empty_database_url: str
    ) -> None:
        with pytest.raises(ConfigurationError, match="orders-backup setup"):
            async with serving(changed(settings, database_url=SecretStr(empty_database_url))):
                pass

    async def test_what_is_found_late_ends_the_service(self, settings: ApiSettings, empty_database_url: str) -> None:
        port = free_port()
        url = str(httpx.URL(empty_database_url).copy_with(host="127.0.0.1", port=port))
        gave_up = asyncio.Event()

        async def serve_until_given_up() -> None:
            async with serving(changed(settings, database_url=SecretStr(url)), give_up=gave_up.set) as client:
                assert (await client.get("/livez")).status_code == 200
                server = await relay(port, empty_database_url)
                async with asyncio.timeout(30):
                    await gave_up.wait()
                server.close()

        with pytest.raises(ConfigurationError, match="orders-backup setup"):
            await serve_until_given_up()
        release(port)

    async def test_it_starts_and_reads_without_kafka(self, settings: ApiSettings, pool: asyncpg.Pool) -> None:
        await a_token(pool)
        port = free_port()
        async with serving(changed(settings, kafka_bootstrap_servers=(f"127.0.0.1:{port}",))) as client:
            ready = await client.get("/readyz")
            listed = await client.get("/api/v1/orders/shop-1")
            health = await client.get("/health")

        release(port)
        assert (ready.status_code, listed.status_code, health.status_code) == (200, 200, 503)
        assert health.json()["components"]["kafka"]["status"] == "unavailable"
        assert health.json()["components"]["database"]["status"] == "ok"

    @pytest.mark.parametrize("host", ["0.0.0.0", "192.0.2.1", "::", "api.example.com"])
    async def test_it_is_not_offered_to_others_before_there_is_a_key(
        self, settings: ApiSettings, pool: asyncpg.Pool, host: str
    ) -> None:
        exposed = changed(settings, api_http_host=host)
        await create_key(pool, "old", AccessScope.ADMIN, expires_at=datetime(2026, 1, 1, tzinfo=UTC))

        with pytest.raises(ConfigurationError, match=r"API_HTTP_HOST: .*orders-backup keys create"):
            async with serving(exposed):
                pass

        await create_key(pool, "new", AccessScope.READ)
        async with serving(exposed) as client:
            answer = await client.get("/api/v1/tokens/", headers={"Host": "api.example.com"})
        assert answer.status_code == 401

    @pytest.mark.parametrize(
        "header", ["Forwarded", "X-Forwarded-For", "x-forwarded-proto", "X-Forwarded-Host", "Via", "X-Real-IP"]
    )
    async def test_what_comes_through_a_proxy_needs_a_key_also_while_there_is_none(
        self, settings: ApiSettings, pool: asyncpg.Pool, header: str
    ) -> None:
        async with serving(settings) as client:
            direct = await client.get("/api/v1/tokens/")
            through = await client.get("/api/v1/tokens/", headers={header: "for=203.0.113.7"})
            probe = await client.get("/livez", headers={header: "for=203.0.113.7"})
            key = await create_key(pool, "ops", AccessScope.READ)
            sent = {header: "for=203.0.113.7", "Authorization": f"Bearer {key.reveal()}"}
            with_key = await client.get("/api/v1/tokens/", headers=sent)

        assert (direct.status_code, through.status_code, probe.status_code) == (200, 401, 200)
        assert "orders-backup keys create" in through.json()["detail"]
        assert with_key.status_code == 200

    async def test_a_start_without_keys_is_warned_of(
        self, settings: ApiSettings, pool: asyncpg.Pool, caplog: pytest.LogCaptureFixture
    ) -> None:
        def warned() -> int:
            return sum("there is no API key" in record.message for record in caplog.records)

        async with serving(settings):
            pass
        first = warned()
        await create_key(pool, "ops", AccessScope.READ)
        async with serving(settings):
            pass

        assert (first, warned()) == (1, 1)


class TestBrowsers:
    @pytest.mark.parametrize("host", [HOST, b"localhost:8000", b"[::1]:8000", b"LOCALHOST", b""])
    def test_our_own_names_are_answered(self, host: bytes) -> None:
        refuse_foreign_pages("GET", {b"host": host}, own_names_only=True)

    @pytest.mark.parametrize("host", [b"evil.example", b"127.0.0.1.evil.example:8000", b"192.168.0.1", b"[::2]:8000"])
    def test_a_name_that_resolves_to_us_is_not(self, host: bytes) -> None:
        with pytest.raises(ForeignHostError):
            refuse_foreign_pages("GET", {b"host": host}, own_names_only=True)
        refuse_foreign_pages("GET", {b"host": host}, own_names_only=False)
        refuse_foreign_pages("GET", {b"host": host, b"authorization": b"Bearer x"}, own_names_only=True)

    @pytest.mark.parametrize(
        "headers",
        [
            {b"origin": b"https://evil.example"},
            {b"origin": b"null"},
            {b"sec-fetch-site": b"cross-site"},
            {b"sec-fetch-site": b"same-site", b"origin": b"http://127.0.0.1:8000"},
        ],
    )
    def test_a_page_of_another_site_changes_nothing(self, headers: dict[bytes, bytes]) -> None:
        with pytest.raises(ForeignOriginError):
            refuse_foreign_pages("POST", {b"host": HOST, **headers}, own_names_only=True)
        refuse_foreign_pages("GET", {b"host": HOST, **headers}, own_names_only=True)

    @pytest.mark.parametrize(
        "headers", [{}, {b"origin": b"http://127.0.0.1:8000"}, {b"sec-fetch-site": b"same-origin"}]
    )
    def test_our_own_page_and_other_programs_do(self, headers: dict[bytes, bytes]) -> None:
        refuse_foreign_pages("POST", {b"host": HOST, **headers}, own_names_only=True)

    @given(st.binary(max_size=50), st.binary(max_size=50))
    def test_no_header_breaks_it(self, host: bytes, origin: bytes) -> None:
        with suppress(Problem):
            refuse_foreign_pages("POST", {b"host": host, b"origin": origin}, own_names_only=True)

    def test_what_loopback_is(self) -> None:
        assert [is_loopback(name) for name in ("127.8.9.1", "::1", "localhost", "0.0.0.0", "example.com")] == [
            *(True, True, True),
            *(False, False),
        ]


class TestErrors:
    async def test_a_bug_is_answered_with_the_id_that_finds_it(
        self, api: httpx.AsyncClient, pool: asyncpg.Pool, caplog: pytest.LogCaptureFixture
    ) -> None:
        await a_token(pool)
        await pool.execute("ALTER TABLE orders RENAME COLUMN buyer_login TO buyer")

        with caplog.at_level(logging.ERROR):
            answer = await api.get("/api/v1/orders/shop-1", headers={"X-Request-ID": "find-me"})

        assert (answer.status_code, answer.headers["x-request-id"]) == (500, "find-me")
        assert (answer.json()["correlation_id"], answer.headers["content-type"]) == (
            "find-me",
            "application/problem+json",
        )
        assert "buyer_login" not in answer.text
        assert [record.message for record in caplog.records if record.exc_info] == ["unexpected error"]

    async def test_a_database_that_went_away_is_unavailable(self, api: httpx.AsyncClient, pool: asyncpg.Pool) -> None:
        await a_token(pool)
        await pool.execute("ALTER TABLE orders RENAME TO gone")
        await pool.execute(
            "CREATE FUNCTION away() RETURNS bigint LANGUAGE plpgsql AS"
            " $$ BEGIN RAISE 'the server is shutting down' USING ERRCODE = '57P01'; END $$;"
            " CREATE VIEW orders AS SELECT * FROM gone WHERE away() = 1"
        )
        await pool.execute(
            "INSERT INTO gone (user_token_id, allegro_order_id, status, order_data, observed_at, observed_by)"
            " VALUES (1, 'a', 'BOUGHT', '{}', now(), 'detail')"
        )

        answer = await api.get("/api/v1/orders/shop-1")

        assert (answer.status_code, answer.json()["type"].rpartition(":")[2]) == (503, "database-unavailable")
        assert answer.headers["retry-after"] == "5"

    @pytest.mark.parametrize(
        ("method", "path", "body", "status"),
        [
            pytest.param("GET", "/api/v1/orders/a%00b", None, 400, id="nul-in-path"),
            pytest.param("GET", "/api/v1/sync/tasks?user_id=a%00b", None, 400, id="nul-in-query"),
            pytest.param("GET", "/api/v1/tokens/99999999999999999999", None, 422, id="number-too-large"),
            pytest.param("GET", "/api/v1/tokens/-1", None, 422, id="negative"),
            pytest.param("GET", "/api/v1/tokens/0x1", None, 422, id="no-number"),
            pytest.param("GET", "/api/v1/sync/tasks/none", None, 422, id="no-uuid"),
            pytest.param("GET", "/api/v1/orders/shop-1?fields=price", None, 422, id="unknown-field"),
            pytest.param(
                "GET", "/api/v1/orders/shop-1?bought_from=0001-01-01T00:00:00%2B14:00", None, 422, id="year-0"
            ),
            pytest.param("POST", "/api/v1/tokens/auth/initialize", {"user_id": "a\0b"}, 422, id="nul-in-body"),
            pytest.param("POST", "/api/v1/tokens/auth/initialize", {"user_id": ""}, 422, id="empty"),
            pytest.param("POST", "/api/v1/tokens/auth/initialize", {"user": "a"}, 422, id="misspelt"),
            pytest.param("POST", "/api/v1/sync/activate", {"user_id": "shop-1", "interval_seconds": 0}, 422, id="zero"),
            pytest.param("POST", "/api/v1/sync/activate", {"user_id": "nobody"}, 404, id="unknown-user"),
            pytest.param("POST", "/api/v1/sync/deactivate", {"user_id": "nobody"}, 404, id="unknown-user-2"),
            pytest.param("PUT", "/api/v1/tokens/1", {"access_token": "a"}, 422, id="half-a-pair"),
            pytest.param("GET", "/api/v1/orders/shop-1?bought_from=1767225600", None, 422, id="seconds-since-1970"),
            pytest.param("POST", "/api/v1/sync/manual/shop-1", {"from": 1767225600}, 422, id="number-for-a-time"),
            pytest.param("POST", "/api/v1/sync/manual/shop-1", {"from": "1767225600"}, 422, id="text-of-a-number"),
            pytest.param(
                *("POST", "/api/v1/sync/activate", {"user_id": "shop-1", "interval_seconds": "60"}, 422),
                id="text-for-a-number",
            ),
        ],
    )
    async def test_input_of_any_kind_is_the_clients_mistake_not_ours(
        self, api: httpx.AsyncClient, pool: asyncpg.Pool, method: str, path: str, body: object, status: int
    ) -> None:
        await a_token(pool)

        answer = await api.request(method, path, json=body)

        assert answer.status_code == status, answer.text
        assert answer.headers["content-type"] == "application/problem+json"

    @pytest.mark.parametrize(
        ("method", "path", "allowed"),
        [
            ("PATCH", "/api/v1/tokens/", "GET, HEAD, POST"),
            ("POST", "/api/v1/tokens/1", "DELETE, GET, HEAD, PUT"),
            ("POST", "/health", "GET, HEAD"),
            ("GET", "/api/v1/sync/activate", "POST"),
        ],
    )
    async def test_a_wrong_method_is_told_every_right_one(
        self, api: httpx.AsyncClient, method: str, path: str, allowed: str
    ) -> None:
        answer = await api.request(method, path)

        assert (answer.status_code, answer.headers["allow"]) == (405, allowed)

    async def test_a_lone_surrogate_is_refused(self, api: httpx.AsyncClient) -> None:
        answer = await api.post(
            "/api/v1/tokens/auth/initialize",
            content=b'{"user_id": "\\ud800"}',
            headers={"content-type": "application/json"},
        )

        assert answer.status_code == 422, answer.text

    async def test_broken_json_is_told_as_such(self, api: httpx.AsyncClient) -> None:
        answer = await api.post(
            "/api/v1/tokens/auth/initialize", content=b"{", headers={"content-type": "application/json"}
        )

        assert (answer.status_code, answer.json()["errors"][0]["field"]) == (422, "body")

    async def test_a_large_body_without_a_length_is_refused_too(self, api: httpx.AsyncClient) -> None:
        async def endless() -> AsyncIterator[bytes]:
            for _ in range(40):
                yield b" " * 65536

        answer = await api.post(
            "/api/v1/tokens/auth/initialize", content=endless(), headers={"content-type": "application/json"}
        )

        assert (answer.status_code, answer.json()["type"].rpartition(":")[2]) == (413, "too-large")

    async def test_a_long_address_is_refused_however_it_arrives(self, settings: ApiSettings) -> None:
        """In pieces, as a slow machine reads them, it once was beyond what the server waits for."""
        async with served(build_app(settings)) as url:
            reader, writer = await asyncio.open_connection("127.0.0.1", int(url.rpartition(":")[2]))
            writer.write(b"GET /api/v1/tokens/?" + b"x" * 100_000)
            await writer.drain()
            writer.write(b"x" * 100_000 + b" HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n")
            head, _, body = (await reader.read()).partition(b"\r\n\r\n")
            writer.close()
            await writer.wait_closed()

        assert head.startswith(b"HTTP/1.1 414 ")
        assert json.loads(body)["type"].endswith(":address-too-long")

    async def test_what_is_wrong_is_never_repeated_from_a_secret_field(self, api: httpx.AsyncClient) -> None:
        body = {"user_id": "shop-1", "access_token": a_secret("x") * 3000, "refresh_token": "", "expires_in": 1}

        answer = await api.post("/api/v1/tokens/", json=body)

        assert answer.status_code == 422
        assert a_secret("x") not in answer.text


class TestSecrets:
    async def test_no_log_line_holds_a_device_code(
        self, api: httpx.AsyncClient, caplog: pytest.LogCaptureFixture
    ) -> None:
        code = "qeRK87eUwzFVT1AdEygGRxsFEO5ZDVXn"

        with caplog.at_level(logging.DEBUG):
            await api.get(f"/api/v1/tokens/auth/status/{code}")

        lines = [record for record in caplog.records if record.name.startswith(("services", "shared", "fastapi"))]
        assert any(getattr(record, "route", "") == "/api/v1/tokens/auth/status/{device_code}" for record in lines), (
            "the request is logged by its route"
        )
        assert not any(code in str(vars(record)) for record in lines)

    async def test_metrics_are_labelled_by_route_and_by_known_methods(self, api: httpx.AsyncClient) -> None:
        await api.request("PAINT", "/api/v1/tokens/auth/status/the-code")

        metrics = (await api.get("/metrics")).text
        assert "the-code" not in metrics
        assert "PAINT" not in metrics
        assert 'method="other"' in metrics
