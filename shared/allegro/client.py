"""Calls of one seller: limits, token, request, errors in our words; the one layer that refreshes and retries."""

import asyncio
import logging
import random
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from typing import TypeVar
from urllib.parse import quote

import httpx

from shared.allegro import bodies
from shared.allegro.answer import Answer
from shared.allegro.bodies import FetchedOrder, JournalEvent, OrderPage, UnreadableBodyError, UnreadablePart
from shared.allegro.errors import (
    AllegroTimeoutError,
    AllegroUnavailableError,
    OrderNotFoundError,
    RateLimitedError,
    ReauthorizationRequiredError,
    UnauthorizedError,
    from_answer,
)
from shared.allegro.http import MAX_ANSWER_BYTES, AllegroHttp, exchange
from shared.allegro.outage import Outage
from shared.allegro.tally import note_request
from shared.clock import Clock
from shared.messages import utc
from shared.request_limits import Endpoint, RequestLimits, Traffic
from shared.settings import AllegroSettings
from shared.token_vault import Bearer, TokenVault

logger = logging.getLogger(__name__)

_ATTEMPTS = 3
_FIRST_BACKOFF_SECONDS = 0.5
# A permission that is older may be one of a minute that is over.
_PERMISSION_SECONDS = 5.0
# What cannot be asked for in smaller pieces may be larger, so that it is known what it is.
_MAX_SINGLE_BYTES = 2 * MAX_ANSWER_BYTES

_Result = TypeVar("_Result")


@dataclass(frozen=True)
class JournalPage:
    """A page of the journal, and by how much Allegro's clock was ahead of ours when it answered."""

    events: tuple[JournalEvent, ...]
    received_at: datetime
    clock_ahead: timedelta | None
    unreadable: tuple[UnreadablePart, ...] = ()


@dataclass(frozen=True)
class JournalEnd:
    """The journal's last event, None where Allegro tells of none, and when that was: by its clock, if it told."""

    event_id: int | None
    at: datetime


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
    headers: Mapping[str, str]
    trace_id: str | None


