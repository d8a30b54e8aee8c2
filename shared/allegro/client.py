"""Calls of one seller: limits, token, request, errors in our words; the one layer that refreshes and retries."""

import asyncio
import logging
import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from email.utils import parsedate_to_datetime
from typing import TypeVar
from urllib.parse import quote

import httpx

from shared.allegro import bodies, metrics
from shared.allegro.bodies import FetchedOrder, JournalEvent, OrderPage, UnreadableBodyError
from shared.allegro.errors import (
    AllegroUnavailableError,
    RateLimitedError,
    ReauthorizationRequiredError,
    UnauthorizedError,
    from_answer,
)
from shared.allegro.oauth import retry_after
from shared.clock import Clock
from shared.messages import utc
from shared.request_limits import Endpoint, RequestLimits, Traffic
from shared.settings import AllegroSettings
from shared.token_vault import Bearer, TokenVault

logger = logging.getLogger(__name__)

_ATTEMPTS = 3
_FIRST_BACKOFF_SECONDS = 0.5
# Where a 429 states no time (none was ever seen to, allegro-api.md 6): the block lasts a minute.
_DEFAULT_BLOCK = timedelta(seconds=60)

_Result = TypeVar("_Result")


@dataclass(frozen=True)
class JournalPage:
    """A page of the journal, and by how much Allegro's clock was ahead of ours when it answered."""

    events: tuple[JournalEvent, ...]
    received_at: datetime
    clock_ahead: timedelta | None


@dataclass(frozen=True)
class Seller:
    """Who a token belongs to."""

    id: str
    login: str


@dataclass(frozen=True)
class _Answer:
    body: bytes
    requested_at: datetime
    received_at: datetime
    date: datetime | None


