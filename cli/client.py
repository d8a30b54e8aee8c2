"""The REST API as the command line sees it: JSON in and out, problems as errors of ours.

A key of the API is taken from the environment alone: the arguments of a program are seen by everybody on its machine.
"""

import os
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from http import HTTPStatus
from types import TracebackType
from typing import Annotated, Any, Self
from urllib.parse import quote

import httpx
import msgspec
import typer

from cli.errors import AwayError, RefusedError

ApiUrl = Annotated[
    str, typer.Option("--api-url", envvar="ORDERS_BACKUP_API_URL", help="Where the API is served.", show_default=True)
]
KEY_VARIABLE = "ORDERS_BACKUP_API_KEY"
DEFAULT_URL = "http://127.0.0.1:8000"

# Longer than the API's own deadline.
_TIMEOUT_SECONDS = 90.0
# A stream is silent while nothing is found that it should show, and Parquet until there is enough for a row group.
_STREAM_TIMEOUT = httpx.Timeout(_TIMEOUT_SECONDS, read=900.0)
_AWAY = (HTTPStatus.BAD_GATEWAY, HTTPStatus.SERVICE_UNAVAILABLE, HTTPStatus.GATEWAY_TIMEOUT)


class _Page(msgspec.Struct):
    items: list[msgspec.Raw]
    next: str | None


class Api(AbstractContextManager["Api"]):
    """One connection to the API. Raises RefusedError with the problem's own words, AwayError if it does not answer."""

    def __init__(self, url: str, *, transport: httpx.BaseTransport | None = None) -> None:
        self._url = url.rstrip("/")
        key = os.environ.get(KEY_VARIABLE, "")
        self._http = httpx.Client(
            base_url=f"{self._url}/api/v1",
            headers={"Authorization": f"Bearer {key}"} if key else {},
            timeout=_TIMEOUT_SECONDS,
            trust_env=False,
            transport=transport,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, _type: type[BaseException] | None, _error: BaseException | None, _traceback: TracebackType | None
    ) -> None:
        self._http.close()

    def get(self, path: str, **params: Any) -> Any:
        """The answer's JSON; parameters that are None are left out."""
        return self._call("GET", path, params=_given(params)).json()

    def text(self, path: str) -> str:
        """The answer as it came."""
        return self._call("GET", path).text

    def post(self, path: str, body: Mapping[str, Any] | None = None) -> Any:
        return self._call("POST", path, json=body).json()

    def delete(self, path: str) -> Any:
        return self._call("DELETE", path).json()

    def items(self, path: str, *, at_most: int | None = None, **params: Any) -> Iterator[dict[str, Any]]:
        """The rows of a list, page after page."""
        for row in self.rows(path, at_most=at_most, **params):
            yield msgspec.json.decode(row)

    def rows(self, path: str, *, at_most: int | None = None, **params: Any) -> Iterator[bytes]:
        """The same, each as the JSON that came: a number that is read and written again could change."""
        left = at_most
        cursor: str | None = None
        while left is None or left > 0:
            answer = self._call(
                "GET", path, params=_given({"limit": min(left or 500, 500), "cursor": cursor, **params})
            )
            page = msgspec.json.decode(answer.content, type=_Page)
            yield from map(bytes, page.items)
            cursor = page.next
            left = None if left is None else left - len(page.items)
            if cursor is None:
                return

    @contextmanager
    def stream(
        self, path: str, *, compressed: bool = False, last_event_id: str = "", **params: Any
    ) -> Iterator[Iterator[bytes]]:
        """The answer's body as it comes; also raises AwayError where it breaks off."""
        headers = {"Accept-Encoding": "gzip" if compressed else "identity"}
        if last_event_id:
            headers["Last-Event-ID"] = last_event_id
        try:
            with self._http.stream(
                "GET", path, params=_given(params), headers=headers, timeout=_STREAM_TIMEOUT
            ) as answer:
                if not answer.is_success:
                    answer.read()
                yield _checked(answer).iter_bytes()
        except httpx.HTTPError as error:
            raise AwayError(f"the API at {self._url} does not answer: {error}") from error

    def _call(self, method: str, path: str, **options: Any) -> httpx.Response:
        try:
            answer = self._http.request(method, path, **options)
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise AwayError(f"the API at {self._url} does not answer: {error}") from error
        return _checked(answer)


def _checked(answer: httpx.Response) -> httpx.Response:
    """The answer if it is what was asked for; raises RefusedError or AwayError."""
    if answer.is_success:
        return answer
    message = _explanation(answer)
    if answer.status_code == HTTPStatus.UNAUTHORIZED:
        message += f"; put a key into {KEY_VARIABLE} (make one: orders-backup keys create)"
    if answer.status_code in _AWAY:
        raise AwayError(message)
    raise RefusedError(message)


def part(text: str) -> str:
    """A text as one part of a path."""
    return quote(text, safe="")


def _given(params: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in params.items() if value is not None}


def _explanation(answer: httpx.Response) -> str:
    """The problem's own words, and the id by which the logs tell more."""
    try:
        problem = answer.json()
        return f"{problem['detail']} ({answer.status_code}, correlation id {problem['correlation_id']})"
    except (ValueError, KeyError, TypeError):
        return f"{answer.url} answered {answer.status_code}, and not as our API does: is it the right address?"
