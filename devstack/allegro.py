"""The simulated Allegro as a child process, and its control endpoints."""

import sys
from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import httpx

from devstack.processes import ROOT, Child

_START_SECONDS = 60.0
_CLIENT_ID = "devstack"
_CLIENT_SECRET = "devstack-secret"  # noqa: S105 - known to the simulated Allegro only


class SimulatedAllegro:
    """A child process with a port of its own; `control` talks to it."""

    def __init__(self, logs: Path, port: int, options: Sequence[str]) -> None:
        self.url = f"http://127.0.0.1:{port}"
        self.child = Child(
            "The simulated Allegro",
            [
                *(sys.executable, "-m", "simulator", "--port", str(port)),
                *("--client", f"{_CLIENT_ID}:{_CLIENT_SECRET}"),
                *options,
            ],
            log=logs / "simulator.out",
            folder=ROOT,
        )

    def start(self) -> None:
        self.child.start()

    def wait_until_ready(self) -> None:
        self.child.wait_until_http(f"{self.url}/_sim/health", _START_SECONDS)

    def stop(self) -> None:
        self.child.stop()

    def environment(self) -> dict[str, str]:
        """What makes the services talk to it instead of Allegro."""
        return {
            "ALLEGRO_API_URL": self.url,
            "ALLEGRO_AUTH_URL": self.url,
            "ALLEGRO_CLIENT_ID": _CLIENT_ID,
            "ALLEGRO_CLIENT_SECRET": _CLIENT_SECRET,
            "ALLEGRO_USER_AGENT": "OrdersBackupDevstack/1.0 (+https://example.org/orders-backup)",
        }


class Control:
    """The endpoints under `/_sim/`: consent, live traffic, faults, the ledger of truth."""

    def __init__(self, url: str) -> None:
        self._client = httpx.AsyncClient(base_url=f"{url}/_sim", timeout=60)

    async def __aenter__(self) -> "Control":
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._client.aclose()

    async def consent(self, user_code: str, *, seller_id: str | None = None) -> str:
        """That seller, or the next who is not connected, types the code and agrees; returns the seller's id."""
        chosen = {} if seller_id is None else {"seller_id": seller_id}
        answer = await self._post("/consent", {"user_code": user_code, **chosen})
        return str(answer["seller_id"])

    async def expire_access(self) -> None:
        """All access tokens end now; their refresh tokens still work."""
        await self._post("/tokens/expire", {})

    async def withdraw_consent(self, seller_id: str) -> None:
        """The seller un-links the app; refreshing still works, and brings tokens that do not (#13133)."""
        await self._post("/tokens/revoke", {"seller_id": seller_id, "refresh": "works"})

    async def set_faults(self, faults: Mapping[str, Any]) -> None:
        """These faults and no others."""
        (await self._client.put("/faults", json=faults)).raise_for_status()

    async def start_live(self, orders: int, rate: float, **details: object) -> None:
        """New orders from now on, with all the events that follow, `rate` orders a second.

        `details` go to the simulator as they are: events_per_order, sellers, step_seconds, history.
        """
        await self._post("/live", {"orders": orders, "rate": rate, **details})

    async def live(self) -> Mapping[str, Any]:
        return await self._get("/live")

    async def summary(self) -> Mapping[str, Any]:
        return await self._get("/ledger/summary")

    async def stats(self) -> Mapping[str, Any]:
        """What was asked and how it was answered, by endpoint and status."""
        return await self._get("/stats")

    async def requests(self) -> Mapping[str, int]:
        """How many requests were answered, by endpoint."""
        requests: Mapping[str, int] = (await self.stats())["requests"]
        return requests

    async def first_served(self) -> Mapping[str, Mapping[int, int]]:
        """When each new event was first shown, in microseconds since 1970, by seller; needs `--note-served`."""
        sellers: Mapping[str, Mapping[str, int]] = (await self._get("/served"))["first_served"]
        return {seller: {int(event): moment for event, moment in events.items()} for seller, events in sellers.items()}

    async def ledger(self, kind: str, seller_id: str) -> AsyncIterator[str]:
        """The truth about one seller's `orders` or `events`, one JSON document at a time."""
        async with self._client.stream("GET", f"/ledger/{kind}", params={"seller_id": seller_id}) as answer:
            answer.raise_for_status()
            async for line in answer.aiter_lines():
                if line:
                    yield line

    async def _get(self, path: str) -> Mapping[str, Any]:
        answer = await self._client.get(path)
        answer.raise_for_status()
        document: Mapping[str, Any] = answer.json()
        return document

    async def _post(self, path: str, body: Mapping[str, Any]) -> Mapping[str, Any]:
        answer = await self._client.post(path, json=body)
        answer.raise_for_status()
        document: Mapping[str, Any] = answer.json()
        return document