class AllegroClient:
    """The API endpoints that we use. Every call raises the errors of shared.allegro.errors."""

    def __init__(
        self,
        http: httpx.AsyncClient,
        settings: AllegroSettings,
        vault: TokenVault,
        limits: RequestLimits,
        clock: Clock,
    ) -> None:
        self._http = http
        self._url = settings.api_url
        self._minute = settings.allegro_limit_minute_seconds
        self._vault = vault
        self._limits = limits
        self._clock = clock

    async def events(self, token_id: int, *, after: int, limit: int = 1000, traffic: Traffic = "live") -> JournalPage:
        """The journal after a position, which is excluded; no filter by type: the forms Allegro takes vary (#3875)."""
        params = {"from": str(after), "limit": str(limit)}
        answer = await self._get(token_id, Endpoint.EVENTS, "/order/events", params, traffic)
        events = _read(lambda: bodies.journal_events(answer.body), Endpoint.EVENTS)
        ahead = None if answer.date is None else answer.date - answer.received_at
        return JournalPage(events, answer.received_at, ahead)

    async def latest_event_id(self, token_id: int, *, traffic: Traffic = "live") -> int | None:
        """The end of the journal, or None where it is empty."""
        answer = await self._get(token_id, Endpoint.EVENTS, "/order/event-stats", {}, traffic)
        return _read(lambda: bodies.latest_event_id(answer.body), Endpoint.EVENTS)

    async def list_orders(
        self,
        token_id: int,
        *,
        bought_from: datetime,
        bought_to: datetime,
        offset: int = 0,
        limit: int = 100,
        traffic: Traffic,
    ) -> OrderPage:
        """A page of orders by ascending time of purchase; both bounds are included."""
        params = {
            "lineItems.boughtAt.gte": utc(bought_from),
            "lineItems.boughtAt.lte": utc(bought_to),
            "sort": "lineItems.boughtAt",
            "limit": str(limit),
            "offset": str(offset),
        }
        answer = await self._get(token_id, Endpoint.LIST, "/order/checkout-forms", params, traffic)
        return _read(lambda: bodies.order_list(answer.body, requested_at=answer.requested_at), Endpoint.LIST)

    async def order(self, token_id: int, order_id: str, *, traffic: Traffic) -> FetchedOrder:
        """One order as it is now; raises OrderNotFoundError."""
        path = f"/order/checkout-forms/{quote(order_id, safe='')}"
        answer = await self._get(token_id, Endpoint.DETAIL, path, {}, traffic)
        order = _read(lambda: bodies.listed_order(answer.body), Endpoint.DETAIL)
        if order.order_id != order_id:
            raise AllegroUnavailableError("the answer shows another order than the one asked for").at("detail", 200)
        return FetchedOrder(order, answer.requested_at)

    async def me(self, token_id: int, *, traffic: Traffic = "live") -> Seller:
        """The seller's id and login; needs the scope allegro:api:profile:read (#9955)."""
        answer = await self._get(token_id, Endpoint.ME, "/me", {}, traffic)
        return Seller(*_read(lambda: bodies.seller(answer.body), Endpoint.ME))

    async def _get(
        self, token_id: int, endpoint: Endpoint, path: str, params: dict[str, str], traffic: Traffic
    ) -> _Answer:
        """Call with what may go away repeated: 5xx after a pause, a timeout at once, three attempts in all (E2)."""
        attempt = 1
        while True:
            try:
                return await self._authorised(token_id, endpoint, path, params, traffic)
            except RateLimitedError as error:
                await self._limits.block(error.retry_after or _DEFAULT_BLOCK * (self._minute / 60.0))
                raise
            except AllegroUnavailableError as error:
                if attempt == _ATTEMPTS:
                    raise
                logger.warning("Allegro is unavailable", extra={"error": str(error), "attempt": attempt})
                if error.status is not None:
                    await asyncio.sleep(random.uniform(0, _FIRST_BACKOFF_SECONDS * 2**attempt))  # noqa: S311 - jitter
                attempt += 1

    async def _authorised(
        self, token_id: int, endpoint: Endpoint, path: str, params: dict[str, str], traffic: Traffic
    ) -> _Answer:
        """Call; on a 401 refresh once and call again. A fresh token that is refused means: unlinked (#13133)."""
        # The wait comes first: a token is decrypted only when its call can go out.
        await self._limits.acquire(endpoint, token_id=token_id, traffic=traffic)
        bearer = await self._vault.access_token(token_id)
        try:
            return await self._request(bearer, endpoint, path, params)
        except UnauthorizedError:
            bearer = await self._vault.refresh(token_id, seen_generation=bearer.generation)
        await self._limits.acquire(endpoint, token_id=token_id, traffic=traffic)
        try:
            return await self._request(bearer, endpoint, path, params)
        except UnauthorizedError as error:
            reason = f"Allegro refused a token it had just issued ({error}): the seller has withdrawn consent"
            await self._vault.require_consent(token_id, reason)
            raise ReauthorizationRequiredError(reason) from error

    async def _request(self, bearer: Bearer, endpoint: Endpoint, path: str, params: dict[str, str]) -> _Answer:
        requested_at = self._clock.now()
        started = time.perf_counter()
        try:
            response = await self._http.get(
                self._url + path, params=params, headers={"Authorization": f"Bearer {bearer.secret.reveal()}"}
            )
        except httpx.HTTPError as failure:
            metrics.requests.labels(endpoint.value, type(failure).__name__).inc()
            # `from None`: the driver's exception holds the request, and the request holds the token.
            raise AllegroUnavailableError(f"no answer: {type(failure).__name__}").at(endpoint.value) from None
        metrics.request_seconds.labels(endpoint.value).observe(time.perf_counter() - started)
        metrics.requests.labels(endpoint.value, str(response.status_code)).inc()
        if response.status_code == httpx.codes.OK:
            return _Answer(response.content, requested_at, self._clock.now(), _date(response.headers))
        error = from_answer(
            endpoint.value,
            response.status_code,
            response.content,
            trace_id=response.headers.get("Trace-Id"),
            retry_after=retry_after(response.headers),
        )
        logger.info("Allegro refused a call", extra={"error": str(error)})
        raise error


def _read(read: Callable[[], _Result], endpoint: Endpoint) -> _Result:
    """A body that breaks Allegro's contract is Allegro's trouble, not the order's: it may be whole next time."""
    try:
        return read()
    except UnreadableBodyError as error:
        raise AllegroUnavailableError(f"unreadable answer: {error}").at(endpoint.value, 200) from error


def _date(headers: httpx.Headers) -> datetime | None:
    value = headers.get("Date")
    if value is None:
        return None
    try:
        return parsedate_to_datetime(value)
    except ValueError:
        return None
