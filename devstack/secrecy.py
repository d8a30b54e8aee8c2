"""The demo's trial of secrets: keys rotate while calls go on, errors that echo tokens are provoked, then everything
that was written is looked through (requirements A5, A8)."""

import asyncio
import base64
import json
import re
import secrets
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

import httpx
from prometheus_client.parser import text_string_to_metric_families

from devstack import processes
from devstack.allegro import Control
from devstack.canary import Scanner, look_through_files, look_through_tables, look_through_topics
from devstack.errors import DevstackError
from devstack.stack import SERVICES, Stack
from simulator.oauth import CANARY, TOKEN_HEADER

_OLD_KEY, _NEW_KEY = "demo-old", "demo-new"
_ROTATION_SECONDS = 120.0
_PAUSE_SECONDS = 0.1
# Between two rounds of calls while keys rotate, beside what the services call anyway.
_CALL_SECONDS = 0.3
_REPAIR_SECONDS = 60.0
# Not failures: an order that was merged is gone, and waiting for a consent is answered with 400.
_GOOD_OUTCOMES = ("200", "404")
_DECRYPTION_FAILED = re.compile(r"ENCRYPTION_KEYS has no key|does not open it")

# language=sql
_KEYS_IN_USE = """
SELECT DISTINCT key_id FROM user_tokens WHERE key_id IS NOT NULL
UNION
SELECT DISTINCT key_id FROM device_authorizations WHERE key_id IS NOT NULL
"""


@dataclass
class Findings:
    """What the trial has shown; `problems` has to stay empty."""

    rotations: int = 0
    secrets_moved: int = 0
    calls_meanwhile: int = 0
    looked_through: dict[str, int] = field(default_factory=dict)
    megabytes: float = 0.0
    problems: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Keys:
    """Two encryption keys in two files, which differ in which one comes first."""

    new_first: Path
    old_first: Path
    values: tuple[str, str]

    @classmethod
    def make(cls, folder: Path) -> "Keys":
        old, new = (base64.b64encode(secrets.token_bytes(32)).decode() for _ in range(2))
        lines = (f"{_NEW_KEY}:{new}\n", f"{_OLD_KEY}:{old}\n")
        files = folder / "keys-new-first", folder / "keys-old-first"
        for file, content in zip(files, ("".join(lines), "".join(reversed(lines))), strict=True):
            file.touch(mode=0o600)
            file.write_text(content)
        return cls(*files, (old, new))


