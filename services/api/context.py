"""What the endpoints work with, opened by the application's lifespan."""

from dataclasses import dataclass
from typing import Annotated

import asyncpg
from fastapi import Depends, Request

from services.api.problems import UnknownUserError
from services.api.settings import ApiSettings
from shared.allegro.connection import Allegro
from shared.encryption import Keyring
from shared.health import Health
from shared.kafka import RecordProducer


@dataclass(frozen=True)
class Resources:
    """Connections of this process."""

    settings: ApiSettings
    pool: asyncpg.Pool
    allegro: Allegro
    keyring: Keyring
    producer: RecordProducer
    health: Health


def _resources(request: Request) -> Resources:
    resources: Resources = request.app.state.resources
    return resources


Context = Annotated[Resources, Depends(_resources)]


@dataclass(frozen=True)
class User:
    """A user whose seller is connected, or was."""

    user_id: str
    token_id: int


async def _user(user_id: str, resources: Context) -> User:
    token_id = await resources.pool.fetchval("SELECT id FROM user_tokens WHERE user_id = $1", user_id)
    if token_id is None:
        raise UnknownUserError(user_id)
    return User(user_id, token_id)


KnownUser = Annotated[User, Depends(_user)]
"""The user named in the path; an unknown one is a 404."""
