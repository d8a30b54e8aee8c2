"""Every command that the documentation names exists."""

import re
from pathlib import Path

import pytest
import typer.main

from cli.app import app

_ROOT = Path(__file__).parents[2]
_PAGES = sorted([*_ROOT.glob("*.md"), *(_ROOT / "docs").glob("*.md")])
_COMMAND = re.compile(r"(?<![\w/-])(?:\.venv/bin/)?orders-backup((?: [a-z][a-z-]*)+)")
_TARGET = re.compile(r"\bmake ((?:[a-z][a-z-]+ ?)+)")
_CODE = re.compile(r"```.*?```|`[^`\n]+`", re.DOTALL)


def _code(page: Path) -> str:
    return "\n".join(_CODE.findall(page.read_text()))


def _exists(words: list[str]) -> bool:
    """Whether the words lead to a command; what follows it are its arguments."""
    command: object = typer.main.get_command(app)
    while hasattr(command, "commands"):
        if not words or words[0] not in command.commands:
            return False
        command = command.commands[words[0]]
        words = words[1:]
    return True


@pytest.mark.parametrize("page", _PAGES, ids=lambda page: page.name)
def test_every_command_in_the_documentation_exists(page: Path) -> None:
    named = [found.split() for found in _COMMAND.findall(_code(page))]

    assert [words for words in named if not _exists(words)] == []


@pytest.mark.parametrize("page", _PAGES, ids=lambda page: page.name)
def test_every_make_target_in_the_documentation_exists(page: Path) -> None:
    targets = set(re.findall(r"^([a-z-]+):", (_ROOT / "Makefile").read_text(), re.MULTILINE))

    assert {name for found in _TARGET.findall(_code(page)) for name in found.split()} <= targets
