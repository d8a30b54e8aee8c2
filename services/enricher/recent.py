"""What this replica looked at lately, so that an order fetched after an event is not fetched again for it (P6)."""

from collections import OrderedDict
from datetime import datetime

OrderKey = tuple[int, str]


class RecentLooks:
    """The latest look at each of the last `capacity` orders; forgetting one costs a request, nothing else.

    One takes some 400 bytes; 20,000 are what Allegro lets one client id look at in two minutes by single fetches.
    """

    def __init__(self, capacity: int = 20_000) -> None:
        self._capacity = capacity
        self._looks: OrderedDict[OrderKey, datetime] = OrderedDict()

    def note(self, key: OrderKey, observed_at: datetime) -> None:
        known = self._looks.get(key)
        if known is None or observed_at > known:
            self._looks[key] = observed_at
        self._looks.move_to_end(key)
        if len(self._looks) > self._capacity:
            self._looks.popitem(last=False)

    def since(self, key: OrderKey, moment: datetime) -> datetime | None:
        """When we looked, if that was at or after `moment`."""
        observed_at = self._looks.get(key)
        return observed_at if observed_at is not None and observed_at >= moment else None
