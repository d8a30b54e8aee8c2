"""The keys of what is stored: whether they fit, and the move to a new one while everything runs (requirement A8).

Rotation: configure the new key as a further one everywhere, then put it first, then `rotate`, then drop the old one.
"""

from collections.abc import AsyncIterator
from dataclasses import dataclass

import asyncpg

from shared.encryption import DecryptionError, Keyring
from shared.errors import ConfigurationError
from shared.token_vault import access_binding, device_code_binding, refresh_binding

# The envelope itself says it (`Keyring.seal`).
_KEY_OF_ANSWER = "convert_from(substring(answer FROM 3 FOR get_byte(answer, 1)), 'UTF8')"

# language=sql
_KEYS_IN_USE = f"""
SELECT key_id, count(*) AS secrets FROM (
    SELECT key_id FROM user_tokens WHERE refresh_token IS NOT NULL
    UNION ALL
    SELECT key_id FROM device_authorizations WHERE device_code IS NOT NULL
    UNION ALL
    SELECT {_KEY_OF_ANSWER} FROM idempotent_requests WHERE answer IS NOT NULL
) stored GROUP BY key_id ORDER BY key_id
"""  # noqa: S608 - a constant

_PAIR_OF_KEY = "SELECT id, refresh_token FROM user_tokens WHERE key_id = $1 AND refresh_token IS NOT NULL LIMIT 1"

_CODE_OF_KEY = """
SELECT task_id, device_code FROM device_authorizations WHERE key_id = $1 AND device_code IS NOT NULL LIMIT 1
"""

_ANSWER_OF_KEY = f"""
SELECT caller, idempotency_key, answer FROM idempotent_requests
 WHERE answer IS NOT NULL AND {_KEY_OF_ANSWER} = $1 LIMIT 1
"""  # noqa: S608 - a constant

_PAIRS_OF_OLD_KEYS = """
SELECT id, access_token, refresh_token FROM user_tokens
 WHERE id > $1 AND key_id <> $2 AND access_token IS NOT NULL AND refresh_token IS NOT NULL ORDER BY id LIMIT $3
"""

_CODES_OF_OLD_KEYS = """
SELECT task_id, device_code FROM device_authorizations WHERE key_id <> $1 AND device_code IS NOT NULL
"""

_ANSWERS_OF_OLD_KEYS = f"""
SELECT caller, idempotency_key, answer FROM idempotent_requests
 WHERE answer IS NOT NULL AND {_KEY_OF_ANSWER} <> $1 LIMIT $2
"""  # noqa: S608 - a constant

# Only what was read is replaced: a pair that was refreshed meanwhile is of the new key already.
_REPLACE_PAIR = """
UPDATE user_tokens SET access_token = $4, refresh_token = $5, key_id = $6
 WHERE id = $1 AND access_token = $2 AND refresh_token = $3
"""

_REPLACE_CODE = """
UPDATE device_authorizations SET device_code = $3, key_id = $4 WHERE task_id = $1 AND device_code = $2
"""

_REPLACE_ANSWER = """
UPDATE idempotent_requests SET answer = $4 WHERE caller = $1 AND idempotency_key = $2 AND answer = $3
"""

_COUNT_OF_OLD_KEYS = f"""
SELECT (SELECT count(*) FROM user_tokens WHERE key_id <> $1 AND refresh_token IS NOT NULL)
     + (SELECT count(*) FROM device_authorizations WHERE key_id <> $1 AND device_code IS NOT NULL)
     + (SELECT count(*) FROM idempotent_requests WHERE answer IS NOT NULL AND {_KEY_OF_ANSWER} <> $1)
"""  # noqa: S608 - a constant


@dataclass(frozen=True)
class RotationProgress:
    """Secrets moved to the first key so far, and how many are still of another."""

    moved: int
    left: int


async def check_keys(pool: asyncpg.Pool, keyring: Keyring) -> None:
    """Raise ConfigurationError if a stored secret needs a key that is not there, or does not open with it."""
    for row in await pool.fetch(_KEYS_IN_USE):
        key_id = row["key_id"]
        if key_id not in keyring.key_ids:
            raise ConfigurationError(
                f"ENCRYPTION_KEYS: key {key_id!r} is missing, {row['secrets']} stored secrets were encrypted with it"
            )
        try:
            await _open_a_sample(pool, keyring, key_id)
        except DecryptionError as error:
            raise ConfigurationError(f"ENCRYPTION_KEYS: {error}") from None


