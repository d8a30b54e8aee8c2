"""Calls of one seller at the edge: what is sent, what is read, what is tried again (E2, A6)."""

import asyncio
import gzip
import json
import logging
from collections.abc import Callable
from contextlib import nullcontext
from datetime import datetime, timedelta
from typing import Any
from unittest.mock import Mock

import httpx
import pytest

from shared.allegro.client import AllegroClient, Seller, backoff_seconds
from shared.allegro.errors import (
    AllegroTimeoutError,
    AllegroUnavailableError,
    OrderNotFoundError,
    RateLimitedError,
    ReauthorizationRequiredError,
    RequestRejectedError,
)
from shared.allegro.http import open_http
from shared.allegro.tally import Tally
from shared.encryption import Secret
from shared.request_limits import Endpoint
from shared.token_vault import Bearer
from tests.builders import AN_ORDER, NOON, after, an_order_body
from tests.shared.allegro.builders import settings

Answer = httpx.Response | Exception
NO_OUTAGE: Any = Mock(call=lambda *_: nullcontext())


class Clock:
    """A second passes at every look."""

    def __init__(self) -> None:
        self.moment = NOON

    def now(self) -> datetime:
        self.moment += timedelta(seconds=1)
        return self.moment


class Limits:
    """Lets everything through and notes it."""

    def __init__(self) -> None:
        self.acquired: list[tuple[Endpoint, int | None, str]] = []
        self.blocks: list[timedelta | None] = []
        self.remaining: list[int] = []

    async def acquire(self, endpoint: Endpoint, *, token_id: int | None, traffic: str) -> None:
        self.acquired.append((endpoint, token_id, traffic))

    async def block(self, duration: timedelta | None = None) -> None:
        self.blocks.append(duration)

    def learn_remaining(self, remaining: int) -> None:
        self.remaining.append(remaining)


class Vault:
    """Tokens `token-1`, `token-2`, ... by generation."""

    def __init__(self) -> None:
        self.generation = 1
        self.refreshed: list[int] = []
        self.given_up: list[int] = []
        self.replaced_meanwhile = False

    async def access_token(self, _token_id: int) -> Bearer:
        return Bearer(Secret(f"token-{self.generation}"), self.generation)

    async def refresh(self, _token_id: int, *, seen_generation: int) -> int:
        self.refreshed.append(seen_generation)
        self.generation += 1
        return self.generation

    async def require_consent(self, _token_id: int, _reason: str, *, generation: int) -> bool:
        self.given_up.append(generation)
        return not self.replaced_meanwhile


class Edge:
    """A client whose Allegro gives these answers, one after the other; the last one for ever."""

    def __init__(self, *answers: Answer | Callable[[httpx.Request], Answer]) -> None:
        self.requests: list[httpx.Request] = []
        self.pauses: list[float] = []
        self.now = 0.0
        self.limits = Limits()
        self.vault = Vault()
        self._answers = list(answers)
        chosen = settings("https://api.example")
        http = open_http(chosen, transport=httpx.MockTransport(self._answer))
        self.client = AllegroClient(
            http,
            chosen,
            self.vault,  # type: ignore[arg-type]
            self.limits,  # type: ignore[arg-type]
            NO_OUTAGE,
            Clock(),
            sleep=self._pause,
            monotonic=lambda: self.now,
        )

    def _answer(self, request: httpx.Request) -> httpx.Response:
        self.requests.append(request)
        answer = self._answers.pop(0) if len(self._answers) > 1 else self._answers[0]
        if isinstance(answer, Exception):
            raise answer
        assert isinstance(answer, httpx.Response)
        return answer

    async def _pause(self, seconds: float) -> None:
        self.pauses.append(seconds)

    async def order(self) -> Any:
        return await self.client.order(7, AN_ORDER, traffic="live")


def ok(body: bytes | dict[str, Any], **headers: str) -> httpx.Response:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    return httpx.Response(200, content=content, headers=headers)


def refused(status: int, code: str = "X", **headers: str) -> httpx.Response:
    return httpx.Response(status, json={"errors": [{"code": code, "message": "m"}]}, headers=headers)


