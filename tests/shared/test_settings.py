"""Settings that would only fail at Allegro are refused at start (G1; the User-Agent of issue 3)."""

import pytest
from pydantic import ValidationError

from tests.shared.allegro.builders import settings


@pytest.mark.parametrize(
    "agent",
    [
        "Shop/1.0 (+https://example.com)",
        "My-Shop_2/2026.11.0-rc1 (+http://example.com/about?x=1)",
    ],
)
def test_a_user_agent_as_allegro_demands_it_is_taken(agent: str) -> None:
    assert settings(allegro_user_agent=agent).allegro_user_agent == agent


@pytest.mark.parametrize(
    "agent",
    [
        "",
        "Shop",
        "Shop/1.0",
        "Shop/1.0 https://example.com",
        "Shop/1.0 (https://example.com)",
        "Shop/1.0 (+example.com)",
        "My Shop/1.0 (+https://example.com)",
        "Shop/1.0 (+https://example.com)\r\nX-Evil: 1",
        "Sklep/1.0 (+https://example.com) żółw",
    ],
)
def test_any_other_user_agent_is_refused_by_name(agent: str) -> None:
    with pytest.raises(ValidationError, match=r"allegro_user_agent[\s\S]*must read <registered-app-name>/<version>"):
        settings(allegro_user_agent=agent)
