"""What survives a restart: every mutation and every OAuth record, appended to one file, a JSON line each.

The last line may be torn by a kill; it is dropped at the next start. History is not in it: it follows from the seed
and the epoch, which are the first line.
"""

from pathlib import Path
from typing import Final

import msgspec

from simulator.oauth import Device, OAuth, Pair, Session
from simulator.settings import Settings
from simulator.world import Bought, Connected, Lost, Merged, Mutation, Stepped, World, Wrote


class Began(msgspec.Struct, tag="began", array_like=True, frozen=True):
    """Another seed or size makes another world, to which the rest of the file says nothing."""

    seed: int
    epoch_ms: int
    history_orders: int
    history_days: float


Line = Began | Bought | Stepped | Merged | Wrote | Lost | Connected | Device | Session | Pair
_DECODER: Final = msgspec.json.Decoder(Line)


class StateFileError(Exception):
    """The file belongs to another world."""


class Store:
    def __init__(self, path: Path) -> None:
        self._path = path
        self._lines = _read(path)

    def epoch_ms(self, settings: Settings, now_ms: int) -> int:
        """The epoch of the world in the file, or of a new one; raises StateFileError if it is not this world."""
        new = Began(settings.seed, now_ms, settings.history_orders, settings.history_days)
        if not self._lines:
            self._lines = [new]
        began = self._lines[0]
        if not isinstance(began, Began):
            raise StateFileError(f"{self._path} is not a state file")
        same = msgspec.structs.replace(new, epoch_ms=began.epoch_ms)
        if began != same or (settings.epoch and began != new):
            raise StateFileError(f"{self._path} was written with other settings ({began}): use these, or another file")
        return began.epoch_ms

    def attach(self, world: World, oauth: OAuth) -> None:
        """Bring back what the file says, then write down whatever happens."""
        for line in self._lines:
            if isinstance(line, Device | Session | Pair):
                oauth.restore(line)
            elif not isinstance(line, Began):
                world.apply(line)
        self._rewrite()
        world.listeners.append(self._append)
        oauth.listeners.append(self._append)
        world.resume()

    def close(self) -> None:
        self._file.close()

    def _rewrite(self) -> None:
        """Without the torn line, so that what follows starts on a line of its own."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        beside = self._path.with_name(f"{self._path.name}.new")
        beside.write_bytes(b"".join(_encode(line) for line in self._lines))
        beside.replace(self._path)
        self._lines = []
        self._file = self._path.open("ab", buffering=0)

    def _append(self, line: Mutation | Device | Session | Pair) -> None:
        self._file.write(_encode(line))


def _encode(line: Line) -> bytes:
    return msgspec.json.encode(line) + b"\n"


def _read(path: Path) -> list[Line]:
    if not path.exists():
        return []
    whole, _, _torn = path.read_bytes().rpartition(b"\n")
    return [_DECODER.decode(line) for line in whole.splitlines()]
