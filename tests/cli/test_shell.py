"""The command line as a shell meets it: completion, `--json` everywhere, documented exit codes, `up`."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer.main

import cli.app
from cli.app import app

_ROOT = Path(__file__).parents[2]


def _commands(command: Any, *path: str) -> Iterator[tuple[str, Any]]:
    children: dict[str, Any] = getattr(command, "commands", {})
    if not children:
        yield " ".join(path), command
    for name, child in children.items():
        yield from _commands(child, *path, name)


COMMANDS = dict(_commands(typer.main.get_command(app)))
"""Every command by its name; `test_json.py` looks at what they print."""


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_every_command_speaks_json(name: str) -> None:
    assert "--json" in {option for parameter in COMMANDS[name].params for option in parameter.opts}


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_every_command_explains_itself(name: str) -> None:
    assert COMMANDS[name].help


def _completed(shell: str, words: str) -> list[str]:
    environment = {**os.environ, "_ORDERS_BACKUP_COMPLETE": f"complete_{shell}", "COMP_WORDS": words}
    environment["COMP_CWORD"] = str(words.count(" "))
    environment |= {"_TYPER_COMPLETE_ARGS": words, "_TYPER_COMPLETE_FISH_ACTION": "get-args"}
    command = [str(Path(sys.executable).parent / "orders-backup")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)
    return done.stdout.split()


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_a_shell_completes_commands(shell: str) -> None:
    assert any("tokens" in word for word in _completed(shell, "orders-backup tok"))
    assert any("export" in word for word in _completed(shell, "orders-backup orders ex"))


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_script_for_a_shell_can_be_had_without_installing_it(shell: str) -> None:
    environment = {**os.environ, "_ORDERS_BACKUP_COMPLETE": f"source_{shell}"}
    command = [str(Path(sys.executable).parent / "orders-backup")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)

    assert "_ORDERS_BACKUP_COMPLETE" in done.stdout


def test_the_manual_has_the_exit_codes_of_the_program() -> None:
    manual = (_ROOT / "docs" / "operations.md").read_text()

    for code in (0, cli.app._FAILED, cli.app._MISUSED, cli.app._AWAY, 130):
        assert f"| {code} |" in manual


@pytest.mark.parametrize(
    ("arguments", "code"),
    [(["no-such-command"], 2), (["doctor", "--json"], 1), (["tokens", "list", "--api-url", "http://127.0.0.1:1"], 3)],
)
def test_a_command_ends_with_the_documented_code(arguments: list[str], code: int, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "cli", *arguments]
    environment = {**os.environ, "PYTHONPATH": str(_ROOT)}
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, timeout=60, check=False)

    assert done.returncode == code


def test_up_is_the_development_stack_with_all_its_options() -> None:
    command = [sys.executable, "-m", "cli", "up", "--help"]
    done = subprocess.run(command, cwd=_ROOT, capture_output=True, text=True, timeout=60, check=False)

    assert done.returncode == 0
    assert "--sellers" in done.stdout
    assert "--json" in done.stdout


def test_up_hands_its_options_on(monkeypatch: pytest.MonkeyPatch) -> None:
    begun: list[list[str]] = []
    monkeypatch.setattr("cli.up.os.execv", lambda _program, arguments: begun.append(arguments[1:]))

    app(["up", "--sellers", "1", "--json"], standalone_mode=False)

    assert begun == [["-m", "devstack", "up", "--sellers", "1", "--json"]]
