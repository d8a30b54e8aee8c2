"""Waiting for consent at the prompt: an API that is away for a while does not end it, the end of the code does."""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import httpx
import pytest

from cli.auth import _until_ended
from cli.client import Api
from cli.errors import AwayError, RefusedError

IN_AN_HOUR = datetime.now(UTC) + timedelta(hours=1)


@pytest.fixture(autouse=True)
def _no_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cli.auth._LOOK_SECONDS", 0)


def an_api(answers: Iterator[httpx.Response | Exception]) -> Api:
    def answer(_request: httpx.Request) -> httpx.Response:
        following = next(answers)
        if isinstance(following, Exception):
            raise following
        return following

    return Api("http://api", transport=httpx.MockTransport(answer))


def test_an_api_that_is_away_for_a_while_is_waited_for() -> None:
    told: list[str] = []
    answers: list[httpx.Response | Exception] = [
        httpx.Response(200, json={"status": "PENDING"}),
        httpx.ConnectError("connection refused"),
        httpx.ReadTimeout("too late"),
        httpx.Response(503, json={"detail": "PostgreSQL is away", "correlation_id": "c-1"}),
        httpx.Response(200, json={"status": "PENDING"}),
        httpx.Response(200, json={"status": "SUCCESS", "token_id": 7}),
    ]

    with an_api(iter(answers)) as api:
        ended = _until_ended(api, "task", IN_AN_HOUR, told.append)

    assert ended == {"status": "SUCCESS", "token_id": 7}
    assert ["does not answer" in text for text in told] == [False, True, True, True, False]
    assert "PostgreSQL is away" in told[3]


def test_an_api_that_stays_away_until_the_code_is_of_no_use_ends_it() -> None:
    past = datetime.now(UTC) - timedelta(seconds=1)

    with an_api(iter([httpx.ConnectError("refused")])) as api, pytest.raises(AwayError, match="does not answer"):
        _until_ended(api, "task", past, lambda _text: None)


def test_a_code_that_expires_without_anybody_asking_for_its_end_ends_it() -> None:
    past = datetime.now(UTC) - timedelta(seconds=1)
    pending = httpx.Response(200, json={"status": "PENDING"})

    with an_api(iter([pending])) as api, pytest.raises(AwayError, match="is the poller running"):
        _until_ended(api, "task", past, lambda _text: None)


def test_an_authorisation_that_is_not_there_ends_it() -> None:
    gone = httpx.Response(404, json={"detail": "There is no such authorisation", "correlation_id": "c-1"})

    with an_api(iter([gone])) as api, pytest.raises(RefusedError, match="no such authorisation"):
        _until_ended(api, "task", IN_AN_HOUR, lambda _text: None)
