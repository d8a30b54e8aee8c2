"""Secrets show nothing, and what is stored opens only where it belongs and with its own key (A8)."""

import base64
import copy
import json
import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter

from shared.encryption import DecryptionError, Keyring, Secret
from shared.errors import ConfigurationError

CANARY = "canary-4711"


def key(identifier: str, fill: bytes = b"1") -> str:
    return f"{identifier}:{base64.b64encode(fill * 32).decode()}"


@pytest.mark.parametrize(
    "show",
    [
        pytest.param(repr, id="repr"),
        pytest.param(str, id="str"),
        pytest.param(lambda secret: f"{secret:>40}", id="format"),
        pytest.param(lambda secret: f"{secret!r}{[secret]}{ {'a': secret} }", id="inside-others"),
        pytest.param(lambda secret: json.dumps({"a": secret}, default=str), id="json"),
        pytest.param(lambda secret: str(vars(secret) if hasattr(secret, "__dict__") else ""), id="vars"),
        pytest.param(lambda secret: str(ValueError(secret)), id="exception"),
    ],
)
def test_a_secret_shows_nothing(show: object) -> None:
    assert callable(show)
    assert CANARY not in show(Secret(CANARY))


@pytest.mark.parametrize("leak", [pickle.dumps, copy.copy, copy.deepcopy])
def test_a_secret_cannot_be_taken_elsewhere(leak: object) -> None:
    assert callable(leak)
    with pytest.raises(TypeError, match="cannot be pickled"):
        leak(Secret(CANARY))


def test_a_secret_cannot_be_put_into_json_by_pydantic() -> None:
    with pytest.raises(Exception, match=r"schema|serialize") as raised:
        TypeAdapter(Secret).dump_json(Secret(CANARY))
    assert CANARY not in str(raised.value)


@given(st.text(max_size=200), st.text(max_size=50))
def test_what_is_sealed_opens_where_it_belongs(text: str, place: str) -> None:
    keyring = Keyring.parse(key("k1"))
    sealed = keyring.seal(Secret(text), belongs_to=place)

    assert keyring.open(sealed.envelope, belongs_to=place) == Secret(text)
    assert sealed.key_id == "k1"


@given(st.data())
def test_any_altered_byte_is_noticed(data: st.DataObject) -> None:
    keyring = Keyring.parse(key("k1"))
    envelope = bytearray(keyring.seal(Secret(CANARY), belongs_to="row").envelope)
    envelope[data.draw(st.integers(0, len(envelope) - 1))] ^= data.draw(st.integers(1, 255))

    with pytest.raises(DecryptionError) as raised:
        keyring.open(bytes(envelope), belongs_to="row")
    assert CANARY not in str(raised.value)


@given(st.binary(max_size=80))
def test_rubbish_is_no_envelope(rubbish: bytes) -> None:
    with pytest.raises(DecryptionError):
        Keyring.parse(key("k1")).open(rubbish, belongs_to="row")


def test_an_envelope_of_another_row_does_not_open() -> None:
    keyring = Keyring.parse(key("k1"))
    sealed = keyring.seal(Secret(CANARY), belongs_to="user_tokens:1:access_token")

    with pytest.raises(DecryptionError, match="altered row"):
        keyring.open(sealed.envelope, belongs_to="user_tokens:2:access_token")


def test_the_first_key_seals_and_every_key_opens() -> None:
    before = Keyring.parse(key("old")).seal(Secret(CANARY), belongs_to="row")
    keyring = Keyring.parse(f"{key('new', b'2')}\n{key('old')}")

    assert keyring.open(before.envelope, belongs_to="row") == Secret(CANARY)
    assert keyring.seal(Secret(CANARY), belongs_to="row").key_id == "new"
    assert keyring.key_ids == {"new", "old"}


def test_the_same_secret_is_never_sealed_alike() -> None:
    keyring = Keyring.parse(key("k1"))

    assert len({keyring.seal(Secret(CANARY), belongs_to="row").envelope for _ in range(100)}) == 100


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        pytest.param("", "holds no key", id="empty"),
        pytest.param(base64.b64encode(b"1" * 32).decode(), "<id>:<base64", id="no-name"),
        pytest.param("k1:" + "not base64!" + CANARY, "not base64", id="not-base64"),
        pytest.param("k1:" + base64.b64encode(b"1" * 16).decode(), "has 16 bytes", id="too-short"),
        pytest.param(f"{key('k1')},{key('k1', b'2')}", "given twice", id="twice"),
        pytest.param(key("k" * 33), "<id>:<base64", id="name-too-long"),
        pytest.param(key("ł"), "<id>:<base64", id="name-not-ascii"),
    ],
)
def test_a_wrong_key_is_refused_by_name_and_not_shown(text: str, complaint: str) -> None:
    with pytest.raises(ConfigurationError, match="ENCRYPTION_KEYS") as raised:
        Keyring.parse(text)

    assert complaint in str(raised.value)
    assert CANARY not in str(raised.value)
