"""How much may be asked for, and what happens to who asks for more (allegro-api.md, section 6).

All limits are per minute; a minute is shorter when time is scaled. 0 means that there is no such limit.
"""

from collections import deque
from math import ceil
from typing import Final, Literal

import msgspec

from simulator.clock import SECOND_US, Clock
from simulator.settings import Settings

Endpoint = Literal["events", "event_stats", "list", "detail", "me", "device", "token"]
ENDPOINTS: Final[tuple[Endpoint, ...]] = ("events", "event_stats", "list", "detail", "me", "device", "token")

# The window slides in steps of a sixtieth of a minute.
_STEPS: Final = 60
# The only text that anybody has reported (#11152); the body around it is not known.
_TEXT: Final = "Przekroczono liczbę dozwolonej ilości zapytań na aplikację. Spróbuj ponownie za chwilę."
_BODY: Final = msgspec.json.encode(
    {
        "errors": [
            {
                "code": "TooManyRequests",
                "message": _TEXT,
                "details": None,
                "path": None,
                "userMessage": _TEXT,
                "metadata": {},
            }
        ]
    }
)


class PerMinute(msgspec.Struct, frozen=True, kw_only=True):
    """Requests a minute. The client's limit covers all its sellers and all API endpoints; the others are per token."""

    client: int = 9000
    events: int = 0
    event_stats: int = 0
    list: int = 0
    detail: int = 0
    me: int = 0
    # Per client: these have no token.
    device: int = 0
    token: int = 0


def per_minute(settings: Settings) -> PerMinute:
    """The limits that the flags ask for."""
    return PerMinute(
        client=settings.client_limit,
        events=settings.events_limit,
        list=settings.list_limit,
        detail=settings.detail_limit,
        device=settings.device_limit,
    )


class TooManyRequestsError(Exception):
    """429; `retry_after_seconds` only where the settings say that it is told."""

    def __init__(self, scope: Literal["client", "endpoint"], retry_after_seconds: int | None) -> None:
        super().__init__(f"too many requests of one {scope}")
        self.scope = scope
        self.retry_after_seconds = retry_after_seconds

    @property
    def body(self) -> bytes:
        return _BODY


class Window:
    """Counts what happened during the last minute."""

    __slots__ = ("_counts", "_step_us", "total")

    def __init__(self, minute_us: int) -> None:
        self._step_us = max(minute_us // _STEPS, 1)
        self._counts: deque[tuple[int, int]] = deque()
        self.total = 0

    def slide(self, now_us: int) -> None:
        oldest = now_us // self._step_us - _STEPS
        while self._counts and self._counts[0][0] <= oldest:
            self.total -= self._counts.popleft()[1]

    def add(self, now_us: int) -> None:
        step = now_us // self._step_us
        self.total += 1
        if self._counts and self._counts[-1][0] == step:
            self._counts[-1] = (step, self._counts[-1][1] + 1)
        else:
            self._counts.append((step, 1))

    def free_at_us(self) -> int:
        """When the oldest requests leave the window."""
        return (self._counts[0][0] + _STEPS + 1) * self._step_us if self._counts else 0


class Limits:
    """Counts requests and refuses those above the limits."""

    def __init__(self, settings: Settings, clock: Clock) -> None:
        self._clock = clock
        self._minute_us = round(settings.limit_minute_seconds * SECOND_US)
        self._tells_retry_after = settings.retry_after
        self.blocks = 0
        self.change(per_minute(settings))

    @property
    def per_minute(self) -> PerMinute:
        return self._per_minute

    def change(self, limits: PerMinute) -> None:
        """New limits, from a clean slate."""
        self._per_minute = limits
        self._clients: dict[str, Window] = {}
        self._endpoints: dict[tuple[str, Endpoint], Window] = {}
        self._blocked_until_us: dict[str, int] = {}
        self._endpoint_limits: dict[Endpoint, int] = {endpoint: getattr(limits, endpoint) for endpoint in ENDPOINTS}

    def check(self, client: str, caller: str, endpoint: Endpoint) -> None:
        """Count one request; `caller` is the token's seller, or the client where there is none.

        Raises TooManyRequestsError.
        """
        now_us = self._clock.now_us()
        if self._per_minute.client and endpoint not in ("device", "token"):
            self._check_client(client, now_us)
        limit = self._endpoint_limits[endpoint]
        if limit:
            window = self._endpoints.get((caller, endpoint))
            if window is None:
                window = self._endpoints[caller, endpoint] = Window(self._minute_us)
            window.slide(now_us)
            if window.total >= limit:
                raise TooManyRequestsError("endpoint", self._retry_after(window.free_at_us(), now_us))
            window.add(now_us)

    def _check_client(self, client: str, now_us: int) -> None:
        """Over the limit the client is blocked for a minute, and each call during the block prolongs it (#3454)."""
        until_us = self._blocked_until_us.get(client, 0)
        if now_us < until_us:
            self._block(client, now_us)
        window = self._clients.get(client)
        if window is None:
            window = self._clients[client] = Window(self._minute_us)
        window.slide(now_us)
        if window.total >= self._per_minute.client:
            self.blocks += 1
            del self._clients[client]
            self._block(client, now_us)
        window.add(now_us)

    def _block(self, client: str, now_us: int) -> None:
        until_us = now_us + self._minute_us
        self._blocked_until_us[client] = until_us
        raise TooManyRequestsError("client", self._retry_after(until_us, now_us))

    def remaining(self, client: str) -> int | None:
        """What `X-RateLimit-Remaining` said until about 2020; None without a limit."""
        if not self._per_minute.client:
            return None
        window = self._clients.get(client)
        return max(self._per_minute.client - (window.total if window else 0), 0)

    def _retry_after(self, until_us: int, now_us: int) -> int | None:
        return max(ceil((until_us - now_us) / SECOND_US), 1) if self._tells_retry_after else None
