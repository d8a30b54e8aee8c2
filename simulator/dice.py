"""Deterministic chance: the same seed, scope and number always roll the same 32 bytes."""

from hashlib import blake2b

ROLL_BYTES = 32


class Dice:
    """Rolls of one scope; a roll depends on nothing but the seed, the scope and the number asked for."""

    __slots__ = ("_base", "_scope", "_seed")

    def __init__(self, seed: int, *scope: object) -> None:
        self._seed = seed
        self._scope = scope
        self._base = blake2b(repr((seed, *scope)).encode(), digest_size=ROLL_BYTES)

    def scoped(self, *scope: object) -> "Dice":
        return Dice(self._seed, *self._scope, *scope)

    def roll(self, number: int) -> bytes:
        state = self._base.copy()
        state.update(number.to_bytes(8, "little"))
        return state.digest()

    def fraction(self, number: int) -> float:
        """A number in [0, 1)."""
        return int.from_bytes(self.roll(number)[:6], "little") / 2**48


class Rolls:
    """Dice that are rolled again and again: the nth fraction of a run is the same in every run."""

    def __init__(self, dice: Dice) -> None:
        self._dice = dice
        self._number = 0

    def fraction(self) -> float:
        self._number += 1
        return self._dice.fraction(self._number)

    def happens(self, rate: float) -> bool:
        """Whether something of that probability happens now; certain things use up no roll."""
        return rate >= 1 or (rate > 0 and self.fraction() < rate)
