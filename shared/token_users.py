"""Whose tokens are: asked once of each token, for log lines."""

from collections.abc import Iterable

import asyncpg

from shared.logs import remember_user, unknown_users

_USERS = "SELECT id, user_id FROM user_tokens WHERE id = ANY($1::bigint[])"


async def learn_users(connection: asyncpg.Connection | asyncpg.Pool, token_ids: Iterable[int]) -> None:
    """From now on log lines about these tokens name their users; raises the driver's errors."""
    unknown = unknown_users(token_ids)
    if unknown:
        for row in await connection.fetch(_USERS, unknown):
            remember_user(row["id"], row["user_id"])
