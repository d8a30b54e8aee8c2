"""The progress of a task as server-sent events: every event is the whole state, so that none has to be kept."""

import asyncio
import hashlib
from collections.abc import AsyncGenerator, Awaitable, Callable
from dataclasses import dataclass
from typing import Annotated

from fastapi import APIRouter, Header, Request, Response
from fastapi.responses import StreamingResponse

from services.api.access import READ, KnownCaller
from services.api.context import Context
from services.api.endpoints.tasks import EXAMPLE as TASK_EXAMPLE
from services.api.endpoints.tasks import TaskWithRun, get_task
from services.api.parameters import TaskId
from services.api.problems import TooManyStreamsError, UnknownTaskError, documented
from services.api.streams import Stream
from services.api.task_looks import LOOK_SECONDS, TaskLooks

router = APIRouter(prefix="/api/v1/sync", tags=["synchronisation"])

# Proxies close connections that are silent, often after half a minute.
_HEARTBEAT_SECONDS = 15.0
_HEARTBEAT = b": nothing new\n\n"
_RETRY = b"retry: 2000\n\n"


# The schema of each event, by the name that OpenAPI 3.2 gave it; earlier ones have none for a stream.
_EVENT = {
    "type": "object",
    "properties": {
        "id": {"type": "string"},
        "event": {"type": "string", "enum": ["progress", "end"]},
        "data": {
            "type": "string",
            "contentMediaType": "application/json",
            "contentSchema": {"$ref": "#/components/schemas/TaskWithRun"},
        },
    },
    "required": ["id", "event", "data"],
}


@dataclass(frozen=True)
class State:
    """A task at one moment."""

    id: str
    data: bytes
    is_end: bool

    @classmethod
    def of(cls, task: TaskWithRun) -> "State":
        data = task.model_dump_json().encode()
        return cls(hashlib.blake2b(data, digest_size=8).hexdigest(), data, task.finished_at is not None)

    def event(self) -> bytes:
        """As it goes out; JSON has no line ends."""
        kind = b"end" if self.is_end else b"progress"
        return b"id: %s\nevent: %s\ndata: %s\n\n" % (self.id.encode(), kind, self.data)


_EXAMPLE = State.of(TaskWithRun.model_validate(TASK_EXAMPLE | {"run": None})).event().decode()


@router.get(
    "/tasks/{task_id}/events",
    dependencies=[READ],
    response_class=StreamingResponse,
    responses={
        200: {
            "description": "Events until the task has ended",
            "content": {"text/event-stream": {"itemSchema": _EVENT, "example": _EXAMPLE}},
        },
        204: {"description": "The task has ended, and the client knows how: it need not come back"},
        **documented(UnknownTaskError, TooManyStreamsError),
    },
)
async def task_events(
    task_id: TaskId,
    request: Request,
    context: Context,
    caller: KnownCaller,
    last_event_id: Annotated[str, Header(max_length=100)] = "",
) -> Response:
    """What becomes of a task, as it happens: an event `progress` whenever a number changes, and `end`.

    The data of each is the task with its run, as `GET /api/v1/sync/tasks/{task_id}` shows it. Who comes back with
    `Last-Event-ID` gets the next event when something has changed since.
    """
    state = State.of(await get_task(task_id, context, caller))
    if state.is_end and state.id == last_event_id:
        return Response(status_code=204)

    async def look() -> State:
        return State.of(await get_task(task_id, context, caller))

    looks: TaskLooks[State] = request.app.state.task_looks
    return Stream(
        _events(lambda: looks.at(task_id, look), last_event_id),
        caller=caller,
        streams=request.app.state.event_streams,
        media_type="text/event-stream",
        headers={"X-Accel-Buffering": "no"},  # not to be held back by nginx
    )


async def _events(look: Callable[[], Awaitable[State]], known: str) -> AsyncGenerator[bytes, None]:
    clock = asyncio.get_running_loop().time
    yield _RETRY
    said_at = clock()
    while True:
        state = await look()
        if state.id != known:
            known, said_at = state.id, clock()
            yield state.event()
        elif clock() - said_at >= _HEARTBEAT_SECONDS:
            said_at = clock()
            yield _HEARTBEAT
        if state.is_end:
            return
        await asyncio.sleep(LOOK_SECONDS)
