"""The simulated Allegro seen from outside: the tests speak HTTP with it."""

import asyncio
import base64
import contextlib
import json
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from simulator import server
from simulator.settings import Settings, read_settings

ACCEPT = "application/vnd.allegro.public.v1+json"
USER_AGENT = "OrdersBackupTests/1.0 (+https://example.org/orders-backup)"
BASIC = "Basic " + base64.b64encode(b"tests:secret").decode()
DEVICE_GRANT = "urn:ietf:params:oauth:grant-type:device_code"
# What no test here is about unless it says so.
UNHURRIED = ("--events-limit=0", "--list-limit=0", "--detail-limit=0", "--device-limit=0", "--client-limit=0")
ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Connected:
    """A seller that has consented, as a client of the API sees it."""

    seller_id: str
    access_token: str
    refresh_token: str
    http: httpx.Client

    def get(self, path: str, **parameters: Any) -> httpx.Response:
        return self.get_with({}, path, **parameters)

    def get_with(self, headers: Mapping[str, str | None], path: str, **parameters: Any) -> httpx.Response:
        """A GET with all headers that Allegro demands unless `headers` says otherwise; None leaves one out."""
        given: dict[str, str | None] = {
            "Authorization": f"Bearer {self.access_token}",
            "Accept": ACCEPT,
            "User-Agent": USER_AGENT,
            **headers,
        }
        request = self.http.build_request("GET", path, params=parameters)
        for name, value in given.items():
            request.headers.pop(name, None)
            if value is not None:
                request.headers[name] = value
        return self.http.send(request)

    def json(self, path: str, **parameters: Any) -> Any:
        answer = self.get(path, **parameters)
        assert answer.status_code == 200, answer.text
        return answer.json()

    def events(self, after: int = 0, limit: int = 1000) -> list[dict[str, Any]]:
        """The whole journal after a position."""
        found: list[dict[str, Any]] = []
        while True:
            page = self.json("/order/events", **{"from": str(after)}, limit=limit)["events"]
            if not page:
                return found
            found += page
            after = int(page[-1]["id"])

    def orders(self, **filters: Any) -> list[dict[str, Any]]:
        """All orders by pages; for small sellers only."""
        found: list[dict[str, Any]] = []
        while True:
            page = self.json("/order/checkout-forms", offset=len(found), limit=100, **filters)["checkoutForms"]
            found += page
            if len(page) < 100:
                return found


class Simulator:
    """A running simulator."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.http = httpx.Client(base_url=url, timeout=30, headers={"User-Agent": "control"}, trust_env=False)

    def __enter__(self) -> "Simulator":
        return self

    def __exit__(self, *_: object) -> None:
        self.http.close()

    def post(self, path: str, document: Any = None) -> Any:
        return self._control("POST", path, document)

    def put(self, path: str, document: Any = None) -> Any:
        return self._control("PUT", path, document)

    def look(self, path: str, **parameters: Any) -> Any:
        answer = self.http.get(f"/_sim{path}", params=parameters)
        answer.raise_for_status()
        return answer.json()

    def ledger(self, kind: str, seller_id: str) -> list[dict[str, Any]]:
        answer = self.http.get(f"/_sim/ledger/{kind}", params={"seller_id": seller_id})
        answer.raise_for_status()
        return [json.loads(line) for line in answer.content.splitlines() if line]

    def _control(self, method: str, path: str, document: Any) -> Any:
        answer = self.http.request(method, f"/_sim{path}", json={} if document is None else document)
        answer.raise_for_status()
        return answer.json()

    def device(self) -> dict[str, Any]:
        answer = self.http.post("/auth/oauth/device", headers={"Authorization": BASIC}, data={"client_id": "tests"})
        assert answer.status_code == 200, answer.text
        document: dict[str, Any] = answer.json()
        return document

    def token(self, **form: str) -> httpx.Response:
        return self.http.post("/auth/oauth/token", headers={"Authorization": BASIC}, data=form)

    def connect(self, seller_id: str | None = None) -> Connected:
        """Take a seller through the device flow."""
        device = self.device()
        wish = {"user_code": device["user_code"]}
        self.post("/consent", wish if seller_id is None else {**wish, "seller_id": seller_id})
        answer = self.token(grant_type=DEVICE_GRANT, device_code=device["device_code"])
        assert answer.status_code == 200, answer.text
        tokens = answer.json()
        claims = tokens["access_token"].split(".")[1]
        user_name = json.loads(base64.urlsafe_b64decode(claims + "=" * (-len(claims) % 4)))["user_name"]
        return Connected(user_name, tokens["access_token"], tokens["refresh_token"], self.http)


@contextlib.contextmanager
def process(*options: str) -> Iterator[Simulator]:
    """`python -m simulator` on a free port; killed without a warning at the end."""
    command = [sys.executable, "-m", "simulator", "--port", "0", *UNHURRIED, *options]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as child:
        try:
            assert child.stdout is not None
            with Simulator(json.loads(child.stdout.readline())["url"]) as simulator:
                yield simulator
        finally:
            child.kill()


@contextlib.contextmanager
def running(*options: str) -> Iterator[Simulator]:
    """The same in a thread of this process, which starts at once."""
    settings = read_settings(["--port", "0", *UNHURRIED, *options], {})
    ready: Future[tuple[str, Callable[[], object]]] = Future()
    thread = threading.Thread(target=lambda: asyncio.run(_serve(settings, ready)), daemon=True)
    thread.start()
    url, stop = ready.result(timeout=30)
    try:
        with Simulator(url) as simulator:
            yield simulator
    finally:
        stop()
        thread.join(timeout=10)


async def _serve(settings: Settings, ready: "Future[tuple[str, Callable[[], object]]]") -> None:
    stopped = asyncio.Event()
    loop = asyncio.get_running_loop()
    try:
        async with server.Simulator(settings) as simulator:
            ready.set_result((simulator.url, lambda: loop.call_soon_threadsafe(stopped.set)))
            await stopped.wait()
    except OSError as error:
        ready.set_exception(error)


Start = Callable[..., Simulator]


@pytest.fixture
def start() -> Iterator[Start]:
    """Start simulators with options of the test's own."""
    with contextlib.ExitStack() as stack:
        yield lambda *options: stack.enter_context(running(*options))


@pytest.fixture(scope="module")
def simulator() -> Iterator[Simulator]:
    """One simulator for the tests of a module that change nothing about it."""
    with running("--sellers=3", "--history-orders=600", "--seed=7") as simulator:
        yield simulator


@pytest.fixture(scope="module")
def seller(simulator: Simulator) -> Connected:
    return simulator.connect()
