"""The image holds what production needs and nothing else. No Docker engine is needed: its steps are repeated."""

import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

_ROOT = Path(__file__).parents[2]
_DOCKERFILE = (_ROOT / "deploy" / "Dockerfile").read_text()
_PROJECT = tomllib.loads((_ROOT / "pyproject.toml").read_text())
_PRODUCTION = ("cli", "migrations", "services", "shared")
_SERVICES = ("api", "enricher", "poller", "writer")
_COPY = re.compile(r"^COPY (?!--from)(?P<source>\S+) \S+$", re.MULTILINE)


def _copied() -> set[str]:
    return {found["source"] for found in _COPY.finditer(_DOCKERFILE)}


def test_exactly_the_production_folders_are_copied() -> None:
    assert _copied() == {*_PRODUCTION, "requirements/runtime.lock", "LICENSE"}
    assert _PROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"] == list(_PRODUCTION)


def test_what_is_copied_exists_and_is_let_into_the_build() -> None:
    lines = (_ROOT / ".dockerignore").read_text().splitlines()

    assert [source for source in _copied() if not (_ROOT / source).exists()] == []
    assert "*" in lines
    assert {line[1:] for line in lines if line.startswith("!")} == _copied()


def test_packages_are_installed_by_their_hashes_only() -> None:
    (install,) = re.findall(r"pip install .*", _DOCKERFILE)

    assert "--require-hashes" in install
    assert "--no-deps" in install


def test_it_does_not_run_as_root_and_is_stopped_politely() -> None:
    assert re.findall(r"^USER (.+)$", _DOCKERFILE, re.MULTILINE) == ["10001:10001"]
    assert "STOPSIGNAL SIGTERM" in _DOCKERFILE


def test_the_python_is_pinned_and_supported() -> None:
    (tag,) = re.findall(r"^ARG PYTHON_IMAGE=python:(\d+\.\d+)\.\d+-slim-\w+$", _DOCKERFILE, re.MULTILINE)

    assert tuple(map(int, tag.split("."))) >= (3, 11)


def test_the_command_is_the_one_of_the_package() -> None:
    module, _, function = _PROJECT["project"]["scripts"]["orders-backup"].partition(":")

    assert f"from {module} import {function}" in _DOCKERFILE


def test_the_version_is_the_one_of_the_package() -> None:
    version = _PROJECT["project"]["version"]

    assert f"ARG VERSION={version}\n" in _DOCKERFILE
    assert f"orders-backup:{version}" in (_ROOT / "deploy" / "compose.yaml").read_text()
    assert f"## [{version}]" in (_ROOT / "CHANGELOG.md").read_text()


@pytest.mark.integration
@pytest.mark.timeout(600)
def test_the_services_start_with_the_runtime_packages_and_the_production_folders_alone(tmp_path: Path) -> None:
    uv = Path(sys.executable).with_name("uv")
    python = tmp_path / "venv" / "bin" / "python"
    for folder in _PRODUCTION:
        shutil.copytree(_ROOT / folder, tmp_path / "app" / folder, ignore=shutil.ignore_patterns("__pycache__"))
    environment = {"PATH": os.environ["PATH"], "PYTHONPATH": str(tmp_path / "app"), "HOME": str(tmp_path)}

    def run(*command: str | Path) -> subprocess.CompletedProcess[str]:
        return subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)

    # The cache and the index of whoever runs the test: the packages are the same by their hashes.
    subprocess.run([uv, "venv", "--quiet", "--python", sys.executable, tmp_path / "venv"], check=True)
    subprocess.run(
        [uv, "pip", "sync", "--quiet", "--python", python, "--require-hashes", _ROOT / "requirements/runtime.lock"],
        check=True,
    )

    imports = "; ".join(f"from services.{service}.app import build_app as {service}" for service in _SERVICES)
    built = run(python, "-c", f"{imports}; from cli.app import main")
    starts = {service: run(python, "-m", f"services.{service}") for service in _SERVICES}

    assert built.returncode == 0, built.stderr
    # Without a single setting each of them says what it lacks.
    said = {service: (start.returncode, "DATABASE_URL" in start.stderr) for service, start in starts.items()}
    assert said == dict.fromkeys(_SERVICES, (2, True))
