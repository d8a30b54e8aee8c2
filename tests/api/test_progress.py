"""The events of a task: every change once, an end, nothing twice after a break, and one look for all who listen."""

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any
from uuid import UUID

import asyncpg
import httpx
import pytest

from services.api.app import build_app
from services.api.endpoints.progress import State, _events
from services.api.settings import ApiSettings
from services.api.task_looks import TaskLooks
from tests.api.over_tcp import served
from tests.builders import A_RUN, a_run, a_token

pytestmark = pytest.mark.integration

PATH = f"/api/v1/sync/tasks/{A_RUN}/events"


@pytest.fixture
async def client(settings: ApiSettings) -> AsyncIterator[httpx.AsyncClient]:
    """Over a real connection: streams have to come as they are sent."""
    async with (
        served(build_app(settings)) as url,
        httpx.AsyncClient(base_url=url, timeout=30, trust_env=False) as client,
    ):
        yield client


async def events(lines: AsyncIterator[str]) -> AsyncIterator[dict[str, Any]]:
    """Each event as its fields, `data` decoded."""
    fields: dict[str, Any] = {}
    async for line in lines:
        name, _, value = line.partition(": ")
        if line:
            fields[name] = value
        elif "data" in fields:
            yield {**fields, "data": json.loads(fields["data"])}
            fields = {}


async def test_every_change_is_told_until_the_end(client: httpx.AsyncClient, pool: asyncpg.Pool) -> None:
    await a_token(pool)
    await a_run(pool)
    seen = []

    async with client.stream("GET", PATH, headers={"Accept-Encoding": "gzip"}) as answer:
        async for event in events(answer.aiter_lines()):
            seen.append(event)
            if len(seen) == 1:
                await pool.execute("UPDATE sync_history SET orders_processed = 7")
            elif len(seen) == 2:
                await pool.execute("UPDATE task_history SET status = 'completed', finished_at = now()")
    again = await client.get(PATH, headers={"Last-Event-ID": seen[-1]["id"]})

    assert answer.headers["content-type"].startswith("text/event-stream")
    assert "content-encoding" not in answer.headers
    assert [event["event"] for event in seen] == ["progress", "progress", "end"]
    assert [event["data"]["run"]["orders_processed"] for event in seen] == [0, 7, 7]
    assert seen[-1]["data"]["status"] == "completed"
    assert (again.status_code, again.content) == (204, b"")


async def test_who_comes_back_gets_what_is_new(client: httpx.AsyncClient, pool: asyncpg.Pool) -> None:
    await a_token(pool)
    await a_run(pool)
    async with client.stream("GET", PATH) as answer:
        first = await anext(events(answer.aiter_lines()))
    await pool.execute("UPDATE sync_history SET orders_processed = 9")

    async with client.stream("GET", PATH, headers={"Last-Event-ID": first["id"]}) as answer:
        second = await anext(events(answer.aiter_lines()))

    assert (first["data"]["run"]["orders_processed"], second["data"]["run"]["orders_processed"]) == (0, 9)


async def test_an_unknown_task_is_a_problem(client: httpx.AsyncClient) -> None:
    answer = await client.get("/api/v1/sync/tasks/00000000-0000-4000-8000-000000000404/events")

    assert (answer.status_code, answer.json()["type"].rpartition(":")[2]) == (404, "unknown-task")


async def test_many_listeners_cost_one_look() -> None:
    looks: TaskLooks[State] = TaskLooks()
    asked = 0

    async def look() -> State:
        nonlocal asked
        asked += 1
        await asyncio.sleep(0)
        return State("1", b"{}", is_end=True)

    async def listen() -> list[bytes]:
        return [event async for event in _events(lambda: looks.at(UUID(int=1), look), "")]

    heard = await asyncio.gather(*(listen() for _ in range(500)))

    assert asked == 1
    assert {tuple(each) for each in heard} == {(b"retry: 2000\n\n", b"id: 1\nevent: end\ndata: {}\n\n")}


async def test_who_goes_away_takes_the_look_from_nobody() -> None:
    looks: TaskLooks[int] = TaskLooks()
    answered = asyncio.Event()

    async def look() -> int:
        await answered.wait()
        return 7

    gone, stays = (asyncio.create_task(looks.at(UUID(int=1), look)) for _ in range(2))
    await asyncio.sleep(0)
    gone.cancel()
    answered.set()

    assert await stays == 7
