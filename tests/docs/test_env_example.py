"""`.env.example` names every setting, and nothing else, with its real default and an explanation."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest
from pydantic.fields import FieldInfo

from tests.deploy.service_settings import SERVICES, default_text, variables

_ROOT = Path(__file__).parents[2]
_LINE = re.compile(r"(?P<commented>#?)(?P<name>[A-Z][A-Z0-9_]*)=(?P<value>.*)")
_INTERPOLATION = re.compile(r"\$\{(?P<name>\w+)(?::-(?P<default>[^}]*)|:\?[^}]*)\}")
# Read by `make up` itself (devstack/up.py, devstack/brokers.py).
_DEVSTACK = {"DATA_DIR": ".data", "KAFKA": "embedded"}


@dataclass(frozen=True)
class Entry:
    value: str
    commented: bool
    explained: bool


def _example() -> Mapping[str, Entry]:
    entries: dict[str, Entry] = {}
    above = ""
    for line in (_ROOT / ".env.example").read_text().splitlines():
        found = _LINE.fullmatch(line)
        if found is not None:
            assert found["name"] not in entries, f"{found['name']} stands there twice"
            entries[found["name"]] = Entry(found["value"], bool(found["commented"]), above.startswith("# "))
        above = line
    return entries


def _settings() -> Mapping[str, FieldInfo]:
    return {name: field for service in SERVICES for name, field in variables(service).items()}


def _compose_defaults() -> Mapping[str, str]:
    """The variables that the compose file itself interpolates, with their defaults."""
    text = (_ROOT / "deploy" / "compose.yaml").read_text()
    return {found["name"]: found["default"] or "" for found in _INTERPOLATION.finditer(text)}


def test_every_setting_stands_there_and_nothing_else_does() -> None:
    known = _settings().keys() | _compose_defaults().keys() | _DEVSTACK.keys()

    assert set(_example()) == known


def test_the_defaults_are_the_real_ones() -> None:
    settings = {name: default_text(field) for name, field in _settings().items()}

    assert {name: entry.value for name, entry in _example().items()} == {
        **_DEVSTACK,
        **_compose_defaults(),
        **settings,
    }


@pytest.mark.parametrize("name", sorted(_example()))
def test_every_setting_is_explained_right_above_it(name: str) -> None:
    assert _example()[name].explained


def test_what_must_be_filled_in_is_empty_and_not_commented_out() -> None:
    required = {name for name, field in _settings().items() if field.is_required()}
    required |= {
        found["name"]
        for found in _INTERPOLATION.finditer((_ROOT / "deploy/compose.yaml").read_text())
        if found["default"] is None
    }

    assert {name for name, entry in _example().items() if not entry.commented} == required
