"""Row leases: who works on a row, until when, and a number that fences off a worker who comes back too late.

Claiming is a short transaction (`FOR UPDATE SKIP LOCKED`), work is done outside of it, and every statement that ends
the work names the fence it was claimed with. Times are PostgreSQL's alone.
"""

import logging
import os
import socket
from datetime import timedelta
from uuid import uuid4

import asyncpg

from shared.database import TRANSIENT_DATABASE_ERRORS

logger = logging.getLogger(__name__)

# language=sql
_RELEASE = """
WITH schedules AS (
    UPDATE active_sync_schedules SET lease_owner = NULL, lease_until = NULL WHERE lease_owner = $1
), devices AS (
    UPDATE device_authorizations SET lease_owner = NULL, lease_until = NULL WHERE lease_owner = $1
)
UPDATE task_history SET lease_owner = NULL, lease_until = now() WHERE lease_owner = $1
"""


class Leases:
    """The name under which this process leases rows, and for how long."""

    def __init__(self, pool: asyncpg.Pool, *, seconds: float) -> None:
        self._pool = pool
        self.owner = f"{socket.gethostname()}/{os.getpid()}/{uuid4().hex[:8]}"
        self.duration = timedelta(seconds=seconds)

    @property
    def work_seconds(self) -> float:
        """How long work under one lease may take, with time left to end it."""
        return self.duration.total_seconds() * 0.75

    async def release(self) -> None:
        """Give back what this process holds: others go on at once, rather than when the leases expire."""
        try:
            await self._pool.execute(_RELEASE, self.owner)
        except TRANSIENT_DATABASE_ERRORS as error:
            logger.warning("leases are not given back, they will expire", extra={"error": repr(error)})
