"""When an order whose look failed is tried again. Pure."""

from datetime import timedelta

_FIRST = timedelta(seconds=30)
_LONGEST = timedelta(hours=6)
# Nothing but a person helps: a scope of the application is missing.
RETRY_WITHOUT_ACCESS = timedelta(hours=1)


def retry_delay(attempts: int, *, jitter: float) -> timedelta:
    """How long to wait after this many attempts: doubling, capped; `jitter` (0..1) moves it within the upper half."""
    delay = min(_FIRST * float(2 ** min(attempts - 1, 20)), _LONGEST)
    return delay * (0.5 + jitter / 2)
