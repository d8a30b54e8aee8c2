"""How much has come lately: a count in which everything weighs half as much after every half-life. Pure."""

import math


class Lately:
    """Steady work of `rate` a second comes to `rate * half_life / ln 2`."""

    def __init__(self, half_life_seconds: float) -> None:
        self._half_life_seconds = half_life_seconds
        self._amount = 0.0
        self._at = 0.0

    def add(self, number: int, now: float) -> None:
        """Count `number` at a moment (seconds of a clock that never goes back)."""
        self._amount = self.amount(now) + number
        self._at = now

    def amount(self, now: float) -> float:
        """What it has come to by now."""
        return self._amount * math.exp2((self._at - now) / self._half_life_seconds)
