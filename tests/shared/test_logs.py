"""Log lines: one documented shape, and no secret in any of them, wherever it hides (A8, G2)."""

import base64
import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from shared.encryption import Secret
from shared.logs import configure, correlated, remember_user, scrub, unknown_users
from shared.settings import LogSettings

JWT = ".".join(
    base64.urlsafe_b64encode(part).decode().rstrip("=")
    for part in (b'{"alg":"RS256","typ":"JWT"}', b'{"user_name":"1","jti":"canary"}', b"signature-of-the-token")
)
OPAQUE = "qeRK87eUwzFVT1AdEygGRxsFEO5ZDVXn"


@pytest.mark.parametrize(
    "text",
    [
        JWT,
        f"Authorization: Bearer {OPAQUE}",
        f"authorization: bearer {OPAQUE}",
        f"Basic {OPAQUE}==",
        f"Access token expired: {OPAQUE}",
        f"Invalid refresh token: {OPAQUE}",
        f"REFRESH_TOKEN={OPAQUE}",
        f"client_secret={OPAQUE}",
        f"/auth/device_code/{OPAQUE}/x",
        f"grant_type=refresh_token&refresh_token={OPAQUE}&x=1",
        f"https://allegro.pl/auth/oauth/token?device_code={OPAQUE}",
        f"GET /api/v1/tokens/auth/status/{OPAQUE} HTTP/1.1",
        f'{{"access_token": "{OPAQUE}", "expires_in": 1}}',
        f"{{'refresh_token': '{OPAQUE}'}}",
        f'{{"device_code":"{OPAQUE}"}}',
        f"error: {JWT}, again {JWT}",
        f"Invalid refresh token: {JWT}.[removed]",
    ],
)
def test_scrubbed_texts_hold_no_token(text: str) -> None:
    scrubbed = scrub(text)

    assert OPAQUE not in scrubbed
    assert not any(part in scrubbed for part in JWT.split("."))
    assert "***" in scrubbed


@pytest.mark.parametrize(
    "text",
    [
        "Checkout form c93df771-353e-11ee-9e0d-11d3ebef3a15 not found",
        "token 42 is deactivated",
        "the access token was refused: refreshing",
        "access_token: Field required",
    ],
)
def test_ordinary_texts_stay_as_they_are(text: str) -> None:
    assert scrub(text) == text


@pytest.fixture
def log_file(tmp_path: Path) -> Iterator[Path]:
    """Logs configured as in a service, into a file."""
    root = logging.getLogger()
    handlers, level = root.handlers, root.level
    configure(LogSettings(log_level="DEBUG", log_dir=tmp_path), service="test")
    yield tmp_path / "test.log"
    for handler in root.handlers:
        handler.close()
    root.handlers, root.level = handlers, level


def lines(log_file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in log_file.read_text("utf-8").splitlines()]


def test_a_line_has_the_documented_shape(log_file: Path) -> None:
    with correlated("c-1", user="shop-1"):
        logging.getLogger("a.b").warning("it %s", "happened", extra={"token_id": 7})

    line = lines(log_file)[-1]
    assert set(line) == {"timestamp", "level", "logger", "message", "user_id", "correlation_id", "extra"}
    assert (line["level"], line["logger"], line["message"]) == ("warning", "a.b", "it happened")
    assert (line["user_id"], line["correlation_id"], line["extra"]) == ("shop-1", "c-1", {"token_id": 7})


def test_a_line_about_a_token_names_its_user_once_that_is_known(
    log_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shared.logs._users", {})
    logger = logging.getLogger("a.b")
    with correlated("c-1", token=7):
        logger.info("before")
        remember_user(7, "shop-7")
        logger.info("after")
        logger.info("of another", extra={"user_id": "shop-8"})
    logger.info("by its extra", extra={"token_id": 7})
    logger.info("nobody's")

    assert [line["user_id"] for line in lines(log_file)] == [None, "shop-7", "shop-8", "shop-7", None]
    assert unknown_users([7, 8]) == [8]


def test_a_log_file_is_replaced_at_5_mb_and_three_are_kept(log_file: Path) -> None:
    logger = logging.getLogger("a.b")
    for _ in range(5 * 4):
        logger.info("x" * 1024 * 1024)

    files = sorted(log_file.parent.iterdir())
    assert [file.name for file in files] == ["test.log", "test.log.1", "test.log.2"]
    assert all(4 * 1024 * 1024 < file.stat().st_size <= 5 * 1024 * 1024 for file in files[1:])


def test_no_line_holds_a_secret_wherever_it_hides(log_file: Path) -> None:
    logger = logging.getLogger("canary")
    logger.info("message %s", JWT)
    logger.info("extra", extra={"error": JWT, "nested": {"list": [JWT, (JWT,)], "error": ValueError(JWT)}})
    logger.info("secret %s", Secret(OPAQUE), extra={"secret": Secret(OPAQUE)})
    logger.info("by the name of what is told anyway", extra=dict.fromkeys(("level", "logger", "timestamp"), JWT))
    try:
        raise ValueError(f"Invalid refresh token: {JWT}")
    except ValueError:
        logger.exception("with a traceback")

    text = log_file.read_text("utf-8")
    assert len(lines(log_file)) == 5
    assert OPAQUE not in text
    assert not any(part in text for part in JWT.split("."))
