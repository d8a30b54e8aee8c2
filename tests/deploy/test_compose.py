"""The compose file agrees with the code it starts. No Docker engine is needed: it is read, not run."""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.version import Version

from cli.app import app
from devstack.apache_kafka import version as kafka_version
from shared import kafka, service
from shared.settings import DatabaseSettings, KafkaSettings
from tests.deploy.service_settings import SERVICES, settings_class, variables

_ROOT = Path(__file__).parents[2]
_DEPLOY = _ROOT / "deploy"
_COMPOSE: Mapping[str, Any] = yaml.safe_load((_DEPLOY / "compose.yaml").read_text())
_CONTAINERS: Mapping[str, Mapping[str, Any]] = _COMPOSE["services"]
_THIRD_PARTY = ("postgres", "kafka", "prometheus", "grafana")
_SECRETS = ("ALLEGRO_CLIENT_SECRET", "ENCRYPTION_KEYS")
# Logs go to standard output, keys come by variable: the file system is read-only.
_LEFT_OUT = {"LOG_DIR", "ENCRYPTION_KEYS_FILE"}


def _port(service: str) -> str:
    return str(_CONTAINERS[service]["environment"][f"{service.upper()}_HTTP_PORT"])


def test_it_starts_the_services_their_set_up_and_what_they_stand_on() -> None:
    assert set(_CONTAINERS) == {*SERVICES, *_THIRD_PARTY, "setup"}


@pytest.mark.parametrize("service", SERVICES)
def test_a_service_gets_every_setting_it_reads_and_no_other(service: str) -> None:
    assert set(_CONTAINERS[service]["environment"]) == set(variables(service)) - _LEFT_OUT


def test_the_set_up_gets_what_it_reads() -> None:
    read = {name.upper() for group in (DatabaseSettings, KafkaSettings) for name in group.model_fields}

    assert set(_CONTAINERS["setup"]["environment"]) == read


def test_the_set_up_is_a_command_that_exists() -> None:
    program, command = _CONTAINERS["setup"]["command"]

    assert program == "orders-backup"
    assert command in {found.name or getattr(found.callback, "__name__", "") for found in app.registered_commands}


@pytest.mark.parametrize("service", SERVICES)
def test_what_a_service_requires_has_a_value(service: str) -> None:
    required = {name for name, field in variables(service).items() if field.is_required()}

    assert [name for name in required if not _CONTAINERS[service]["environment"][name]] == []


@pytest.mark.parametrize("service", SERVICES)
def test_a_service_starts_with_the_settings_it_is_given(service: str, monkeypatch: pytest.MonkeyPatch) -> None:
    given = {
        "ALLEGRO_CLIENT_ID": "id",
        "ALLEGRO_CLIENT_SECRET": "secret",
        "ALLEGRO_USER_AGENT": "Shop/1.0 (+https://example.com)",
    }
    given |= {"ENCRYPTION_KEYS": "key1:" + "A" * 43 + "=", "POSTGRES_PASSWORD": "0123abcd"}
    for name, value in _CONTAINERS[service]["environment"].items():
        if value is not None:
            monkeypatch.setenv(name, re.sub(r"\$\{(\w+)[^}]*\}", lambda found: given[found[1]], str(value)))

    settings = settings_class(service)()

    assert settings.model_dump()[f"{service}_http_host"] == "0.0.0.0"


@pytest.mark.parametrize("service", [*SERVICES, "setup"])
def test_a_service_without_use_for_a_secret_does_not_get_it(service: str) -> None:
    reads = set(variables(service)) if service != "setup" else set()

    assert [name for name in _SECRETS if name in _CONTAINERS[service]["environment"] and name not in reads] == []


@pytest.mark.parametrize("service", SERVICES)
def test_the_command_is_a_module_that_exists(service: str) -> None:
    assert _CONTAINERS[service]["command"] == ["python", "-m", f"services.{service}"]
    assert (_ROOT / "services" / service / "__main__.py").exists()


@pytest.mark.parametrize("service", SERVICES)
def test_the_health_check_asks_the_port_the_service_listens_on(service: str) -> None:
    command = _CONTAINERS[service]["healthcheck"]["test"]

    assert command[:3] == ["CMD", "python", "-c"]
    assert f"http://127.0.0.1:{_port(service)}/readyz" in command[3]
    compile(command[3], "healthcheck", "exec")


