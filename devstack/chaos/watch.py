"""What is noted while faults strike: rows that went backwards, memory, and services that ended by themselves.

Rows are watched by triggers in the database, since a state between two looks would be missed: an order that goes back
and comes forward again is found as well. Every look at an order is noted as well; when it was committed, PostgreSQL
tells by itself (`track_commit_timestamp`).
"""

import asyncio
import re
from collections.abc import Callable
from dataclasses import dataclass, field

import asyncpg
import httpx
import psutil

from devstack.chaos.plan import service_of
from devstack.processes import tail
from devstack.stack import Stack

_LOOK_SECONDS = 1.0
_ASK_SECONDS = 2.0
_ANSWER_SECONDS = 5.0
_TIMEOUTS = re.compile(r'^orders_backup_allegro_requests_total\{[^}]*outcome="timeout"[^}]*\} (\S+)$', re.MULTILINE)
_LAST_LINES = 4
_MEGABYTE = 1_000_000

# Each trigger says what must never happen to a row (promises P1, P2, P3, P12); `changes` and `events` are what
# happened, `counted` is what the runs were given for it, each with its transaction.
# language=sql
_WATCH = """
CREATE SCHEMA chaos;
CREATE TABLE chaos.violations (at timestamptz DEFAULT clock_timestamp(), what text);
CREATE TABLE chaos.changes (id bigint GENERATED ALWAYS AS IDENTITY, user_token_id bigint, order_id text, op text,
                            xact xid8 DEFAULT pg_current_xact_id());
CREATE TABLE chaos.events (user_token_id bigint, xact xid8 DEFAULT pg_current_xact_id());
CREATE TABLE chaos.counted (user_token_id bigint, added bigint, updated bigint, events bigint,
                            xact xid8 DEFAULT pg_current_xact_id());
CREATE TABLE chaos.looks (user_token_id bigint, order_id text, observed_at timestamptz);

CREATE FUNCTION chaos.watch_orders() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF TG_OP = 'DELETE' THEN
        INSERT INTO chaos.violations (what) VALUES ('order ' || OLD.allegro_order_id || ' was deleted');
        RETURN OLD;
    ELSIF TG_OP = 'INSERT' THEN
        INSERT INTO chaos.changes (user_token_id, order_id, op)
        VALUES (NEW.user_token_id, NEW.allegro_order_id, 'added');
        INSERT INTO chaos.looks VALUES (NEW.user_token_id, NEW.allegro_order_id, NEW.observed_at);
        RETURN NEW;
    END IF;
    IF NEW.observed_at > OLD.observed_at THEN
        INSERT INTO chaos.looks VALUES (NEW.user_token_id, NEW.allegro_order_id, NEW.observed_at);
    ELSIF NEW.observed_at < OLD.observed_at THEN
        INSERT INTO chaos.violations (what) VALUES (format('order %s went back from %s to %s',
            OLD.allegro_order_id, OLD.observed_at, NEW.observed_at));
    END IF;
    IF (NEW.order_data, NEW.order_raw, NEW.gone_at) IS DISTINCT FROM (OLD.order_data, OLD.order_raw, OLD.gone_at) THEN
        INSERT INTO chaos.changes (user_token_id, order_id, op)
        VALUES (NEW.user_token_id, NEW.allegro_order_id, CASE WHEN NEW.gone_at IS NULL THEN 'updated' ELSE 'gone' END);
    ELSIF NEW.updated_at <> OLD.updated_at
            AND (NEW.successor_order_id, NEW.gone_reason) IS NOT DISTINCT FROM (OLD.successor_order_id, OLD.gone_reason)
    THEN
        INSERT INTO chaos.violations (what)
        VALUES ('order ' || OLD.allegro_order_id || ' was written without a change');
    END IF;
    RETURN NEW;
END $$;
CREATE TRIGGER chaos AFTER INSERT OR UPDATE OR DELETE ON orders FOR EACH ROW EXECUTE FUNCTION chaos.watch_orders();

CREATE FUNCTION chaos.watch_events() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF TG_OP = 'INSERT' THEN
        INSERT INTO chaos.events VALUES (NEW.user_token_id);
    ELSE
        INSERT INTO chaos.violations (what) VALUES (format('event %s: %s', OLD.event_id, TG_OP));
    END IF;
    RETURN NULL;
END $$;
CREATE TRIGGER chaos AFTER INSERT OR UPDATE OR DELETE ON order_events
    FOR EACH ROW EXECUTE FUNCTION chaos.watch_events();

CREATE FUNCTION chaos.watch_cursors() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF TG_OP = 'DELETE' THEN
        INSERT INTO chaos.violations (what) VALUES (format('the cursor of token %s was deleted', OLD.user_token_id));
        RETURN NULL;
    END IF;
    IF NEW.stored_event_id < OLD.stored_event_id THEN
        INSERT INTO chaos.violations (what) VALUES (format('the cursor of token %s went back from %s to %s',
            OLD.user_token_id, OLD.stored_event_id, NEW.stored_event_id));
    END IF;
    RETURN NULL;
END $$;
CREATE TRIGGER chaos AFTER UPDATE OR DELETE ON journal_cursors FOR EACH ROW EXECUTE FUNCTION chaos.watch_cursors();

CREATE FUNCTION chaos.watch_runs() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF TG_OP = 'DELETE' THEN
        INSERT INTO chaos.violations (what) VALUES (format('run %s (%s) was deleted', OLD.run_id, OLD.kind));
        RETURN NULL;
    ELSIF TG_OP = 'INSERT' THEN
        INSERT INTO chaos.counted VALUES (NEW.user_token_id, NEW.orders_added, NEW.orders_updated, NEW.events_stored);
        RETURN NULL;
    END IF;
    INSERT INTO chaos.counted VALUES (NEW.user_token_id, NEW.orders_added - OLD.orders_added,
        NEW.orders_updated - OLD.orders_updated, NEW.events_stored - OLD.events_stored);
    IF (NEW.orders_processed, NEW.orders_added, NEW.orders_updated, NEW.events_stored) IS DISTINCT FROM
           (greatest(NEW.orders_processed, OLD.orders_processed), greatest(NEW.orders_added, OLD.orders_added),
            greatest(NEW.orders_updated, OLD.orders_updated), greatest(NEW.events_stored, OLD.events_stored)) THEN
        INSERT INTO chaos.violations (what) VALUES (format('a counter of run %s went back', OLD.run_id));
    END IF;
    IF OLD.completed_at IS NOT NULL AND OLD.kind NOT IN ('journal', 'orders')
           AND (NEW.orders_processed, NEW.orders_added, NEW.orders_updated, NEW.status)
               IS DISTINCT FROM (OLD.orders_processed, OLD.orders_added, OLD.orders_updated, OLD.status) THEN
        INSERT INTO chaos.violations (what) VALUES (format('run %s (%s) changed after its end', OLD.run_id, OLD.kind));
    END IF;
    RETURN NULL;
END $$;
CREATE TRIGGER chaos AFTER INSERT OR UPDATE OR DELETE ON sync_history FOR EACH ROW EXECUTE FUNCTION chaos.watch_runs();

CREATE FUNCTION chaos.watch_tokens() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF TG_OP = 'DELETE' THEN
        INSERT INTO chaos.violations (what) VALUES (format('token %s was deleted', OLD.id));
        RETURN NULL;
    END IF;
    IF NEW.status NOT IN ('active', 'refresh_failed') THEN
        INSERT INTO chaos.violations (what)
        VALUES (format('token %s became %s: %s', NEW.id, NEW.status, NEW.status_reason));
    END IF;
    IF NEW.generation < OLD.generation THEN
        INSERT INTO chaos.violations (what) VALUES (format('token %s went back to an older pair', NEW.id));
    END IF;
    RETURN NULL;
END $$;
CREATE TRIGGER chaos AFTER UPDATE OR DELETE ON user_tokens FOR EACH ROW EXECUTE FUNCTION chaos.watch_tokens();
"""


