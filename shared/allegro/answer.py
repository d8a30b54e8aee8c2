"""What Allegro answered, and what its headers tell."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta


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
        """The wait that the answer asks for; only the form in seconds (RFC 9110, 10.2.3) is of use to us."""
        value = self.headers.get("Retry-After", "")
        return timedelta(seconds=int(value)) if value.isascii() and value.isdigit() and len(value) < 7 else None

    @property
    def remaining(self) -> int | None:
        """`X-RateLimit-Remaining`, seen in 2018 and 2019 (#589)."""
        value = self.headers.get("X-RateLimit-Remaining", "")
        return int(value) if value.isascii() and value.isdigit() and len(value) < 10 else None