@pytest.mark.parametrize("service", SERVICES)
def test_a_service_waits_for_its_set_up_and_its_servers(service: str) -> None:
    assert _CONTAINERS[service]["depends_on"] == {
        "setup": {"condition": "service_completed_successfully"},
        "postgres": {"condition": "service_healthy"},
        "kafka": {"condition": "service_healthy"},
    }


def _conditions() -> Iterator[tuple[str, str]]:
    for container in _CONTAINERS.values():
        for name, how in container.get("depends_on", {}).items():
            yield name, how["condition"]


def test_who_is_waited_for_can_be_healthy() -> None:
    waited_for = {name for name, condition in _conditions() if condition == "service_healthy"}

    assert [name for name in waited_for if "test" not in _CONTAINERS[name]["healthcheck"]] == []


@pytest.mark.parametrize("name", _CONTAINERS)
def test_a_container_is_hardened(name: str) -> None:
    container = _CONTAINERS[name]

    assert container["cap_drop"] == ["ALL"]
    assert container["security_opt"] == ["no-new-privileges:true"]
    assert container.get("read_only", False) is (name != "kafka")
    assert "privileged" not in container
    assert "mem_limit" in container or name == "setup"


@pytest.mark.parametrize("name", _CONTAINERS)
def test_ports_are_published_on_loopback_only(name: str) -> None:
    assert [port for port in _CONTAINERS[name].get("ports", []) if not port.startswith("127.0.0.1:")] == []


@pytest.mark.parametrize("service", SERVICES)
def test_a_service_can_have_replicas(service: str) -> None:
    container = _CONTAINERS[service]

    assert "container_name" not in container
    assert service == "api" or "ports" not in container


def test_no_password_has_a_default() -> None:
    text = (_DEPLOY / "compose.yaml").read_text()
    secret = re.compile(r"\$\{(\w*(?:PASSWORD|SECRET|KEYS)\w*)(:\?)?")

    found = secret.findall(text)

    assert {name for name, _ in found} == {
        "ALLEGRO_CLIENT_SECRET",
        "ENCRYPTION_KEYS",
        "GRAFANA_ADMIN_PASSWORD",
        "POSTGRES_PASSWORD",
    }
    assert all(required == ":?" for _, required in found)


@pytest.mark.parametrize("name", _THIRD_PARTY)
def test_images_are_pinned_to_a_release(name: str) -> None:
    tag = _CONTAINERS[name]["image"].partition(":")[2].partition("-")[0].removeprefix("v")

    assert len(Version(tag).release) >= 2


def test_kafka_is_the_release_that_the_tests_run_on() -> None:
    assert _CONTAINERS["kafka"]["image"] == f"apache/kafka:{kafka_version()}"


def test_kafka_takes_what_our_producers_may_send() -> None:
    assert _CONTAINERS["kafka"]["environment"]["KAFKA_MESSAGE_MAX_BYTES"] >= kafka.MAX_RECORD_BYTES


def test_a_service_has_time_to_end() -> None:
    grace = int(_CONTAINERS["api"]["stop_grace_period"].removesuffix("s"))

    assert grace > service._CONNECTION_SECONDS + service._STOP_SECONDS + kafka._STOP_SECONDS


def test_mounted_files_are_there() -> None:
    sources = [volume.split(":")[0] for container in _CONTAINERS.values() for volume in container.get("volumes", [])]

    named = {source for source in sources if not source.startswith(".")}
    assert named == set(_COMPOSE["volumes"])
    assert [source for source in sources if source.startswith(".") and not (_DEPLOY / source).is_dir()] == []


def test_networks_are_declared_and_the_servers_are_on_the_inner_one() -> None:
    used = {network for container in _CONTAINERS.values() for network in container["networks"]}

    assert used == set(_COMPOSE["networks"])
    assert _COMPOSE["networks"]["data"] == {"internal": True}
    assert [_CONTAINERS[name]["networks"] for name in ("postgres", "kafka")] == [["data"], ["data"]]
