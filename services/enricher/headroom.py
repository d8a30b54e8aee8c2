"""How far walks may run ahead of what is stored. Pure.

A list page brings a hundred orders for one request, more than the writer stores in the time of many such requests. What
it has not stored waits in the topic, before everybody's new orders (promise P4) and in a broker whose memory ends
(P10). So all walks of a process together may have only so many orders under way.
"""

from collections.abc import Iterator
from contextlib import contextmanager

# About a second of a busy writer's work, and many times what is under way where the writer keeps up.
_OF_ALL = 1000
# Three pages: with fewer, ten walks wait for their turn to look while the writer waits for them. At the pace that
# Allegro allows one seller, a page is stored long before the next one comes.
_OF_ONE = 300
# How often all walks together look whether they may go on: much more often than the writer stores a page.
_LOOKS_A_SECOND = 60.0
# A walk that waits is to hear soon that somebody wants it to stop.
_LONGEST_PAUSE_SECONDS = 1.0


class Headroom:
    """Shares what may be under way among the walks that go on."""

    def __init__(self) -> None:
        self._walks = 0

    @contextmanager
    def walking(self) -> Iterator[None]:
        """One more walk goes on for the length of the block."""
        self._walks += 1
        try:
            yield
        finally:
            self._walks -= 1

    def is_used_up(self, *, under_way: int) -> bool:
        """Whether a walk with so many orders read and not stored has to wait."""
        return under_way >= max(_OF_ALL // max(self._walks, 1), _OF_ONE)

    @property
    def pause_seconds(self) -> float:
        """From one look of a walk that has to wait to its next: many walks must not keep a busy PostgreSQL busier."""
        return min(max(self._walks, 1) / _LOOKS_A_SECOND, _LONGEST_PAUSE_SECONDS)
