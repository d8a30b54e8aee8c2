"""Keys of the REST API: what they look like, what they allow, and the rows that hold their hashes (requirement G3).

A key is `aob_<public id>_<secret>`: the prefix lets scanners of leaked secrets know it, the public id finds the row,
and the secret has 256 random bits. A hash that is slow on purpose would add nothing: nobody guesses such a secret.
"""

import hashlib
import hmac
import re
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

import asyncpg

from shared.encryption import Secret
from shared.errors import OrdersBackupError

ANONYMOUS = "anonymous"
"""Who calls without a key, while there is none; in the audit log this name must mean nobody else."""

_FORM = re.compile(r"aob_([0-9a-f]{12})_[0-9A-Za-z_-]{43}")

# language=sql
_COLUMNS = """
SELECT id, name, public_id, digest, scope, user_ids, requests_per_minute, created_at, expires_at, revoked_at,
       last_used_at
  FROM api_keys
"""

_INSERT = """
INSERT INTO api_keys (name, public_id, digest, scope, user_ids, requests_per_minute, expires_at)
VALUES ($1, $2, $3, $4, $5, $6, $7)
    ON CONFLICT (name) DO NOTHING
RETURNING id
"""

_REVOKE = "UPDATE api_keys SET revoked_at = now() WHERE name = $1 AND revoked_at IS NULL"

# At most one write a minute for a key, however many processes see it used.
_USED = """
UPDATE api_keys SET last_used_at = now()
 WHERE id = $1 AND (last_used_at IS NULL OR last_used_at < now() - interval '1 minute')
"""


class AccessScope(StrEnum):
    """What a key may do; each scope holds those before it."""

    READ = "read"
    CONTROL = "control"
    ADMIN = "admin"

    def includes(self, other: "AccessScope") -> bool:
        """Whether this scope allows what `other` allows."""
        return _RANKS[self] >= _RANKS[other]


_RANKS = {scope: rank for rank, scope in enumerate(AccessScope)}


class ApiKeyNameTakenError(OrdersBackupError):
    """There is, or was, a key of this name: audit rows name keys, so a name means one key for ever."""


class UnknownApiKeyError(OrdersBackupError):
    """No key of this name is in use."""


@dataclass(frozen=True)
class ApiKey:
    """A key as it is stored. `user_ids` None: of all users. `digest`: SHA-256 of the whole key."""

    id: int
    name: str
    public_id: str
    digest: bytes
    scope: AccessScope
    user_ids: frozenset[str] | None
    requests_per_minute: int | None
    created_at: datetime
    expires_at: datetime | None
    revoked_at: datetime | None
    last_used_at: datetime | None

    def is_usable(self, now: datetime) -> bool:
        """Neither revoked nor expired."""
        return self.revoked_at is None and (self.expires_at is None or now < self.expires_at)

    def opens_with(self, presented: str) -> bool:
        """Whether this is the key; takes the same time wherever the two differ."""
        return hmac.compare_digest(self.digest, _digest(presented))


def public_id_of(presented: str) -> str | None:
    """The part that finds the row; None: it has not the form of a key."""
    found = _FORM.fullmatch(presented)
    return None if found is None else found[1]


async def create_key(
    connection: asyncpg.Connection | asyncpg.Pool,
    name: str,
    scope: AccessScope,
    *,
    user_ids: Sequence[str] | None = None,
    requests_per_minute: int | None = None,
    expires_at: datetime | None = None,
) -> Secret:
    """Make a key and store its hash; the key itself is to be shown once. Raises ApiKeyNameTakenError."""
    if name.strip().casefold() == ANONYMOUS:
        raise ApiKeyNameTakenError(f"{name!r} stands for calls without a key; take another name")
    public_id = secrets.token_hex(6)
    key = f"aob_{public_id}_{secrets.token_urlsafe(32)}"
    users = None if user_ids is None else sorted(set(user_ids))
    created = await connection.fetchval(
        _INSERT, name, public_id, _digest(key), scope.value, users, requests_per_minute, expires_at
    )
    if created is None:
        raise ApiKeyNameTakenError(f"there is or was a key {name!r}; names are not used twice")
    return Secret(key)


async def all_keys(connection: asyncpg.Connection | asyncpg.Pool) -> list[ApiKey]:
    """Every key there ever was, the oldest first."""
    return [_key(row) for row in await connection.fetch(f"{_COLUMNS} ORDER BY id")]


async def revoke_key(connection: asyncpg.Connection | asyncpg.Pool, name: str) -> None:
    """From now on the key opens nothing; its row stays. Raises UnknownApiKeyError."""
    if await connection.execute(_REVOKE, name) == "UPDATE 0":
        raise UnknownApiKeyError(f"there is no key {name!r} in use")


async def note_use(connection: asyncpg.Connection | asyncpg.Pool, key_id: int) -> None:
    """Remember that a key was used, to the minute."""
    await connection.execute(_USED, key_id)


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()


def _key(row: asyncpg.Record) -> ApiKey:
    users = row["user_ids"]
    return ApiKey(
        **{
            **row,
            "scope": AccessScope(row["scope"]),
            "user_ids": None if users is None else frozenset(users),
        }
    )