async def _open_a_sample(pool: asyncpg.Pool, keyring: Keyring, key_id: str) -> None:
    token = await pool.fetchrow(_PAIR_OF_KEY, key_id)
    if token is not None:
        keyring.open(token["refresh_token"], belongs_to=refresh_binding(token["id"]))
        return
    code = await pool.fetchrow(_CODE_OF_KEY, key_id)
    if code is not None:
        keyring.open(code["device_code"], belongs_to=device_code_binding(code["task_id"]))
        return
    answer = await pool.fetchrow(_ANSWER_OF_KEY, key_id)
    if answer is not None:
        keyring.open(answer["answer"], belongs_to=answer_binding(answer["caller"], answer["idempotency_key"]))


def answer_binding(caller: str, idempotency_key: str) -> str:
    """What the envelope of an answer that is stored under an idempotency key is bound to."""
    return f"idempotent_requests:{caller}:{idempotency_key}"


async def rotate(pool: asyncpg.Pool, keyring: Keyring, *, batch: int = 100) -> AsyncIterator[RotationProgress]:
    """Encrypt everything stored with the first key; tells how far it is after each batch.

    Can be stopped and started again at any moment, runs beside the services, and fails no call: each secret is
    replaced only if it is still what was read. Raises DecryptionError where an old key is missing.
    """
    primary = keyring.primary_key_id
    moved = 0
    for code in await pool.fetch(_CODES_OF_OLD_KEYS, primary):
        moved += await _move_code(pool, keyring, code)
    while answers := await pool.fetch(_ANSWERS_OF_OLD_KEYS, primary, batch):
        for answer in answers:
            moved += await _move_answer(pool, keyring, answer)
    after = 0
    while tokens := await pool.fetch(_PAIRS_OF_OLD_KEYS, after, primary, batch):
        for token in tokens:
            moved += await _move_token(pool, keyring, token)
        after = tokens[-1]["id"]
        yield RotationProgress(moved, await pool.fetchval(_COUNT_OF_OLD_KEYS, primary))
    yield RotationProgress(moved, await pool.fetchval(_COUNT_OF_OLD_KEYS, primary))


async def _move_token(pool: asyncpg.Pool, keyring: Keyring, token: asyncpg.Record) -> bool:
    access_belongs, refresh_belongs = access_binding(token["id"]), refresh_binding(token["id"])
    access = keyring.seal(keyring.open(token["access_token"], belongs_to=access_belongs), belongs_to=access_belongs)
    refresh = keyring.seal(keyring.open(token["refresh_token"], belongs_to=refresh_belongs), belongs_to=refresh_belongs)
    status: str = await pool.execute(
        _REPLACE_PAIR,
        token["id"],
        token["access_token"],
        token["refresh_token"],
        access.envelope,
        refresh.envelope,
        access.key_id,
    )
    return status == "UPDATE 1"


async def _move_code(pool: asyncpg.Pool, keyring: Keyring, code: asyncpg.Record) -> bool:
    belongs = device_code_binding(code["task_id"])
    sealed = keyring.seal(keyring.open(code["device_code"], belongs_to=belongs), belongs_to=belongs)
    status: str = await pool.execute(
        _REPLACE_CODE, code["task_id"], code["device_code"], sealed.envelope, sealed.key_id
    )
    return status == "UPDATE 1"


async def _move_answer(pool: asyncpg.Pool, keyring: Keyring, row: asyncpg.Record) -> bool:
    belongs = answer_binding(row["caller"], row["idempotency_key"])
    sealed = keyring.seal(keyring.open(row["answer"], belongs_to=belongs), belongs_to=belongs)
    status: str = await pool.execute(
        _REPLACE_ANSWER, row["caller"], row["idempotency_key"], row["answer"], sealed.envelope
    )
    return status == "UPDATE 1"
