"""Structured JSON logs (requirement G2): `timestamp, level, logger, message, user_id, correlation_id, extra`.

One format for our records, FastStream's, uvicorn's and aiokafka's. The correlation id comes from a context
variable, so that a request keeps its id through the API, Kafka and every service.
"""

import logging
import logging.handlers
import re
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any
from uuid import uuid4

import structlog

from shared.settings import LogSettings

correlation_id: ContextVar[str | None] = ContextVar("correlation_id", default=None)
user_id: ContextVar[str | None] = ContextVar("user_id", default=None)
token_id: ContextVar[int | None] = ContextVar("token_id", default=None)

# Records know the token only; whose it is has been read for another reason, and never changes.
_users: dict[int, str] = {}

_FILE_BYTES = 5 * 1024 * 1024
_FILES = 3

# JSON web tokens, wherever they stand; and what follows the words with which Allegro's OAuth errors echo a token
# (allegro-api.md 2), headers, forms, JSON and our own addresses name one.
_WEB_TOKENS = re.compile(r"eyJ[\w-]+(?:\.[\w-]*){0,2}")
_SPOKEN = re.compile(r"(expired: |refresh token: |\bBearer |\bBasic )[^\s\"']+", re.IGNORECASE)
_NAMED = re.compile(
    r"((?:access_token|refresh_token|device_code|client_secret)(?:=[\"']?|[\"']\s*:\s*[\"'])"
    r"|device_code/|auth/status/)[^/?&\s\"']+",
    re.IGNORECASE,
)
_STANDARD = {"timestamp", "level", "logger", "event", "user_id", "correlation_id"}


def scrub(text: str) -> str:
    """The text without anything that looks like a token or a device code."""
    # Every string of every record comes here: what a pattern cannot do without is looked for before it.
    if "eyJ" in text:
        text = _WEB_TOKENS.sub("***", text)
    if " " in text:
        text = _SPOKEN.sub(r"\1***", text)
    lower = text.lower()
    if "_token" in lower or "device_code" in lower or "client_secret" in lower or "auth/status/" in lower:
        text = _NAMED.sub(r"\1***", text)
    return text


def _scrub_values(value: Any) -> Any:
    match value:
        case str():
            return scrub(value)
        case None | bool() | int() | float():
            return value
        case Mapping():
            return {key: _scrub_values(item) for key, item in value.items()}
        case list() | tuple():
            return [_scrub_values(item) for item in value]
        case _:
            return scrub(str(value))


def _arrange(_logger: Any, _method: str, event: structlog.typing.EventDict) -> Mapping[str, Any]:
    """Bring every record into the documented shape, scrubbed."""
    extra = {key: value for key, value in event.items() if key not in _STANDARD and not key.startswith("_")}
    user = event.get("user_id") or user_id.get() or _users.get(event.get("token_id") or token_id.get() or 0)
    return {
        "timestamp": event.get("timestamp"),
        "level": event.get("level"),
        "logger": event.get("logger"),
        "message": _scrub_values(event.get("event")),
        "user_id": _scrub_values(user),
        "correlation_id": _scrub_values(event.get("correlation_id", correlation_id.get())),
        "extra": _scrub_values(extra),
    }


def formatter() -> logging.Formatter:
    """Makes one line of JSON of a record, whoever's it is, without secrets."""
    return structlog.stdlib.ProcessorFormatter(
        foreign_pre_chain=[
            structlog.stdlib.ExtraAdder(),  # first: what the others say is not scrubbed
            structlog.stdlib.add_log_level,
            structlog.stdlib.add_logger_name,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
        ],
        processors=[
            structlog.stdlib.ProcessorFormatter.remove_processors_meta,
            structlog.processors.format_exc_info,
            _arrange,
            structlog.processors.JSONRenderer(ensure_ascii=False),
        ],
    )


def configure(settings: LogSettings, *, service: str) -> None:
    """Send every record of this process to stdout, and to a rotating file where one is asked for."""
    handlers: list[logging.Handler] = [logging.StreamHandler(sys.stdout)]
    if settings.log_dir is not None:
        settings.log_dir.mkdir(parents=True, exist_ok=True)
        handlers.append(
            logging.handlers.RotatingFileHandler(
                settings.log_dir / f"{service}.log",
                maxBytes=_FILE_BYTES,
                backupCount=_FILES - 1,
                encoding="utf-8",
            )
        )
    root = logging.getLogger()
    root.handlers = handlers
    root.setLevel(settings.log_level)
    for handler in handlers:
        handler.setFormatter(formatter())
    # FastStream and uvicorn attach handlers of their own at import: theirs go, ours stay.
    for name in (
        "faststream",
        "faststream.access",
        "faststream.access.kafka",
        "uvicorn",
        "uvicorn.error",
        "uvicorn.access",
    ):
        other = logging.getLogger(name)
        other.handlers = []
        other.propagate = True
    for noisy in ("httpx", "httpcore", "uvicorn.access", "aiokafka.consumer.group_coordinator"):
        logging.getLogger(noisy).setLevel(max(logging.WARNING, root.level))


def remember_user(token: int, user: str) -> None:
    """Let log lines about this token name its user."""
    _users[token] = user


def unknown_users(tokens: Iterable[int]) -> list[int]:
    """Those of the tokens whose user no log line could name."""
    return [token for token in tokens if token not in _users]


@contextmanager
def correlated(identifier: str | None, *, user: str | None = None, token: int | None = None) -> Iterator[str]:
    """Give everything logged and published inside the block one correlation id (a new one if there is none).

    It is about a user, or about whoever has the token, where one is given.
    """
    chosen = identifier or uuid4().hex
    correlation_token = correlation_id.set(chosen)
    user_token = user_id.set(user) if user is not None else None
    token_token = token_id.set(token) if token is not None else None
    try:
        yield chosen
    finally:
        correlation_id.reset(correlation_token)
        if user_token is not None:
            user_id.reset(user_token)
        if token_token is not None:
            token_id.reset(token_token)


def current_correlation_id() -> str:
    """The id of what is being done now, or a new one outside of any block."""
    return correlation_id.get() or uuid4().hex
