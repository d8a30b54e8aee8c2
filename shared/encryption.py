"""Secrets: a type that shows nothing, and AES-256-GCM with named keys for what is stored (requirement A8).

Envelope: `version (1 byte) | length of key id (1) | key id | nonce (12) | ciphertext and tag`. What the secret
belongs to is bound in as associated data, so a ciphertext copied to another row does not decrypt.
"""

import base64
import binascii
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NoReturn

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from shared.errors import ConfigurationError, OrdersBackupError

_VERSION = 1
_NONCE_BYTES = 12
_KEY_BYTES = 32


class Secret:
    """A text that appears in no `str`, `repr`, format, JSON or pickle; `reveal()` is the one way to it."""

    __slots__ = ("__value",)

    def __init__(self, value: str) -> None:
        self.__value = value

    def reveal(self) -> str:
        return self.__value

    def __repr__(self) -> str:
        return "Secret('***')"

    __str__ = __repr__

    def __format__(self, _spec: str) -> str:
        return repr(self)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Secret) and other.reveal() == self.__value

    def __hash__(self) -> int:
        return hash(("Secret", self.__value))

    def __reduce_ex__(self, _protocol: object) -> NoReturn:
        raise TypeError("a Secret cannot be pickled")


class DecryptionError(OrdersBackupError):
    """A stored secret cannot be read with the keys at hand: a key is missing, or the row was tampered with."""


@dataclass(frozen=True)
class Sealed:
    """An encrypted secret and the name of its key."""

    envelope: bytes
    key_id: str


class Keyring:
    """The encryption keys by name; the first is used for everything new."""

    def __init__(self, keys: Mapping[str, bytes]) -> None:
        if not keys:
            raise ConfigurationError("ENCRYPTION_KEYS holds no key")
        self._ciphers = {key_id: AESGCM(key) for key_id, key in keys.items()}
        self.primary_key_id = next(iter(keys))

    @property
    def key_ids(self) -> frozenset[str]:
        return frozenset(self._ciphers)

    @classmethod
    def parse(cls, text: str) -> "Keyring":
        """Read `id:base64[,id:base64...]`; raises ConfigurationError that names the variable, never the key."""
        keys: dict[str, bytes] = {}
        for entry in filter(None, (part.strip() for part in text.replace("\n", ",").split(","))):
            key_id, separator, encoded = entry.partition(":")
            if not separator or not key_id.isascii() or not 1 <= len(key_id) <= 32:
                raise ConfigurationError("ENCRYPTION_KEYS: each key is written as <id>:<base64 of 32 bytes>")
            try:
                key = base64.b64decode(encoded, validate=True)
            except binascii.Error:
                raise ConfigurationError(f"ENCRYPTION_KEYS: key {key_id!r} is not base64") from None
            if len(key) != _KEY_BYTES:
                raise ConfigurationError(
                    f"ENCRYPTION_KEYS: key {key_id!r} has {len(key)} bytes, AES-256 needs {_KEY_BYTES}"
                )
            if key_id in keys:
                raise ConfigurationError(f"ENCRYPTION_KEYS: key id {key_id!r} is given twice")
            keys[key_id] = key
        return cls(keys)

    def seal(self, secret: Secret, *, belongs_to: str) -> Sealed:
        """Encrypt with the primary key, bound to `belongs_to` (for example `user_tokens:42:refresh_token`)."""
        key_id = self.primary_key_id
        nonce = os.urandom(_NONCE_BYTES)
        ciphertext = self._ciphers[key_id].encrypt(nonce, secret.reveal().encode(), belongs_to.encode())
        name = key_id.encode()
        return Sealed(bytes([_VERSION, len(name)]) + name + nonce + ciphertext, key_id)

    def open(self, envelope: bytes, *, belongs_to: str) -> Secret:
        """Decrypt; raises DecryptionError, which names the key id and never the content."""
        if len(envelope) < 2 or envelope[0] != _VERSION:
            raise DecryptionError(f"{belongs_to}: not an envelope of version {_VERSION}")
        end_of_name = 2 + envelope[1]
        key_id = envelope[2:end_of_name].decode("ascii", "replace")
        cipher = self._ciphers.get(key_id)
        if cipher is None:
            raise DecryptionError(f"{belongs_to}: ENCRYPTION_KEYS has no key {key_id!r}")
        nonce, ciphertext = (
            envelope[end_of_name : end_of_name + _NONCE_BYTES],
            envelope[end_of_name + _NONCE_BYTES :],
        )
        try:
            return Secret(cipher.decrypt(nonce, ciphertext, belongs_to.encode()).decode())
        except InvalidTag:
            raise DecryptionError(f"{belongs_to}: key {key_id!r} does not open it (wrong key or altered row)") from None
