"""Device flow and refresh at the edge: what is sent, and what each answer means (A1, A2, A6)."""

import asyncio
import base64
import json
from typing import Any
from urllib.parse import parse_qs

import httpx
import pytest

from shared.allegro.errors import (
    AllegroUnavailableError,
    AuthorizationEndedError,
    AuthorizationPendingError,
    InvalidClientError,
    InvalidGrantError,
    NotPermittedError,
    RateLimitedError,
    RequestRejectedError,
    SlowDownError,
)
from shared.allegro.http import open_http
from shared.allegro.oauth import AllegroOAuth, DeviceCode, TokenPair, seller_of
from shared.encryption import Secret
from shared.request_limits import Endpoint
from tests.canary import a_secret
from tests.shared.allegro.builders import settings
from tests.shared.allegro.fake_allegro import SELLER, a_jwt
from tests.shared.allegro.test_client import Limits

STARTED: dict[str, Any] = {
    "device_code": "qeRK87eUwzFVT1AdEygGRxsFEO5ZDVXn",
    "user_code": "bhmg4lm1i",
    "expires_in": 3600,
    "interval": 5,
    "verification_uri": "https://allegro.pl/skojarz-aplikacje",
    "verification_uri_complete": "https://allegro.pl/skojarz-aplikacje?code=bhmg4lm1i",
}
ACCESS, REFRESH = a_jwt("access", 1), a_jwt("refresh", 1)
ISSUED: dict[str, Any] = {
    "access_token": ACCESS,
    "refresh_token": REFRESH,
    "scope": "allegro:api:orders:read allegro:api:profile:read",
    "token_type": "bearer",
    "expires_in": 43198,
    "jti": "x",
}


class Edge:
    """An authorisation server that always gives this answer."""

    def __init__(self, status: int, body: Any, limits: Limits | None = None, /, **headers: str) -> None:
        self.requests: list[httpx.Request] = []
        self.limits = limits or Limits()
        content = body if isinstance(body, bytes) else json.dumps(body).encode()

        def answer(request: httpx.Request) -> httpx.Response:
            self.requests.append(request)
            return httpx.Response(status, content=content, headers=headers)

        chosen = settings("https://auth.example")
        http = open_http(chosen, transport=httpx.MockTransport(answer))
        self.oauth = AllegroOAuth(http, chosen, self.limits)  # type: ignore[arg-type]

    @property
    def form(self) -> dict[str, list[str]]:
        return parse_qs(self.requests[0].content.decode())

    async def poll(self) -> TokenPair:
        return await self.oauth.poll_device_code(Secret("the-code"))

    async def refresh(self) -> TokenPair:
        return await self.oauth.refresh(Secret("spent"))


class Block(Limits):
    """Lets nothing through, or fails as PostgreSQL does."""

    def __init__(self, error: Exception | None = None) -> None:
        super().__init__()
        self._error = error

    async def acquire(self, endpoint: Endpoint, *, token_id: int | None, traffic: str) -> None:
        if self._error is not None:
            raise self._error
        await asyncio.Event().wait()


class TestPermission:
    async def test_what_is_not_permitted_in_time_is_not_asked(self) -> None:
        edge = Edge(200, ISSUED, Block())

        with pytest.raises(NotPermittedError, match=r"within 0.01 s \[token\]"):
            await edge.oauth.poll_device_code(Secret("the-code"), patience_seconds=0.01)

        assert edge.requests == []

    async def test_a_database_that_does_not_answer_in_time_is_told_as_such(self) -> None:
        edge = Edge(200, ISSUED, Block(TimeoutError("of the pool")))

        with pytest.raises(TimeoutError, match="of the pool"):
            await edge.oauth.poll_device_code(Secret("the-code"), patience_seconds=5)


class TestStart:
    async def test_a_code_is_asked_for_as_our_app(self) -> None:
        edge = Edge(200, STARTED)

        code = await edge.oauth.start_device_flow()

        sent = edge.requests[0]
        assert code == DeviceCode(
            Secret("qeRK87eUwzFVT1AdEygGRxsFEO5ZDVXn"),
            "bhmg4lm1i",
            "https://allegro.pl/skojarz-aplikacje",
            "https://allegro.pl/skojarz-aplikacje?code=bhmg4lm1i",
            3600,
            5,
        )
        assert str(sent.url) == "https://auth.example/auth/oauth/device"
        assert (
            base64.b64decode(sent.headers["Authorization"].removeprefix("Basic "))
            == f"our-app:{a_secret('client')}".encode()
        )
        assert sent.headers["Content-Type"] == "application/x-www-form-urlencoded"
        assert edge.form == {"client_id": ["our-app"]}
        assert edge.limits.acquired == [(Endpoint.DEVICE, None, "live")]

    async def test_numbers_may_be_strings_as_in_the_documentation(self) -> None:
        code = await Edge(200, STARTED | {"expires_in": "3600", "interval": "7"}).oauth.start_device_flow()

        assert (code.expires_in, code.interval) == (3600, 7)

    @pytest.mark.parametrize("missing", ["device_code", "user_code", "verification_uri", "expires_in"])
    async def test_an_answer_that_lacks_something_is_an_outage_and_is_not_quoted(self, missing: str) -> None:
        for body in ({**STARTED, missing: None}, {k: v for k, v in STARTED.items() if k != missing}):
            if missing != "expires_in" and body.get(missing, 0) is None:
                continue
            with pytest.raises(AllegroUnavailableError) as raised:
                await Edge(200, body).oauth.start_device_flow()
            assert "qeRK" not in str(raised.value)

    @pytest.mark.parametrize("body", [b"<html>captcha</html>", {"url": "https://geo.captcha-delivery.com/x"}])
    async def test_bot_protection_is_an_outage(self, body: Any) -> None:
        with pytest.raises(AllegroUnavailableError):
            await Edge(403, body).oauth.start_device_flow()


