"""Who may ask how often. Pure: time is passed in, in seconds.

The client id has a real minute that slides, and a block that requests prolong (section 6). The others are leaky
buckets (tutorials: "per user.id leaky bucket"); their numbers are not Allegro's but the usual settings of its clients.
"""

from collections import deque
from collections.abc import Mapping

_SLICES = 60


class ClientLimit:
    """At most `limit` requests in any minute; over it, blocked for a minute since the last request (#3454)."""

    def __init__(self, limit: int, minute_seconds: float) -> None:
        self._limit = limit
        self._minute = minute_seconds
        self._slice_seconds = minute_seconds / _SLICES
        self._slices: deque[list[int]] = deque()
        self._sum = 0
        self._blocked_until = 0.0

    def wait_seconds(self, now: float) -> float:
        """Count a request; 0 if it is allowed, else the seconds until the block would end."""
        if not self._limit:
            return 0.0
        if now < self._blocked_until or self._count(now) > self._limit:
            self._blocked_until = now + self._minute
            self._slices.clear()
            self._sum = 0
            return self._minute
        return 0.0

    @property
    def remaining(self) -> int | None:
        """None: no limit."""
        return max(0, self._limit - self._sum) if self._limit else None

    def _count(self, now: float) -> int:
        current = int(now / self._slice_seconds)
        while self._slices and self._slices[0][0] <= current - _SLICES:
            self._sum -= self._slices.popleft()[1]
        if self._slices and self._slices[-1][0] == current:
            self._slices[-1][1] += 1
        else:
            self._slices.append([current, 1])
        self._sum += 1
        return self._sum


class Bucket:
    """A leaky bucket that holds a minute's requests; a refused request does not fill it."""

    __slots__ = ("_at", "_level", "_limit", "_per_second")

    def __init__(self, limit: int, minute_seconds: float) -> None:
        self._limit = limit
        self._per_second = limit / minute_seconds
        self._level = 0.0
        self._at = 0.0

    def wait_seconds(self, now: float) -> float:
        """Count a request; 0 if it is allowed, else the seconds until one would be."""
        self._level = max(0.0, self._level - (now - self._at) * self._per_second)
        self._at = now
        if self._level + 1 > self._limit:
            return (self._level + 1 - self._limit) / self._per_second
        self._level += 1
        return 0.0

    @property
    def remaining(self) -> int:
        return max(0, int(self._limit - self._level))


class Limits:
    """All limits of a server, by who asks."""

    def __init__(self, client_limit: int, per_endpoint: Mapping[str, int], minute_seconds: float) -> None:
        self._client_limit = client_limit
        self._per_endpoint = per_endpoint
        self._minute = minute_seconds
        self._clients: dict[str, ClientLimit] = {}
        self._buckets: dict[tuple[str, str], Bucket] = {}

    def client(self, client_id: str) -> ClientLimit:
        limit = self._clients.get(client_id)
        if limit is None:
            limit = self._clients[client_id] = ClientLimit(self._client_limit, self._minute)
        return limit

    def bucket(self, endpoint: str, owner: str) -> Bucket | None:
        """The bucket of a seller or client id at an endpoint; None if that endpoint has no limit of its own."""
        per_minute = self._per_endpoint.get(endpoint, 0)
        if not per_minute:
            return None
        key = (endpoint, owner)
        bucket = self._buckets.get(key)
        if bucket is None:
            bucket = self._buckets[key] = Bucket(per_minute, self._minute)
        return bucket