AN_ANSWER = ok(bytes(an_order_body()))


async def test_a_permission_that_grew_old_while_the_token_was_refreshed_is_asked_for_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """All of Allegro may be blocked since, or the minute of the permission be over."""
    edge = Edge(AN_ANSWER)
    refreshes = iter([30.0, 0.1])
    vault_gives = edge.vault.access_token

    async def access_token(token_id: int) -> Bearer:
        assert not edge.requests
        edge.now += next(refreshes)
        return await vault_gives(token_id)

    monkeypatch.setattr(edge.vault, "access_token", access_token)

    await edge.order()

    assert edge.limits.acquired == [(Endpoint.DETAIL, 7, "live")] * 2
    assert len(edge.requests) == 1


class TestRequests:
    async def test_every_call_carries_what_allegro_demands(self) -> None:
        edge = Edge(AN_ANSWER)

        await edge.order()

        sent = edge.requests[0]
        assert str(sent.url) == f"https://api.example/order/checkout-forms/{AN_ORDER}"
        assert sent.headers["User-Agent"] == "OurApp/1.0 (+https://example.org/app)"
        assert sent.headers["Accept"] == "application/vnd.allegro.public.v1+json"
        assert sent.headers["Accept-Language"] == "en-US"
        assert sent.headers["Authorization"] == "Bearer token-1"
        assert edge.limits.acquired == [(Endpoint.DETAIL, 7, "live")]

    async def test_the_trace_id_of_every_answer_is_in_the_log(self, caplog: pytest.LogCaptureFixture) -> None:
        """Allegro asks for it in every report, also of an answer that was wrong without being an error."""
        caplog.set_level(logging.DEBUG, "shared.allegro.client")
        good, limited = ok(bytes(an_order_body()), **{"Trace-Id": "t-good"}), refused(429, **{"Trace-Id": "t-429"})
        edge = Edge(refused(503, **{"Trace-Id": "t-503"}), refused(401, **{"Trace-Id": "t-401"}), good, limited)

        await edge.order()
        with pytest.raises(RateLimitedError):
            await edge.order()

        logged = [record.__dict__["trace_id"] for record in caplog.records]
        assert logged == ["t-503", "t-401", "t-good", "t-429"]

    async def test_a_list_is_asked_for_in_utc_with_milliseconds_by_ascending_purchase(self) -> None:
        edge = Edge(ok({"checkoutForms": [json.loads(an_order_body())], "count": 1, "totalCount": 41}))

        page = await edge.client.list_orders(
            7, bought_from=NOON, bought_to=after(1.5), offset=100, limit=50, traffic="bulk"
        )

        assert dict(edge.requests[0].url.params) == {
            "lineItems.boughtAt.gte": "2026-10-10T12:00:00.000Z",
            "lineItems.boughtAt.lte": "2026-10-10T12:00:01.500Z",
            "sort": "lineItems.boughtAt",
            "offset": "100",
            "limit": "50",
        }
        assert edge.limits.acquired == [(Endpoint.LIST, 7, "bulk")]
        assert (page.total_count, [order.order_id for order in page.orders]) == (41, [AN_ORDER])

    async def test_an_order_keeps_its_bytes_and_the_moment_the_request_was_started(self) -> None:
        body = b'{ "id": "%b", "amount": 1.50, "new": [1, 2], "new": null }' % AN_ORDER.encode()

        fetched = await Edge(ok(body)).order()

        assert fetched.order.raw == body
        assert fetched.requested_at == after(1)

    async def test_the_journal_is_read_after_a_position_with_allegros_clock(self) -> None:
        event = {"id": "1791640800000000", "type": "SOMETHING_NEW", "order": {"checkoutForm": {"id": AN_ORDER}}}
        edge = Edge(ok({"events": [event]}, Date="Sat, 10 Oct 2026 12:00:32 GMT"))

        page = await edge.client.events(7, after=1791640799999999)

        assert dict(edge.requests[0].url.params) == {"from": "1791640799999999", "limit": "1000"}
        assert [(e.event_id, e.event_type, e.order_id) for e in page.events] == [
            (1791640800000000, "SOMETHING_NEW", AN_ORDER)
        ]
        assert page.clock_ahead == timedelta(seconds=30)

    @pytest.mark.parametrize(
        "date", ["", "rubbish", "Sat, 99 Oct 2026 12:00:32 GMT", "Sat, 10 Oct 2026 12:00:32 -0000"]
    )
    async def test_a_strange_date_is_no_error(self, date: str) -> None:
        page = await Edge(ok({"events": []}, Date=date)).client.events(7, after=0)

        assert page.events == ()

    @pytest.mark.parametrize(
        ("body", "expected"),
        [({"latestEvent": {"id": "17"}}, 17), ({"latestEvent": None}, None), ({}, None), ({"latestEvent": {}}, None)],
    )
    async def test_the_end_of_the_journal_may_be_missing(self, body: dict[str, Any], expected: int | None) -> None:
        assert (await Edge(ok(body)).client.journal_end(7)).event_id == expected

    async def test_the_end_of_the_journal_is_dated_by_the_clock_that_numbers_its_events(self) -> None:
        by_allegro = await Edge(ok({}, Date="Sat, 10 Oct 2026 11:50:00 GMT")).client.journal_end(7)
        by_us = await Edge(ok({})).client.journal_end(7)

        assert (by_allegro.at, by_us.at) == (after(-600), after(2))

    async def test_the_seller_says_who_it_is(self) -> None:
        assert await Edge(ok({"id": "1", "login": "shop"})).client.me(7) == Seller("1", "shop")

    async def test_compressed_answers_are_read(self) -> None:
        body = gzip.compress(an_order_body())

        fetched = await Edge(ok(body, **{"Content-Encoding": "gzip"})).order()

        assert fetched.order.raw == an_order_body()

    async def test_an_order_that_is_missing_is_so_since_it_was_asked_for(self) -> None:
        """Not since before the wait for the limits: what happened meanwhile is known as well."""
        edge = Edge(refused(404, "CheckoutFormNotFoundException"))

        with pytest.raises(OrderNotFoundError) as raised:
            await edge.order()

        assert raised.value.requested_at == after(1)

    async def test_an_id_cannot_lead_to_another_path(self) -> None:
        edge = Edge(refused(422))

        with pytest.raises(RequestRejectedError):
            await edge.client.order(7, "../../me?x=1", traffic="live")

        assert edge.requests[0].url.raw_path == b"/order/checkout-forms/..%2F..%2Fme%3Fx%3D1"


