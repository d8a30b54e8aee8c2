"""`orders-backup doctor`: what keeps the product from working, and how to mend it."""

import asyncio
from collections import defaultdict
from collections.abc import Awaitable, Callable, Mapping
from contextlib import AsyncExitStack
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from functools import partial

import asyncpg
import httpx

from cli.client import DEFAULT_URL, ApiUrl
from cli.errors import RefusedError
from cli.output import AsJson, show_json, show_table
from migrations.run import current, head
from services.api.settings import ApiSettings
from services.enricher.settings import EnricherSettings
from services.poller.settings import PollerSettings
from services.writer.settings import WriterSettings
from shared.allegro.errors import (
    AllegroUnavailableError,
    InvalidClientError,
    RateLimitedError,
    from_oauth_answer,
)
from shared.allegro.http import open_http
from shared.allegro.oauth import basic_authorization
from shared.database import close_pool, database_now, open_pool
from shared.errors import ConfigurationError
from shared.kafka import partitions_of
from shared.key_rotation import check_keys
from shared.request_limits import Endpoint
from shared.settings import (
    AllegroSettings,
    DatabaseSettings,
    EncryptionSettings,
    KafkaSettings,
    ServiceSettings,
    load,
)

_SECONDS = 10.0
# Of a single request; the time above is over before.
_LONGEST_SECONDS = 2 * _SECONDS
_CLOCK_TOLERANCE = timedelta(seconds=5)


_SERVICES: Mapping[str, type[ServiceSettings]] = {
    "api": ApiSettings,
    "poller": PollerSettings,
    "enricher": EnricherSettings,
    "writer": WriterSettings,
}


class _Settings(DatabaseSettings, KafkaSettings, AllegroSettings, EncryptionSettings):
    """What the looks beyond the settings need."""


@dataclass(frozen=True)
class Finding:
    """What one look found; `mend` is what to do about it, empty where all is well."""

    what: str
    found: str
    mend: str = ""


Look = Callable[[], Awaitable[Finding]]


def doctor(as_json: AsJson = False, api_url: ApiUrl = DEFAULT_URL) -> None:
    """Look at settings, database, topics, keys, clock, Allegro and API; exit code 1 if something is to be mended."""
    findings = _settings()
    try:
        settings = load(_Settings)
    except ConfigurationError as error:
        findings.append(Finding("everything else", f"not looked at: {error}", "correct these first"))
    else:
        findings += asyncio.run(_examine(settings, api_url))
    wrong = [finding for finding in findings if finding.mend]
    if as_json:
        show_json([asdict(finding) for finding in findings])
    else:
        show_table([asdict(finding) for finding in findings], ("what", "found", "mend"), empty="nothing was looked at")
    if wrong:
        raise RefusedError(f"{len(wrong)} of {len(findings)} looks found something to mend")


def _settings() -> list[Finding]:
    """What each service says of its settings as it starts; the same of several is said once."""
    complaints: defaultdict[str, list[str]] = defaultdict(list)
    for service, settings in _SERVICES.items():
        try:
            load(settings)
        except ConfigurationError as error:
            complaints[str(error)].append(service)
    if not complaints:
        return [Finding("settings", "complete")]
    return [
        Finding(f"settings of {', '.join(services)}", said, "correct the variables in the environment or .env")
        for said, services in complaints.items()
    ]


async def _examine(settings: _Settings, api_url: str) -> list[Finding]:
    findings: list[Finding] = []
    async with AsyncExitStack() as stack:
        looks: list[tuple[str, str, Look]] = [
            ("Kafka", "start it, or correct KAFKA_BOOTSTRAP_SERVERS", partial(_topics, settings)),
            ("Allegro", "correct ALLEGRO_API_URL, or open the way to it", partial(_allegro, settings)),
            ("client id", "correct ALLEGRO_AUTH_URL, or open the way to it", partial(_client_id, settings)),
            ("API", "start `python -m services.api`, or give --api-url", partial(_api, api_url)),
        ]
        url = settings.database_url.get_secret_value()
        try:
            async with asyncio.timeout(_SECONDS):
                pool = await open_pool(url, service="doctor", max_size=2)
        except Exception as error:  # noqa: BLE001 - whatever it is, it is what was found
            findings.append(Finding("PostgreSQL", _told(error), "start it, or correct DATABASE_URL"))
        else:
            stack.push_async_callback(close_pool, pool)
            findings.append(Finding("PostgreSQL", "answers"))
            looks += [
                ("migrations", "orders-backup setup", partial(_migrations, url)),
                ("encryption keys", "add the missing key to ENCRYPTION_KEYS", partial(_keys, settings, pool)),
                ("clock", "let both hosts keep their time by NTP", partial(_clock, pool)),
            ]
        findings += await asyncio.gather(*(_look(what, mend, look) for what, mend, look in looks))
    return findings


