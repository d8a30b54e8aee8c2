"""Every secret that a test makes up bears a mark, and the suite looks for it in all that the product writes (A8).

What is looked through: log lines as the services would write them, tables before their database is dropped, records
before their topics are left, answers of the API, metrics, log files of processes. A find fails the test it belongs to.
"""

import asyncio
import json
import logging
from pathlib import Path

import asyncpg
import httpx

from devstack.canary import Leak, Scanner, look_through_files, look_through_tables, look_through_topics
from shared.logs import formatter
from simulator.oauth import CANARY

_OURS = ("cli", "services", "shared")


def a_secret(name: str) -> str:
    """A token, code or client secret that can be found wherever it comes out."""
    return f"{CANARY}-{name}"


class Watch(logging.Handler):
    """Looks; whoever runs the tests asks for what was found."""

    def __init__(self) -> None:
        super().__init__()
        self.setFormatter(formatter())
        self._scanner = Scanner({"a secret of the tests": CANARY})

    def take(self) -> list[Leak]:
        """What was found since this was asked last."""
        found, self._scanner.leaks = self._scanner.leaks, []
        return found

    def emit(self, record: logging.LogRecord) -> None:
        self.look(f"log line of {record.name}", self.format(record))

    def listen(self) -> None:
        """See every record of ours, from the lowest level, and the warnings of others."""
        for name in _OURS:
            logger = logging.getLogger(name)
            logger.setLevel(logging.DEBUG)
            logger.addHandler(self)

    def look(self, place: str, text: bytes | str) -> None:
        self._scanner.look(place, text)

    def look_at_database(self, url: str) -> None:
        """Must not run in an event loop's thread."""
        asyncio.run(self._tables(url))

    async def _tables(self, url: str) -> None:
        connection = await asyncpg.connect(url)
        try:
            await look_through_tables(self._scanner, connection)
        finally:
            await connection.close()

    def look_at_topics(self, bootstrap_servers: str, prefix: str) -> None:
        """Must not run in an event loop's thread."""
        asyncio.run(look_through_topics(self._scanner, bootstrap_servers, prefix))

    def look_at_log_files(self, folder: Path) -> None:
        look_through_files(self._scanner, folder, ("*.log*", "*.out"))

    async def look_at_answer(self, answer: httpx.Response) -> None:
        """An answer of the API; the one secret that it gives out, once, is the device code."""
        body = await answer.aread()
        if answer.url.path.endswith("/auth/initialize") and answer.is_success:
            body = json.dumps({**answer.json(), "device_code": ""}).encode()
        self.look(f"answer to {answer.request.method} {answer.url.path}", body + str(answer.headers).encode())