async def watch_rows(connection: asyncpg.Connection) -> None:
    """From now on the database itself notes what must never happen."""
    await connection.execute(_WATCH)


async def violations(connection: asyncpg.Connection) -> list[str]:
    """What was noted."""
    rows = await connection.fetch("SELECT at, what FROM chaos.violations ORDER BY at")
    return [f"{row['at']:%H:%M:%S.%f} {row['what']}" for row in rows]


@dataclass
class Life:
    """One process from its start to its end: what memory it had (RSS, MB), second by second."""

    service: str
    memory: list[float] = field(default_factory=list)
    timeouts: float = 0.0
    """Requests to Allegro that it counted as not answered in time, when it last told."""


class Watch:
    """Looks at the services' processes every second, and at what they count as often as they answer."""

    def __init__(self, stack: Stack, stopped_by_us: Callable[[str], bool]) -> None:
        self._stack = stack
        self._stopped_by_us = stopped_by_us
        self.lives: dict[int, Life] = {}
        """By process id."""
        self.deaths: list[str] = []

    @property
    def most_memory(self) -> dict[str, float]:
        """The most that any process of a service ever had."""
        most: dict[str, float] = {}
        for life in self.lives.values():
            most[life.service] = max([most.get(life.service, 0.0), *life.memory])
        return most

    @property
    def timeouts(self) -> int:
        """Requests to Allegro that were not answered in time, counted by the services themselves."""
        return round(sum(life.timeouts for life in self.lives.values()))

    async def run(self) -> None:
        """Look until cancelled; a service that ended by itself is noted, and started again as an orchestrator would."""
        async with httpx.AsyncClient(timeout=_ANSWER_SECONDS) as http, asyncio.TaskGroup() as tasks:
            tasks.create_task(self._ask(http))
            while True:
                for name, child in list(self._stack.services.items()):
                    if child.running:
                        self._measure(name, child.pid)
                    elif not self._stopped_by_us(name):
                        last = tail(child.log, _LAST_LINES)
                        self.deaths.append(
                            f"{name} ended by itself with exit code {child.exit_code}; its last lines:\n{last}"
                        )
                        child.start()
                await asyncio.sleep(_LOOK_SECONDS)

    async def ask_once(self, http: httpx.AsyncClient) -> None:
        """What a process counts dies with it, so each is asked every few seconds."""
        await asyncio.gather(*(self._ask_one(http, name) for name in self._stack.services))

    async def _ask(self, http: httpx.AsyncClient) -> None:
        while True:
            await self.ask_once(http)
            await asyncio.sleep(_ASK_SECONDS)

    async def _ask_one(self, http: httpx.AsyncClient, name: str) -> None:
        child = self._stack.services[name]
        if not child.running or (life := self.lives.get(child.pid)) is None:
            return
        try:
            answer = await http.get(f"{self._stack.url(name)}/metrics")
        except httpx.HTTPError:
            return  # stopped, or standing still
        life.timeouts = max(life.timeouts, sum(float(number) for number in _TIMEOUTS.findall(answer.text)))

    def _measure(self, name: str, pid: int) -> None:
        try:
            used = psutil.Process(pid).memory_info().rss / _MEGABYTE
        except psutil.NoSuchProcess:
            return
        self.lives.setdefault(pid, Life(service_of(name))).memory.append(used)
