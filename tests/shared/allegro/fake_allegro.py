"""A tiny Allegro on a loopback port: rotating refresh tokens with grace, calls that tests may hold, lose or refuse."""

import asyncio
import base64
import itertools
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from aiohttp import web
from aiohttp.test_utils import TestServer

from shared.allegro.oauth import TokenPair
from shared.encryption import Secret
from tests.canary import a_secret

SELLER = "111578773"

Hook = Callable[[], Awaitable[None]]
Refusal = Callable[[web.Request], web.Response | None]


async def _pass() -> None:
    return


def a_jwt(name: str, number: int) -> str:
    """A token of the look of Allegro's, with a body that a search in logs and tables can find."""
    claims = json.dumps({"user_name": SELLER, "jti": f"{name}-{number}", "scope": ["allegro:api:orders:read"]})
    return ".".join(
        base64.urlsafe_b64encode(part.encode()).decode().rstrip("=")
        for part in ('{"alg":"RS256"}', claims, "signature")
    ) + a_secret(name)


@dataclass
class FakeAllegro:
    """One seller's tokens, and the device codes that the seller `consented` to. `url` is there while it runs.

    `on_received` is awaited when a token request has come in, `on_exchanged` when its pair has been issued and before
    it is sent; `lose` drops the connection instead of answering so many token requests; `refuse` may answer instead.
    """

    grace_seconds: float = 60.0
    expires_in: int = 43199
    url: str = ""
    refreshes: int = 0
    token_requests: int = 0
    lose: int = 0
    unlinked: bool = False
    old_access_dies: bool = True
    on_received: Hook = _pass
    on_exchanged: Hook = _pass
    refuse: Refusal = lambda _request: None
    consented: set[str] = field(default_factory=set)
    codes_used: int = 0
    calls: list[tuple[float, str]] = field(default_factory=list)
    _numbers: "itertools.count[int]" = field(default_factory=lambda: itertools.count(1))
    _access: set[str] = field(default_factory=set)
    _refresh: dict[str, float | None] = field(default_factory=dict)

    def issue(self) -> tuple[str, str]:
        """A new pair that works."""
        number = next(self._numbers)
        access, refresh = a_jwt("access", number), a_jwt("refresh", number)
        if self.old_access_dies:
            self._access.clear()
        self._access.add(access)
        self._refresh[refresh] = None
        return access, refresh

    def pair(self, *, expires_in: int | None = None) -> TokenPair:
        """A new pair as the product knows it."""
        access, refresh = self.issue()
        return TokenPair(Secret(access), Secret(refresh), expires_in or self.expires_in, (), SELLER)

    def revoke_access(self) -> None:
        """Every access token dies, the refresh tokens live: what a log-out everywhere looks like."""
        self._access.clear()

    def revoke_all(self) -> None:
        self._access.clear()
        self._refresh.clear()

    @asynccontextmanager
    async def running(self) -> AsyncIterator["FakeAllegro"]:
        application = web.Application()
        application.router.add_post("/auth/oauth/token", self._token)
        application.router.add_get("/{path:.*}", self._api)
        server = TestServer(application)
        await server.start_server()
        self.url = str(server.make_url("")).rstrip("/")
        try:
            yield self
        finally:
            await server.close()

    async def _token(self, request: web.Request) -> web.StreamResponse:
        self.token_requests += 1
        form = await request.post()
        await self.on_received()
        refusal = self.refuse(request)
        if refusal is not None:
            return refusal
        if "device_code" in form:
            return await self._consented(request, str(form["device_code"]))
        token = str(form["refresh_token"])
        now = time.monotonic()
        spent_at = self._refresh.get(token, 0.0)
        if token not in self._refresh or (spent_at is not None and now - spent_at > self.grace_seconds):
            return web.json_response(
                {"error": "invalid_grant", "error_description": f"Invalid refresh token: {token}"}, status=400
            )
        if spent_at is None:
            self._refresh[token] = now
        self.refreshes += 1
        return await self._pair(request)

    async def _consented(self, request: web.Request, device_code: str) -> web.StreamResponse:
        """Tokens, once (#11373)."""
        if device_code not in self.consented:
            return web.json_response(
                {"error": "invalid_request", "error_description": "Invalid device code"}, status=400
            )
        self.consented.discard(device_code)
        self.codes_used += 1
        return await self._pair(request)

    async def _pair(self, request: web.Request) -> web.StreamResponse:
        access, refresh = self.issue()
        await self.on_exchanged()
        if self.lose:
            self.lose -= 1
            assert request.transport is not None
            request.transport.close()
        return web.json_response(
            {"access_token": access, "refresh_token": refresh, "expires_in": self.expires_in, "token_type": "bearer"}
        )

    async def _api(self, request: web.Request) -> web.StreamResponse:
        self.calls.append((time.monotonic(), request.path))
        refusal = self.refuse(request)
        if refusal is not None:
            return refusal
        token = request.headers.get("Authorization", "").removeprefix("Bearer ")
        headers = {"Trace-Id": "trace-1"}
        if self.unlinked or token not in self._access:
            return web.json_response(
                {"error": "invalid_token", "error_description": f"Access token expired: {token}"},
                status=401,
                headers=headers,
            )
        return web.json_response({"id": SELLER, "login": "shop", "events": [], "latestEvent": None}, headers=headers)


class Gate:
    """A point where a call is held: `reached` tells that it is there, `open` lets it go on."""

    def __init__(self) -> None:
        self.reached = asyncio.Event()
        self._opened = asyncio.Event()

    async def hold(self) -> None:
        self.reached.set()
        await self._opened.wait()

    def open(self) -> None:
        self._opened.set()