class TestPoll:
    async def test_consent_brings_a_pair_with_seller_and_scopes(self) -> None:
        edge = Edge(200, ISSUED)

        pair = await edge.poll()

        assert pair == TokenPair(
            Secret(ACCESS),
            Secret(REFRESH),
            43198,
            ("allegro:api:orders:read", "allegro:api:profile:read"),
            SELLER,
        )
        assert edge.form == {
            "grant_type": ["urn:ietf:params:oauth:grant-type:device_code"],
            "device_code": ["the-code"],
        }
        assert edge.limits.acquired == [(Endpoint.TOKEN, None, "live")]

    @pytest.mark.parametrize(
        ("code", "expected"), [("authorization_pending", AuthorizationPendingError), ("slow_down", SlowDownError)]
    )
    async def test_the_seller_has_not_decided(self, code: str, expected: type[Exception]) -> None:
        with pytest.raises(expected):
            await Edge(400, {"error": code, "error_description": "d"}).poll()

    @pytest.mark.parametrize(
        ("code", "reason"),
        [
            ("access_denied", "denied"),
            ("expired_token", "expired"),
            ("invalid_request", "code_used"),
            ("invalid_grant", "code_used"),
            ("something_new", "code_used"),
        ],
    )
    async def test_the_flow_is_over_with_a_reason_and_a_sentence_for_a_person(self, code: str, reason: str) -> None:
        with pytest.raises(AuthorizationEndedError) as raised:
            await Edge(400, {"error": code, "error_description": "Invalid device code"}).poll()

        assert raised.value.reason == reason
        assert str(raised.value).endswith(".")
        assert "[" not in str(raised.value)

    @pytest.mark.parametrize("status", [400, 403, 404, 500, 502, 503, 504])
    async def test_html_is_never_a_refusal(self, status: int) -> None:
        with pytest.raises(AllegroUnavailableError):
            await Edge(status, b"<html>down</html>").poll()

    async def test_captcha_json_is_never_a_refusal(self) -> None:
        with pytest.raises(AllegroUnavailableError):
            await Edge(403, {"url": "https://geo.captcha-delivery.com/captcha/"}).poll()


class TestRefresh:
    async def test_the_spent_token_is_sent_and_the_pair_read(self) -> None:
        edge = Edge(200, ISSUED)

        pair = await edge.refresh()

        assert pair.refresh_token == Secret(REFRESH)
        assert edge.form == {"grant_type": ["refresh_token"], "refresh_token": ["spent"]}

    @pytest.mark.parametrize(
        ("status", "error", "expected"),
        [
            (400, "invalid_grant", InvalidGrantError),
            (400, "invalid_client", InvalidClientError),
            (401, "invalid_client", InvalidClientError),
            (401, "Unauthorized", InvalidClientError),
        ],
    )
    async def test_refusals_tell_the_seller_from_our_app(
        self, status: int, error: str, expected: type[Exception]
    ) -> None:
        with pytest.raises(expected) as raised:
            await Edge(status, {"error": error, "error_description": f"Invalid refresh token: {REFRESH}"}).refresh()

        assert "eyJ" not in str(raised.value)

    @pytest.mark.parametrize(
        ("status", "error"),
        [
            (400, "access_denied"),
            (403, "access_denied"),
            (400, "expired_token"),
            (400, "authorization_pending"),
            (400, "slow_down"),
        ],
    )
    async def test_the_words_of_the_device_flow_are_no_verdict_on_a_refresh(self, status: int, error: str) -> None:
        with pytest.raises(RequestRejectedError) as raised:
            await Edge(status, {"error": error, "error_description": REFRESH}).refresh()

        assert raised.value.status == status
        assert "eyJ" not in str(raised.value)

    async def test_a_429_stops_everybody(self) -> None:
        edge = Edge(429, b"", **{"Retry-After": "30"})

        with pytest.raises(RateLimitedError):
            await edge.refresh()

        assert [block.total_seconds() for block in edge.limits.blocks if block] == [30]

    @pytest.mark.parametrize(
        "body",
        [b"", b"[]", b"null", b"<html>", {}, {"access_token": "a"}, {"access_token": "a", "refresh_token": None}],
    )
    async def test_an_unreadable_success_is_a_lost_answer(self, body: Any) -> None:
        with pytest.raises(AllegroUnavailableError):
            await Edge(200, body).refresh()

    @pytest.mark.parametrize("expires_in", [None, "soon", -5, 0, 10**12, {}, "NaN", 1e400])
    async def test_a_strange_lifetime_does_not_cost_the_pair(self, expires_in: Any) -> None:
        body = json.dumps(ISSUED | {"expires_in": expires_in}).replace("Infinity", "0").encode()

        assert (await Edge(200, body).refresh()).expires_in == 12 * 3600


@pytest.mark.parametrize("token", ["", "opaque", "a.b", "a.!!!.c", f"a.{base64.b64encode(b'[1]').decode()}.c", "a.ė.c"])
def test_a_token_that_says_nothing_has_an_unknown_seller(token: str) -> None:
    assert seller_of(Secret(token)) is None
