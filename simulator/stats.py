"""How often what was asked and answered, and when an event was first seen by anybody."""

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any


class Stats:
    def __init__(self) -> None:
        self._first_served: dict[str, dict[int, int]] = {}
        self.reset()

    def reset(self) -> None:
        self._answers: Counter[tuple[str, int]] = Counter()
        self._by_client: Counter[str] = Counter()
        self._unanswered: Counter[str] = Counter()
        self._second = 0
        self._in_second = 0
        self._peak = 0

    def count(self, endpoint: str, status: int, now_us: int, *, answered: bool) -> None:
        self._answers[endpoint, status] += 1
        if not answered:
            self._unanswered[endpoint] += 1
        second = now_us // 1_000_000
        if second != self._second:
            self._second, self._in_second = second, 0
        self._in_second += 1
        self._peak = max(self._peak, self._in_second)

    def count_client(self, client_id: str) -> None:
        self._by_client[client_id] += 1

    def note_served(self, seller_id: str, event_ids: Iterable[int], now_us: int) -> None:
        """Remember when events were served, if it is for the first time."""
        known = self._first_served.setdefault(seller_id, {})
        for event_id in event_ids:
            known.setdefault(event_id, now_us)

    @property
    def first_served(self) -> Mapping[str, Mapping[int, int]]:
        """Microseconds since 1970 by seller and event."""
        return self._first_served

    def describe(self) -> dict[str, Any]:
        requests: Counter[str] = Counter()
        statuses: dict[str, dict[str, int]] = {}
        for (endpoint, status), number in sorted(self._answers.items()):
            requests[endpoint] += number
            statuses.setdefault(endpoint, {})[str(status)] = number
        return {
            "requests": dict(requests),
            "total": requests.total(),
            "statuses": statuses,
            "too_many_requests": sum(number for (_, status), number in self._answers.items() if status == 429),
            "unanswered": dict(self._unanswered),
            "clients": dict(self._by_client),
            "peak_requests_per_second": self._peak,
        }
