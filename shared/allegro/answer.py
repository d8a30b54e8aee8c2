"""What Allegro answered, and what its headers tell."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from math import ceil

from shared.clock import SystemClock

# A longer wait (11 days) is taken for no statement at all.
_LONGEST_WAIT_SECONDS = 999_999
_SECONDS = re.compile(r"\d{1,6}(\.\d{1,9})?", re.ASCII)


@dataclass(frozen=True, slots=True)
class Answer:
    """A complete answer, unpacked; `headers` are found whatever their case."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def is_server_error(self) -> bool:
        return self.status // 100 == 5

    @property
    def trace_id(self) -> str | None:
        """What Allegro wants to be told in every report; the authorisation server sends none (#7999)."""
        return self.headers.get("Trace-Id")

    @property
    def retry_after(self) -> timedelta | None:
        """The wait that the answer asks for, in whole seconds, at least one: "now" would stop nobody.

        It is stated in seconds or as a date (RFC 9110, 10.2.3); None where nothing of use is.
        """
        value = self.headers.get("Retry-After", "").strip()
        seconds = float(value) if _SECONDS.fullmatch(value) else self._seconds_until(value)
        if seconds is None or seconds > _LONGEST_WAIT_SECONDS:
            return None
        return timedelta(seconds=max(ceil(seconds), 1))

    def _seconds_until(self, text: str) -> float | None:
        """Until a date, by the clock of whoever stated it, or by ours where the answer has no `Date`."""
        until = _date(text)
        if until is None:
            return None
        return (until - (_date(self.headers.get("Date", "")) or SystemClock().now())).total_seconds()

    @property
    def remaining(self) -> int | None:
        """`X-RateLimit-Remaining`, seen in 2018 and 2019 (#589)."""
        value = self.headers.get("X-RateLimit-Remaining", "")
        return int(value) if value.isascii() and value.isdigit() and len(value) < 10 else None


def _date(text: str) -> datetime | None:
    """A date in any of the three forms of RFC 9110, 5.6.7, all of which are in UTC."""
    try:
        moment = parsedate_to_datetime(text)
    except (ValueError, OverflowError):
        return None
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)
