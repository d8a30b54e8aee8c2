"""The API's server-sent events of a task, gone on with when the connection breaks."""

import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import msgspec

from cli.client import Api, part
from cli.errors import AwayError

_ATTEMPTS = 10
_PAUSE_SECONDS = 1.0


@dataclass(frozen=True)
class Event:
    """One event; `data` is JSON."""

    id: str
    kind: str
    data: str


def task_states(api: Api, task_id: str) -> Iterator[dict[str, Any]]:
    """How a task stands whenever that changes; ends with the task. Raises AwayError if the API stays away."""
    known, failures = "", 0
    while True:
        try:
            with api.stream(f"/sync/tasks/{part(task_id)}/events", last_event_id=known) as pieces:
                for event in events(pieces):
                    known, failures = event.id, 0
                    yield msgspec.json.decode(event.data)
                    if event.kind == "end":
                        return
        except AwayError:
            failures += 1
            if failures >= _ATTEMPTS:
                raise
        time.sleep(_PAUSE_SECONDS)


def events(pieces: Iterable[bytes]) -> Iterator[Event]:
    """The events of a stream, however it is cut; comments and times to retry are left out."""
    received = b""
    for piece in pieces:
        *whole, received = (received + piece).split(b"\n\n")
        for block in whole:
            fields = dict(line.split(": ", 1) for line in block.decode().split("\n") if not line.startswith(":"))
            if "data" in fields:
                yield Event(fields.get("id", ""), fields.get("event", "message"), fields["data"])