class TestRepeating:
    async def test_a_5xx_is_tried_three_times_with_growing_pauses(self) -> None:
        edge = Edge(refused(503, **{"Trace-Id": "t-9"}))

        with pytest.raises(AllegroUnavailableError, match="Trace-Id t-9") as raised:
            await edge.order()

        assert (raised.value.status, raised.value.trace_id) == (503, "t-9")
        assert len(edge.requests) == len(edge.limits.acquired) == 3
        assert len(edge.pauses) == 2
        assert 0 <= edge.pauses[0] <= 0.5
        assert 0 <= edge.pauses[1] <= 1.0

    def test_pauses_double_and_jitter_is_full(self) -> None:
        assert [backoff_seconds(attempt, jitter=1.0) for attempt in (1, 2, 3)] == [0.5, 1.0, 2.0]
        assert backoff_seconds(3, jitter=0.0) == 0.0

    async def test_a_timeout_is_tried_again_at_once(self) -> None:
        edge = Edge(httpx.ReadTimeout("slow"), AN_ANSWER)

        await edge.order()

        assert edge.pauses == []
        assert len(edge.limits.acquired) == 2

    async def test_what_was_sent_is_tallied_attempts_and_all(self) -> None:
        edge = Edge(refused(503), refused(503), AN_ANSWER)

        with Tally() as all_of_it:
            await edge.order()
            with Tally() as the_second:
                await asyncio.create_task(edge.order())
        await edge.order()

        assert (all_of_it.requests, the_second.requests) == (3, 1)

    async def test_timeouts_count_as_attempts(self) -> None:
        edge = Edge(httpx.ReadTimeout("slow"))

        with pytest.raises(AllegroUnavailableError):
            await edge.order()

        assert len(edge.requests) == 3

    @pytest.mark.parametrize(
        "body",
        [b"", b"<html>", b"[]", b'"x"', b"{", b"{}", b'{"id": null}', b'{"id": "another-order"}', b"\xff", b"[" * 5000],
    )
    async def test_a_body_that_breaks_the_contract_is_allegros_trouble(self, body: bytes) -> None:
        with pytest.raises(AllegroUnavailableError):
            await Edge(ok(body)).order()

    @pytest.mark.parametrize("body", [b"<html>", b'{"id": "another-order"}'])
    async def test_its_trace_id_is_told_like_any_others(self, body: bytes) -> None:
        with pytest.raises(AllegroUnavailableError, match="Trace-Id t-odd") as raised:
            await Edge(ok(body, **{"Trace-Id": "t-odd"})).order()

        assert raised.value.trace_id == "t-odd"

    @pytest.mark.parametrize("body", [b"{}", b'{"checkoutForms": null}', b'{"checkoutForms": {"x": 1}}'])
    async def test_a_list_that_breaks_the_contract_too(self, body: bytes) -> None:
        with pytest.raises(AllegroUnavailableError):
            await Edge(ok(body)).client.list_orders(7, bought_from=NOON, bought_to=NOON, traffic="bulk")

    async def test_an_order_that_breaks_it_costs_its_page_nothing(self) -> None:
        edge = Edge(ok(b'{"checkoutForms": [{"x": 1}, {"id": "o-1"}]}'))

        page = await edge.client.list_orders(7, bought_from=NOON, bought_to=NOON, traffic="bulk")

        assert [order.order_id for order in page.orders] == ["o-1"]
        assert [part.raw for part in page.unreadable] == [b'{"x": 1}']
        assert len(edge.requests) == 1

    async def test_a_404_is_not_repeated(self) -> None:
        edge = Edge(refused(404, "CheckoutFormNotFoundException"))

        with pytest.raises(OrderNotFoundError):
            await edge.order()

        assert len(edge.requests) == 1

    async def test_a_429_stops_everybody_for_the_stated_time_and_is_not_repeated(self) -> None:
        edge = Edge(refused(429, **{"Retry-After": "17"}))

        with pytest.raises(RateLimitedError) as raised:
            await edge.order()

        assert raised.value.retry_after == timedelta(seconds=17)
        assert edge.limits.blocks == [timedelta(seconds=17)]
        assert len(edge.requests) == 1

    async def test_a_429_stops_everybody_until_the_stated_date(self) -> None:
        date, until = "Wed, 21 Oct 2026 07:28:00 GMT", "Wed, 21 Oct 2026 07:30:00 GMT"
        edge = Edge(refused(429, **{"Retry-After": until, "Date": date}))

        with pytest.raises(RateLimitedError):
            await edge.order()

        assert edge.limits.blocks == [timedelta(minutes=2)]

    @pytest.mark.parametrize("stated", ["", "soon", "-1", "1" * 30, "²"])
    async def test_a_429_without_a_time_of_use_leaves_it_to_the_limits(self, stated: str) -> None:
        edge = Edge(httpx.Response(429, headers=[(b"Retry-After", stated.encode())]))

        with pytest.raises(RateLimitedError):
            await edge.order()

        assert edge.limits.blocks == [None]

    async def test_what_is_left_of_the_allowance_is_learnt(self) -> None:
        edge = Edge(ok(an_order_body(), **{"X-RateLimit-Remaining": "8997"}))

        await edge.order()

        assert edge.limits.remaining == [8997]