async def _look(what: str, mend: str, look: Look) -> Finding:
    try:
        async with asyncio.timeout(_SECONDS):
            return await look()
    except Exception as error:  # noqa: BLE001 - whatever it is, it is what was found
        return Finding(what, _told(error), mend)


async def _topics(settings: _Settings) -> Finding:
    partitions = await partitions_of(settings)
    missing = sorted(set(settings.topics.all()) - set(partitions))
    if missing:
        return Finding("Kafka", f"there is no topic {', '.join(missing)}", "orders-backup setup")
    if len(set(partitions.values())) > 1:
        return Finding("Kafka", f"partitions differ: {partitions}", "bring all topics to the same number of partitions")
    return Finding("Kafka", f"{len(partitions)} topics of {next(iter(partitions.values()))} partitions")


async def _allegro(settings: _Settings) -> Finding:
    async with open_http(settings) as http:
        answer = await http.request("GET", f"{settings.api_url}/order/event-stats", timeout_seconds=_LONGEST_SECONDS)
    if answer.is_server_error:
        return Finding("Allegro", f"{settings.api_url} answers {answer.status}", "wait: nothing is lost meanwhile")
    if answer.status != httpx.codes.UNAUTHORIZED:
        found = f"{settings.api_url} answers {answer.status} where Allegro asks for a token (401)"
        return Finding("Allegro", found, "correct ALLEGRO_API_URL or ALLEGRO_USER_AGENT, or see what stands between")
    return Finding("Allegro", f"{settings.api_url} answers")


async def _client_id(settings: _Settings) -> Finding:
    """Ask for a refresh with a token that nobody has: whether we are who we say is decided before that."""
    async with open_http(settings) as http:
        answer = await http.request(
            "POST",
            f"{settings.auth_url}/auth/oauth/token",
            data={"grant_type": "refresh_token", "refresh_token": "none"},
            headers={"Authorization": basic_authorization(settings).reveal()},
            timeout_seconds=_LONGEST_SECONDS,
        )
    error = from_oauth_answer(Endpoint.TOKEN.value, answer.status, answer.body, retry_after=answer.retry_after)
    if isinstance(error, InvalidClientError):
        return Finding("client id", str(error), "correct ALLEGRO_CLIENT_ID and ALLEGRO_CLIENT_SECRET")
    if isinstance(error, AllegroUnavailableError | RateLimitedError):
        return Finding("client id", str(error), "wait, and look again")
    return Finding("client id", f"{settings.allegro_client_id} is accepted")


async def _api(api_url: str) -> Finding:
    async with httpx.AsyncClient(trust_env=False, timeout=_SECONDS) as http:
        answer = await http.get(f"{api_url.rstrip('/')}/readyz")
    if answer.status_code != httpx.codes.OK:
        return Finding("API", f"not ready: {answer.text[:200]}", "see its log")
    return Finding("API", f"{api_url} is ready")


async def _migrations(database_url: str) -> Finding:
    revision, wanted = await current(database_url), head()
    if revision != wanted:
        return Finding("migrations", f"at {revision or 'none'}, this version needs {wanted}", "orders-backup setup")
    return Finding("migrations", f"at {revision}")


async def _keys(settings: _Settings, pool: asyncpg.Pool) -> Finding:
    keyring = settings.keyring()
    await check_keys(pool, keyring)
    return Finding("encryption keys", f"open what is stored; new secrets get {keyring.primary_key_id!r}")


async def _clock(pool: asyncpg.Pool) -> Finding:
    offset = datetime.now(UTC) - await database_now(pool)
    if abs(offset) > _CLOCK_TOLERANCE:
        return Finding("clock", f"{offset.total_seconds():+.0f} s from PostgreSQL's", "let both keep their time by NTP")
    return Finding("clock", "agrees with PostgreSQL's")


def _told(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"[:300]
