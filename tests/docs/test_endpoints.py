"""Every path of the API that the documentation names exists."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from services.api.app import build_app
from services.api.settings import ApiSettings

_ROOT = Path(__file__).parents[2]
_PAGES = sorted([*_ROOT.glob("*.md"), *(_ROOT / "docs").glob("*.md")])
_PATH = re.compile(r"(?:(?P<method>GET|POST|PUT|DELETE) |-X (?P<option>\w+) \S*?)?(?P<path>/api/v1/[\w/{}-]*)")


@pytest.fixture(scope="module")
def routes() -> list[tuple[str, re.Pattern[str]]]:
    settings = ApiSettings.model_validate(
        {
            "database_url": "postgresql://nobody@127.0.0.1:1/none",
            "kafka_bootstrap_servers": "127.0.0.1:1",
            "allegro_client_id": "id",
            "allegro_client_secret": "secret",
            "allegro_user_agent": "Shop/1.0 (+https://example.com)",
            "encryption_keys": "key1:" + "A" * 43 + "=",
        }
    )
    paths = build_app(settings).openapi()["paths"]
    return [
        (method.upper(), re.compile(re.sub(r"\\\{\w+\\\}", r"[\\w{}-]+", re.escape(path))))
        for path, methods in paths.items()
        for method in methods
    ]


def _named(page: Path) -> Iterator[tuple[str | None, str]]:
    for found in _PATH.finditer(page.read_text()):
        yield found["method"] or found["option"], found["path"]


@pytest.mark.parametrize("page", _PAGES, ids=lambda page: page.name)
def test_every_path_in_the_documentation_is_an_endpoint(page: Path, routes: list[tuple[str, re.Pattern[str]]]) -> None:
    unknown = [
        (method, path)
        for method, path in _named(page)
        if not any(method in (None, known) and pattern.fullmatch(path) for known, pattern in routes)
    ]

    assert unknown == []