class TestTokens:
    async def test_a_401_is_followed_by_one_refresh_and_one_more_try(self) -> None:
        edge = Edge(refused(401), AN_ANSWER)

        await edge.order()

        assert edge.vault.refreshed == [1]
        assert [request.headers["Authorization"] for request in edge.requests] == ["Bearer token-1", "Bearer token-2"]
        assert len(edge.limits.acquired) == 2

    async def test_a_401_on_the_new_token_means_that_consent_is_gone(self) -> None:
        edge = Edge(refused(401, **{"Trace-Id": "t-3"}))

        with pytest.raises(ReauthorizationRequiredError) as raised:
            await edge.order()

        assert raised.value.trace_id == "t-3"
        assert (edge.vault.refreshed, edge.vault.given_up) == ([1], [2])
        assert len(edge.requests) == 2

    async def test_unless_the_pair_was_replaced_during_the_call(self) -> None:
        edge = Edge(refused(401))
        edge.vault.replaced_meanwhile = True

        with pytest.raises(AllegroUnavailableError, match="replaced"):
            await edge.order()

    async def test_a_call_that_waits_for_its_turn_uses_the_token_of_its_turn(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Waiting may take minutes: nobody holds a decrypted token meanwhile, and somebody may refresh it."""
        edge = Edge(AN_ANSWER)

        async def refreshed_meanwhile(*_arguments: Any, **_named: Any) -> None:
            edge.vault.generation = 2

        monkeypatch.setattr(edge.limits, "acquire", refreshed_meanwhile)

        await edge.order()

        assert [request.headers["Authorization"] for request in edge.requests] == ["Bearer token-2"]


class TestHttp:
    @pytest.mark.parametrize(
        "head", [b"", b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n"], ids=["silent", "trickles"]
    )
    async def test_the_real_transport_gives_up_in_time(self, head: bytes) -> None:
        async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readuntil(b"\r\n\r\n")  # an answer that comes before the request is a broken connection
            writer.write(head)
            try:
                while not reader.at_eof():
                    writer.write(b" " if head else b"")
                    await writer.drain()
                    await asyncio.sleep(0.02)
            except ConnectionError:
                return
            finally:
                writer.close()

        server = await asyncio.start_server(answer, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        chosen = settings(f"http://127.0.0.1:{port}", allegro_timeout_seconds=0.3)
        async with open_http(chosen) as http:
            client = AllegroClient(http, chosen, Vault(), Limits(), NO_OUTAGE, Clock())  # type: ignore[arg-type]
            with pytest.raises(AllegroTimeoutError, match=r"no answer within 0\.3 s"):
                await client.me(7)
        server.close()

    @pytest.mark.parametrize(
        "answer",
        [
            b"",
            b"rubbish\r\n\r\n",
            b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{",
            b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: 3\r\n\r\nabc",
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nZZ\r\n",
            b"HTTP/1.1 302 Found\r\nLocation: https://elsewhere.example/\r\nContent-Length: 0\r\n\r\n",
        ],
    )
    async def test_the_real_transport_turns_rubbish_into_an_outage(self, answer: bytes) -> None:
        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readuntil(b"\r\n\r\n")
            writer.write(answer)
            writer.close()

        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        chosen = settings(f"http://127.0.0.1:{port}")

        async def no_pause(_seconds: float) -> None:
            return

        async with open_http(chosen) as http:
            client = AllegroClient(http, chosen, Vault(), Limits(), NO_OUTAGE, Clock(), sleep=no_pause)  # type: ignore[arg-type]
            with pytest.raises(AllegroUnavailableError):
                await client.me(7)
        server.close()

    async def test_a_proxy_of_the_environment_is_not_used(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
        monkeypatch.setenv("ALL_PROXY", "http://127.0.0.1:9")
        served = asyncio.Event()

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readuntil(b"\r\n\r\n")
            served.set()
            writer.write(b'HTTP/1.1 200 OK\r\nContent-Length: 23\r\n\r\n{"id":"1","login":"me"}')
            writer.close()

        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        chosen = settings(f"http://127.0.0.1:{port}")
        async with open_http(chosen) as http:
            client = AllegroClient(http, chosen, Vault(), Limits(), NO_OUTAGE, Clock())  # type: ignore[arg-type]
            seller = await client.me(7)
        server.close()

        assert served.is_set()
        assert seller == Seller("1", "me")
