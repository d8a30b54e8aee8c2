"""How often a key may call: a bucket of tokens for each. Pure; the clock is given."""

from dataclasses import dataclass

_MINUTE = 60.0


@dataclass(frozen=True)
class Standing:
    """What is left of a key's allowance after a call. Times in seconds.

    `whole_in`: until nothing is used up. `retry_after`: until the next call is allowed; 0 where this one was.
    """

    limit: int
    remaining: int
    whole_in: float
    retry_after: float

    @property
    def is_allowed(self) -> bool:
        return self.retry_after == 0

    def headers(self) -> list[tuple[bytes, bytes]]:
        """The fields of draft-ietf-httpapi-ratelimit-headers (from version 08 on)."""
        left = f'"minute";r={self.remaining};t={_whole(self.whole_in)}'
        return [(b"ratelimit-policy", b'"minute";q=%d;w=60' % self.limit), (b"ratelimit", left.encode())]


@dataclass
class _Bucket:
    tokens: float
    at: float


class Rates:
    """The allowances that one process grants: a minute's worth at once, and then as it comes back, evenly."""

    def __init__(self) -> None:
        self._buckets: dict[str, _Bucket] = {}

    def take(self, name: str, limit: int, now: float) -> Standing:
        """Count a call of this name if it is allowed; `limit`: calls a minute, `now`: seconds of a rising clock."""
        bucket = self._buckets.setdefault(name, _Bucket(limit, now))
        bucket.tokens = min(limit, bucket.tokens + (now - bucket.at) * limit / _MINUTE)
        bucket.at = now
        missing = max(0.0, 1 - bucket.tokens)
        if not missing:
            bucket.tokens -= 1
        each = _MINUTE / limit
        return Standing(limit, int(bucket.tokens), (limit - bucket.tokens) * each, missing * each)


def _whole(seconds: float) -> int:
    return -int(-seconds // 1)