class AllegroClient:
    """The API endpoints that we use. Every call raises the errors of shared.allegro.errors.

    `live` traffic goes before `bulk` and has a part of the client id's allowance for itself (ALLEGRO_LIVE_SHARE).
    """

    def __init__(
        self,
        http: AllegroHttp,
        settings: AllegroSettings,
        vault: TokenVault,
        limits: RequestLimits,
        outage: Outage,
        clock: Clock,
        *,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._http = http
        self._url = settings.api_url
        self._timeout_seconds = settings.allegro_timeout_seconds
        self._vault = vault
        self._limits = limits
        self._outage = outage
        self._clock = clock
        self._sleep = sleep
        self._monotonic = monotonic

    async def events(self, token_id: int, *, after: int, limit: int = 1000, traffic: Traffic = "live") -> JournalPage:
        """The journal after a position, which is excluded; no filter by type: the forms Allegro takes vary (#3875).

        Raises AnswerTooLargeError if so many events are too much to read.
        """
        params = {"from": str(after), "limit": str(limit)}
        answer = await self._get(token_id, Endpoint.EVENTS, "/order/events", params, traffic)
        events, unreadable = _read(lambda: bodies.journal_events(answer.body), Endpoint.EVENTS, answer)
        date = _date(answer.headers)
        ahead = None if date is None else date - answer.received_at
        return JournalPage(events, answer.received_at, ahead, unreadable)

    async def journal_end(self, token_id: int, *, traffic: Traffic = "live") -> JournalEnd:
        """Where the journal ends."""
        answer = await self._get(token_id, Endpoint.STATS, "/order/event-stats", {}, traffic)
        event_id = _read(lambda: bodies.latest_event_id(answer.body), Endpoint.STATS, answer)
        return JournalEnd(event_id, _date(answer.headers) or answer.received_at)

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
        """A page of orders by ascending time of purchase; both bounds are included.

        Raises AnswerTooLargeError if so many orders are too much to read.
        """
        params = {
            "lineItems.boughtAt.gte": utc(bought_from),
            "lineItems.boughtAt.lte": utc(bought_to),
            "sort": "lineItems.boughtAt",
            "limit": str(limit),
            "offset": str(offset),
        }
        answer = await self._get(token_id, Endpoint.LIST, "/order/checkout-forms", params, traffic)
        return _read(lambda: bodies.order_list(answer.body, requested_at=answer.requested_at), Endpoint.LIST, answer)

    async def order(self, token_id: int, order_id: str, *, traffic: Traffic) -> FetchedOrder:
        """One order as it is now; raises OrderNotFoundError."""
        path = f"/order/checkout-forms/{quote(order_id, safe='')}"
        answer = await self._get(token_id, Endpoint.DETAIL, path, {}, traffic, order_id=order_id)
        order = _read(lambda: bodies.listed_order(answer.body), Endpoint.DETAIL, answer)
        if order.order_id != order_id:
            raise AllegroUnavailableError("the answer shows another order than the one asked for").at(
                Endpoint.DETAIL.value, 200, answer.trace_id
            )
        return FetchedOrder(order, answer.requested_at)

    async def me(self, token_id: int, *, traffic: Traffic = "live") -> Seller:
        """The seller's id and login; needs the scope allegro:api:profile:read (#9955)."""
        answer = await self._get(token_id, Endpoint.ME, "/me", {}, traffic)
        return Seller(*_read(lambda: bodies.seller(answer.body), Endpoint.ME, answer))

    async def _get(
        self,
        token_id: int,
        endpoint: Endpoint,
        path: str,
        params: dict[str, str],
        traffic: Traffic,
        order_id: str | None = None,
    ) -> _Answer:
        """Call with what may go away repeated: 5xx after a pause, a timeout at once, three attempts in all (E2)."""
        attempt = 1
        while True:
            try:
                return await self._authorised(token_id, endpoint, path, params, traffic, order_id)
            except AllegroUnavailableError as error:
                if attempt == _ATTEMPTS or error.endpoint != endpoint.value:
                    raise  # a refresh that did not succeed has its own pace
                logger.warning("Allegro is unavailable", extra={**_told(token_id, error), "attempt": attempt})
                if not isinstance(error, AllegroTimeoutError):
                    await self._sleep(backoff_seconds(attempt, jitter=random.random()))  # noqa: S311 - spreads load
                attempt += 1

    async def _authorised(
        self,
        token_id: int,
        endpoint: Endpoint,
        path: str,
        params: dict[str, str],
        traffic: Traffic,
        order_id: str | None = None,
    ) -> _Answer:
        """Call; on a 401 refresh once and call again. A fresh token that is refused means: unlinked (#13133)."""
        try:
            return await self._request(token_id, endpoint, path, params, traffic, order_id)
        except UnauthorizedError as error:
            logger.info("the access token was refused: refreshing", extra=_told(token_id, error))
            await self._vault.refresh(token_id, seen_generation=error.generation)
        try:
            return await self._request(token_id, endpoint, path, params, traffic, order_id)
        except UnauthorizedError as error:
            reason = f"Allegro refused a token it had just issued ({error}): the seller has withdrawn consent"
            if await self._vault.require_consent(token_id, reason, generation=error.generation):
                raise ReauthorizationRequiredError(reason).at(endpoint.value, error.status, error.trace_id) from error
            # Somebody refreshed again, or consented anew, while we called.
            raise AllegroUnavailableError("the token was replaced during the call").at(endpoint.value) from error

    async def _permitted(self, endpoint: Endpoint, token_id: int, traffic: Traffic) -> Bearer:
        """The token, once its call may go out: it is decrypted no earlier. A refresh may take long; the permission is
        old then, all of Allegro may be blocked, and another one is asked for."""
        while True:
            await self._limits.acquire(endpoint, token_id=token_id, traffic=traffic)
            permitted_at = self._monotonic()
            bearer = await self._vault.access_token(token_id)
            if self._monotonic() - permitted_at < _PERMISSION_SECONDS:
                return bearer

    async def _request(
        self,
        token_id: int,
        endpoint: Endpoint,
        path: str,
        params: dict[str, str],
        traffic: Traffic,
        order_id: str | None = None,
    ) -> _Answer:
        self._outage.check(token_id)
        bearer = await self._permitted(endpoint, token_id, traffic)
        requested_at = self._clock.now()
        try:
            with self._outage.call(token_id, order_id):
                answer = await self._call(endpoint, path, params, bearer)
        except OrderNotFoundError as error:
            error.requested_at = requested_at
            raise
        except UnauthorizedError as error:
            error.generation = bearer.generation
            raise
        except RateLimitedError as error:
            logger.warning("Allegro limits us", extra=_told(token_id, error))
            await self._limits.block(error.retry_after)
            raise
        if logger.isEnabledFor(logging.DEBUG):
            logger.debug(
                "called Allegro",
                extra={"token_id": token_id, "endpoint": endpoint.value, "trace_id": answer.trace_id},
            )
        return _Answer(answer.body, requested_at, self._clock.now(), answer.headers, answer.trace_id)

    async def _call(self, endpoint: Endpoint, path: str, params: dict[str, str], bearer: Bearer) -> Answer:
        """One request; raises what any answer but 200 stands for."""
        note_request()
        answer = await exchange(
            self._http,
            endpoint,
            "GET",
            self._url + path,
            timeout_seconds=self._timeout_seconds,
            params=params,
            headers={"Authorization": f"Bearer {bearer.secret.reveal()}"},
            max_bytes=_MAX_SINGLE_BYTES if params.get("limit", "1") == "1" else MAX_ANSWER_BYTES,
        )
        if answer.remaining is not None:
            self._limits.learn_remaining(answer.remaining)
        if answer.status != httpx.codes.OK:
            raise from_answer(
                endpoint.value,
                answer.status,
                answer.body,
                trace_id=answer.trace_id,
                retry_after=answer.retry_after,
            )
        return answer


def backoff_seconds(attempt: int, *, jitter: float) -> float:
    """How long to wait after a failed attempt (1, 2, ...): exponential, full jitter; `jitter` is between 0 and 1."""
    return _FIRST_BACKOFF_SECONDS * 2.0 ** (attempt - 1) * jitter


def _told(token_id: int, error: AllegroUnavailableError | RateLimitedError | UnauthorizedError) -> dict[str, object]:
    """What a log line tells of an error."""
    return {
        "token_id": token_id,
        "endpoint": error.endpoint,
        "status": error.status,
        "trace_id": error.trace_id,
        "error": str(error),
    }


def _read(read: Callable[[], _Result], endpoint: Endpoint, answer: _Answer) -> _Result:
    """A body that breaks Allegro's contract is Allegro's trouble, not the order's: it may be whole next time."""
    try:
        return read()
    except UnreadableBodyError as error:
        raise AllegroUnavailableError(f"unreadable answer: {error}").at(endpoint.value, 200, answer.trace_id) from error


def _date(headers: Mapping[str, str]) -> datetime | None:
    try:
        date = parsedate_to_datetime(headers.get("Date", ""))
    except (ValueError, TypeError, OverflowError):
        return None
    return date.replace(tzinfo=UTC) if date.tzinfo is None else date
