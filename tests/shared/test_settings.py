"""Settings that would only fail at Allegro, or at the first token, are refused at start (G1, A8)."""

import base64
from pathlib import Path

import pytest
from pydantic import ValidationError

from shared.encryption import Secret
from shared.errors import ConfigurationError
from shared.settings import EncryptionSettings
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


def key(name: str, fill: bytes) -> str:
    return f"{name}:{base64.b64encode(fill * 32).decode()}"


def test_keys_of_a_file_are_those_of_the_variable(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text(f"{key('new', b'2')}\n{key('old', b'1')}\n")
    of_file = EncryptionSettings(encryption_keys_file=file).keyring()
    of_variable = EncryptionSettings(encryption_keys=f"{key('new', b'2')},{key('old', b'1')}").keyring()

    sealed = of_file.seal(Secret("text"), belongs_to="row")

    assert of_file.key_ids == of_variable.key_ids == {"new", "old"}
    assert sealed.key_id == of_variable.primary_key_id == "new"
    assert of_variable.open(sealed.envelope, belongs_to="row") == Secret("text")


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        pytest.param(None, "No such file", id="missing"),
        pytest.param(b"", "holds no key", id="empty"),
        pytest.param("klucz-ł".encode(), "ENCRYPTION_KEYS_FILE", id="not-ascii"),
        pytest.param(b"k1:PlantedBird9", "has 9 bytes", id="too-short"),
    ],
)
def test_a_file_without_usable_keys_is_refused_and_not_shown(
    tmp_path: Path, content: bytes | None, complaint: str
) -> None:
    file = tmp_path / "keys"
    if content is not None:
        file.write_bytes(content)

    with pytest.raises(ConfigurationError, match="ENCRYPTION_KEYS") as raised:
        EncryptionSettings(encryption_keys_file=file).keyring()

    assert complaint in str(raised.value)
    assert "PlantedBird9" not in str(raised.value)


@pytest.mark.parametrize("sources", [(), ("encryption_keys", "encryption_keys_file")])
def test_keys_come_from_one_place(tmp_path: Path, sources: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ENCRYPTION_KEYS", raising=False)
    monkeypatch.delenv("ENCRYPTION_KEYS_FILE", raising=False)
    given = {"encryption_keys": key("k1", b"1"), "encryption_keys_file": str(tmp_path / "keys")}

    with pytest.raises(ValidationError, match="either ENCRYPTION_KEYS or ENCRYPTION_KEYS_FILE"):
        EncryptionSettings.model_validate({name: given[name] for name in sources})
