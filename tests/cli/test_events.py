"""Server-sent events are read however the stream is cut."""

import io
import itertools
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from cli.client import Api
from cli.errors import AwayError
from cli.events import Event, events, task_states
from cli.sync import _watched, until_ended

STREAM = (
    b'retry: 2000\n\nid: 1\nevent: progress\ndata: {"a": "b: c"}\n\n: nothing new\n\n'
    b"id: 2\nevent: end\ndata: {}\n\nid: 3"
)


@given(st.lists(st.integers(0, len(STREAM)), max_size=8))
def test_events_are_the_same_wherever_the_pieces_end(places: list[int]) -> None:
    ends = sorted({0, *places, len(STREAM)})
    pieces = [STREAM[start:end] for start, end in itertools.pairwise(ends)]

    assert list(events(pieces)) == [Event("1", "progress", '{"a": "b: c"}'), Event("2", "end", "{}")]


def a_state(kind: str, number: int) -> bytes:
    run = f'{{"orders_processed":{number},"orders_expected":9}}'
    task = f'{{"task_id":"t","kind":"full","status":"{kind}","run":{run}}}'
    return f"id: {number}\nevent: {kind}\ndata: {task}\n\n".encode()


def test_a_task_is_followed_over_a_break_until_its_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cli.events._PAUSE_SECONDS", 0)
    answers = [
        httpx.Response(200, content=a_state("progress", 1) + a_state("progress", 2)[:20]),
        httpx.Response(503, json={"detail": "starting", "correlation_id": "c"}),
        httpx.Response(200, content=a_state("progress", 3) + a_state("end", 9)),
    ]
    asked: list[str | None] = []

    def answer(request: httpx.Request) -> httpx.Response:
        asked.append(request.headers.get("Last-Event-ID"))
        return answers[len(asked) - 1]

    with Api("http://127.0.0.1", transport=httpx.MockTransport(answer)) as api:
        states = list(task_states(api, "t"))

    assert [state["run"]["orders_processed"] for state in states] == [1, 3, 9]
    assert asked == [None, "1", "1"]


def test_an_api_that_stays_away_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cli.events._PAUSE_SECONDS", 0)
    away = httpx.MockTransport(lambda _request: httpx.Response(503, json={"detail": "x", "correlation_id": "c"}))

    with Api("http://127.0.0.1", transport=away) as api, pytest.raises(AwayError):
        list(task_states(api, "t"))


def test_a_bar_ends_with_the_tasks_last_state() -> None:
    body = a_state("progress", 1) + a_state("end", 9)
    transport = httpx.MockTransport(lambda _request: httpx.Response(200, content=body))

    with Api("http://127.0.0.1", transport=transport) as api:
        task = until_ended(api, {"task_id": "t", "kind": "full", "status": "queued"})

    assert (task["status"], task["run"]["orders_processed"]) == ("end", 9)


def a_standing(*runs: dict[str, Any]) -> httpx.Response:
    return httpx.Response(200, json={"user_id": "shop-1", "orders": 9, "running": list(runs)})


def a_run(processed: int, expected: int | None) -> dict[str, Any]:
    run = {"run_id": "r", "kind": "initial", "status": "running"}
    return {**run, "orders_processed": processed, "orders_expected": expected}


def test_the_bar_of_a_run_moves_until_nothing_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = io.StringIO()
    monkeypatch.setattr("cli.sync.progress_console", lambda: Console(file=seen, force_terminal=True, width=100))
    monkeypatch.setattr("cli.sync._LOOK_SECONDS", 0.2)
    away = httpx.Response(503, json={"detail": "x", "correlation_id": "c"})
    answers = iter([a_standing(a_run(0, None)), a_standing(a_run(3, 9)), away, a_standing(a_run(8, 9)), a_standing()])

    with Api("http://127.0.0.1", transport=httpx.MockTransport(lambda _request: next(answers))) as api:
        found = _watched(api, "shop-1")

    assert found["running"] == []
    assert "initial (running)" in seen.getvalue()
    assert "3/9" in seen.getvalue()
    assert "8/9" in seen.getvalue()


def test_an_api_that_stays_away_ends_the_watch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cli.sync._LOOK_SECONDS", 0)
    away = httpx.MockTransport(lambda _request: httpx.Response(503, json={"detail": "x", "correlation_id": "c"}))

    with Api("http://127.0.0.1", transport=away) as api, pytest.raises(AwayError):
        _watched(api, "shop-1")
