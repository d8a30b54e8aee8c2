"""The whole description of the API, tried by schemathesis with a key of each scope, on a real PostgreSQL and broker.

What the description allows is sent, and much that it does not: no answer may be a 5xx, none may differ from the
description, and none may give what the scope does not allow. The seed is fixed, and SCHEMATHESIS_EXAMPLES says how many
random requests an operation gets beyond those at the borders of each parameter.
"""

import asyncio
import os
import sys
from dataclasses import dataclass
from pathlib import Path

import asyncpg
import httpx
import pytest

from services.api.app import build_app
from services.api.settings import ApiSettings
from shared.api_keys import AccessScope
from shared.encryption import Secret
from shared.token_vault import access_binding, refresh_binding
from tests.api.over_tcp import served
from tests.api.schemathesis_hooks import SCOPE
from tests.api.two_sellers import MINE, OTHERS, a_busy_seller, a_key

pytestmark = pytest.mark.integration

_ROOT = Path(__file__).parents[2]
_EXAMPLES = os.environ.get("SCHEMATHESIS_EXAMPLES", "5")


# The stream of a task's events ends with the task, and nobody works here: what is asked for is done at once.
_DONE_AT_ONCE = """
CREATE FUNCTION done_at_once() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN NEW.status = 'completed'; NEW.finished_at = now(); RETURN NEW; END $$;
CREATE TRIGGER done_at_once BEFORE INSERT ON task_history FOR EACH ROW EXECUTE FUNCTION done_at_once();
"""


def allegro(request: httpx.Request) -> httpx.Response:
    """Gives what it is asked for: a 5xx of ours would be right if it failed."""
    if request.url.path.endswith("/device"):
        return httpx.Response(
            200,
            json={
                "device_code": os.urandom(16).hex(),
                "user_code": "abcd1234",
                "verification_uri": "https://allegro.pl/skojarz-aplikacje",
                "verification_uri_complete": "https://allegro.pl/skojarz-aplikacje?code=abcd1234",
                "expires_in": 3600,
                "interval": 5,
            },
        )
    if request.url.path.endswith("/token"):
        pair = {"access_token": os.urandom(8).hex(), "refresh_token": os.urandom(8).hex(), "expires_in": 43199}
        return httpx.Response(200, json=pair | {"token_type": "bearer", "scope": "allegro:api:orders:read"})
    return httpx.Response(200, json={"latestEvent": {"id": "1791670524086457", "occurredAt": "2026-10-10T22:15:05Z"}})


async def give_a_pair(settings: ApiSettings, pool: asyncpg.Pool, token_id: int) -> None:
    keyring = settings.keyring()
    access = keyring.seal(Secret("a"), belongs_to=access_binding(token_id))
    refresh = keyring.seal(Secret("r"), belongs_to=refresh_binding(token_id))
    await pool.execute(
        "UPDATE user_tokens SET access_token = $2, refresh_token = $3, key_id = $4,"
        " expires_at = now() + interval '1 hour' WHERE id = $1",
        token_id,
        access.envelope,
        refresh.envelope,
        access.key_id,
    )


@dataclass(frozen=True)
class Ended:
    code: int | None
    printed: str


async def run(
    settings: ApiSettings,
    pool: asyncpg.Pool,
    folder: Path,
    *options: str,
    sent: AccessScope,
    supposed: AccessScope,
) -> Ended:
    """Let schemathesis loose with a key of the scope `sent`, of which it supposes that the scope is another one."""
    await pool.execute(_DONE_AT_ONCE)
    for user_id in (MINE, OTHERS):
        await give_a_pair(settings, pool, int((await a_busy_seller(pool, user_id))["token_id"]))
    # A replay goes to the topic that the record came from, and that one is there.
    await pool.execute("UPDATE dead_letters SET topic = $1", settings.topics.orders)
    key = await a_key(pool, sent, requests_per_minute=10_000_000)
    hooks = {"PYTHONPATH": str(_ROOT), "SCHEMATHESIS_HOOKS": "tests.api.schemathesis_hooks", SCOPE: supposed.value}
    async with served(build_app(settings, transport=httpx.MockTransport(allegro))) as url:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "schemathesis.cli", "run", f"{url}/openapi.json"),
            *("--header", f"Authorization: {key['Authorization']}"),
            *("--phases", "examples,coverage,fuzzing", "--max-examples", _EXAMPLES),
            *("--seed", "1", "--generation-deterministic", "--no-shrink", "--no-color", "--request-timeout", "60"),
            # What fits the description may be refused for what it means: a cursor of another list, a time to come.
            *("--continue-on-failure", "--exclude-checks", "positive_data_acceptance"),
            *options,
            cwd=folder,
            env=os.environ | hooks,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        printed, _ = await process.communicate()
    return Ended(process.returncode, printed.decode())


@pytest.mark.timeout(900)
@pytest.mark.parametrize("scope", list(AccessScope))
async def test_every_answer_is_as_described_and_allowed(
    settings: ApiSettings, pool: asyncpg.Pool, scope: AccessScope, tmp_path: Path
) -> None:
    ended = await run(settings, pool, tmp_path, sent=scope, supposed=scope)

    assert ended.code == 0, ended.printed


@pytest.mark.timeout(900)
async def test_an_answer_beyond_the_scope_would_be_found(
    settings: ApiSettings, pool: asyncpg.Pool, tmp_path: Path
) -> None:
    ended = await run(
        *(settings, pool, tmp_path, "--include-path", "/api/v1/sync/deactivate"),
        sent=AccessScope.CONTROL,
        supposed=AccessScope.READ,
    )

    assert ended.code == 1, ended.printed
    assert "needs the scope control" in ended.printed