class SecretsTrial:
    """Runs beside a demo; every answer of the API that passes `saw` is looked through."""

    def __init__(self, stack: Stack, control: Control, keys: Keys, say: Callable[[str], None]) -> None:
        self._stack = stack
        self._control = control
        self._keys = keys
        self._say = say
        self._answers = 0
        self._scanner = Scanner(known_secrets(stack, keys))
        self.findings = Findings()

    async def saw(self, answer: httpx.Response) -> None:
        """Look through an answer of the API."""
        self._answers += 1
        await look_through_answer(self._scanner, answer)

    async def rotate_keys(self, api: httpx.AsyncClient, tokens: Sequence[int]) -> None:
        """Move every secret to the old key and back to the new one, while the services call with them."""
        before = await self._calls()
        rotating = asyncio.create_task(self._rotate_there_and_back())
        while not rotating.done():
            for token_id in tokens:
                answer = await api.post(f"/tokens/{token_id}/validate")
                if not (answer.is_success and answer.json()["valid"]):
                    self._complain(f"a call failed while keys were rotated: {answer.status_code} {answer.text}")
            await asyncio.sleep(_CALL_SECONDS)
        await rotating
        after = await self._calls()
        made = {labels: number - before.get(labels, 0) for labels, number in after.items()}
        self.findings.calls_meanwhile = sum(made.values())
        for (service, endpoint, outcome), number in made.items():
            if outcome not in _GOOD_OUTCOMES and number:
                self._complain(f"{service}: {number} calls of {endpoint} ended with {outcome} while keys were rotated")
        async with self._stack.connection() as database:
            in_use = {row["key_id"] for row in await database.fetch(_KEYS_IN_USE)}
        if in_use != {_NEW_KEY}:
            self._complain(f"after the rotation secrets are of the keys {sorted(in_use)}, not only of {_NEW_KEY}")
        for name in SERVICES:
            if _DECRYPTION_FAILED.search(self._stack.services[name].log.read_text("utf-8", "replace")):
                self._complain(f"{name} could not decrypt a secret")
        self._say(
            f"encryption keys rotated twice: {self.findings.secrets_moved} secrets moved, "
            f"{self.findings.calls_meanwhile} calls meanwhile"
        )

    async def provoke(self, api: httpx.AsyncClient, seller_id: str, token_id: int, device_code: str) -> None:
        """Have Allegro echo secrets in errors: in a 401, in a refused refresh, and in addresses of ours."""
        await self._control.expire_access()
        await self._works_again(api, token_id)
        await self._control.set_faults({"invalid_grant_once": {"sellers": [seller_id]}})
        refused = await api.post(f"/tokens/{token_id}/refresh")
        await self._control.set_faults({})
        if refused.is_success:
            self._complain("a refresh that Allegro refused was reported as done")
        await api.get(f"/tokens/{token_id}")
        await self._works_again(api, token_id)
        await api.get(f"/tokens/auth/status/{device_code}")
        await api.get(f"/tokens/auth/status/{device_code[::-1]}{CANARY}")

    async def look_while_it_runs(self, api: httpx.AsyncClient, users: Sequence[str]) -> None:
        """Look through answers, metrics, tables and topics."""
        pages = ["/tokens/", "/sync/active", "/sync/tasks", "/dead-letters"]
        for user in users:
            pages += [f"/tokens/user/{user}", f"/sync/status/{user}", f"/sync/history/{user}", f"/orders/{user}"]
        for page in pages:
            (await api.get(page)).raise_for_status()
        for page in ("/openapi.json", "/health"):
            (await api.get(self._stack.url("api") + page)).raise_for_status()
        for name in SERVICES:
            self._scanner.look(f"metrics of {name}", (await self._metrics(name)).encode())
        async with self._stack.connection() as database:
            tables = await look_through_tables(self._scanner, database)
        broker = self._stack.broker.bootstrap_servers
        records = await look_through_topics(self._scanner, broker, self._stack.environment()["KAFKA_TOPIC_PREFIX"])
        self.findings.looked_through |= {
            "API answers": self._answers,
            "metrics": len(SERVICES),
            "tables": tables,
            "records": records,
        }

    def look_at_files(self) -> None:
        """Look through all logs, once nothing is written to them any more, and draw the conclusion."""
        files = look_through_files(self._scanner, self._stack.folder, ("*.log*", "*.out"))
        self.findings.looked_through["log files"] = files
        self.findings.megabytes = self._scanner.bytes_looked_at / 1e6
        if not all(self.findings.looked_through.values()):
            self._complain(f"there was nothing to look through: {self.findings.looked_through}")
        self.findings.problems += [f"a secret has come out in {leak}" for leak in self._scanner.leaks]

    async def _rotate_there_and_back(self) -> None:
        for keys in (self._keys.old_first, self._keys.new_first):
            environment = {**self._stack.environment(), "ENCRYPTION_KEYS_FILE": str(keys)}
            command = [sys.executable, "-m", "cli", "keys", "rotate", "--json"]
            folder = self._stack.folder
            said = await asyncio.to_thread(
                processes.run, command, env=environment, folder=folder, seconds=_ROTATION_SECONDS
            )
            outcome = json.loads(said)
            self.findings.rotations += 1
            self.findings.secrets_moved += outcome["moved"]
            if not outcome["moved"]:
                self._complain("a rotation moved nothing")

    async def _works_again(self, api: httpx.AsyncClient, token_id: int) -> None:
        """A token repairs itself; until then the answers are looked through."""
        try:
            async with asyncio.timeout(_REPAIR_SECONDS):
                while True:
                    answer = await api.post(f"/tokens/{token_id}/validate")
                    if answer.is_success and answer.json()["valid"]:
                        return
                    await asyncio.sleep(_PAUSE_SECONDS)
        except TimeoutError:
            raise DevstackError(f"token {token_id} did not repair itself within {_REPAIR_SECONDS:g} s") from None

    async def _calls(self) -> dict[tuple[str, str, str], int]:
        """Requests to Allegro so far, by service, endpoint and outcome."""
        calls: dict[tuple[str, str, str], int] = {}
        for service in SERVICES:
            for family in text_string_to_metric_families(await self._metrics(service)):
                for sample in family.samples:
                    if sample.name == "orders_backup_allegro_requests_total":
                        calls[service, sample.labels["endpoint"], sample.labels["outcome"]] = int(sample.value)
        return calls

    async def _metrics(self, service: str) -> str:
        async with httpx.AsyncClient(base_url=self._stack.url(service), timeout=30) as http:
            return (await http.get("/metrics")).raise_for_status().text

    def _complain(self, problem: str) -> None:
        self.findings.problems.append(problem)


async def look_through_answer(scanner: Scanner, answer: httpx.Response) -> None:
    """The one secret that the API gives out, once, is the device code."""
    body = await answer.aread()
    if answer.request.method == "POST" and answer.url.path.endswith("/auth/initialize") and answer.is_success:
        document = json.loads(body)
        del document["device_code"]
        body = json.dumps(document).encode()
    place = f"answer to {answer.request.method} {answer.request.url.path.split('/status/')[0]}"
    scanner.look(place, body + str(answer.headers.multi_items()).encode())


def known_secrets(stack: Stack, keys: Keys) -> Mapping[str, str]:
    """What must not be found anywhere; every token and device code of the simulated Allegro bears its mark."""
    environment = stack.environment()
    known = {
        "a token or device code": CANARY,
        "the beginning of a token": TOKEN_HEADER,
        "the client's secret": environment["ALLEGRO_CLIENT_SECRET"],
        "the old encryption key": keys.values[0],
        "the new encryption key": keys.values[1],
    }
    password = urlsplit(environment["DATABASE_URL"]).password or ""
    # A short one may be any word.
    return known | ({"the password of the database": password} if len(password) >= 16 else {})
