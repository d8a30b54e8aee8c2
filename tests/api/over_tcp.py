"""The API over a real connection, for what a client in the same process does not show."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import uvicorn
from fastapi import FastAPI

from devstack.ports import free_port, release
from shared.service import MAX_HEAD_BYTES


@asynccontextmanager
async def served(app: FastAPI) -> AsyncIterator[str]:
    """The address at which the application is served, in this process, as `shared.service.run` serves it."""
    port = free_port()
    config = uvicorn.Config(
        app,
        port=port,
        log_config=None,
        access_log=False,
        lifespan="on",
        h11_max_incomplete_event_size=MAX_HEAD_BYTES,
    )
    server = uvicorn.Server(config)
    serving = asyncio.create_task(server.serve())
    async with asyncio.timeout(60):
        while not server.started:  # noqa: ASYNC110 - uvicorn has no event for it
            await asyncio.sleep(0.05)
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        await serving
        release(port)
