"""What `--json` prints: one document on standard output and nothing else, of every command."""

import json
from pathlib import Path

import asyncpg
import pytest

from tests.builders import AN_ORDER
from tests.cli.conftest import Run
from tests.cli.test_cli import a_connected_seller
from tests.cli.test_shell import COMMANDS

pytestmark = pytest.mark.integration

# `up` is tried as a process of its own; these need Allegro, or a run that ends: test_cli.py and test_keys.py.
_ELSEWHERE = {"up", "reconcile", "tokens refresh", "tokens validate"}
_OLD_NAMES = {"keys rotate", "api-keys create", "api-keys list", "api-keys revoke", "api-keys rotate"}


async def test_every_command_prints_one_document(
    api: Path, orders_backup: Run, pool: asyncpg.Pool, tmp_path: Path, fresh_topics: str
) -> None:
    await a_connected_seller(pool)
    await pool.execute(
        'INSERT INTO dead_letters (service, topic, partition, "offset", value, digest, error_type, error)'
        " VALUES ('writer', $1, 0, 1, '\\x7b', '\\x00', 'UnreadableRecordError', 'not JSON')",
        f"{fresh_topics}orders",
    )
    file = str(tmp_path / "orders")
    task_id = json.loads(orders_backup("sync", "start", "shop-1", "--full", "--json").out)["task_id"]
    arguments = {
        "setup": [],
        "auth": ["shop-2", "--no-wait"],
        "doctor": [],
        "stats": [],
        "tokens list": [],
        "tokens show": ["1"],
        "orders list": ["shop-1"],
        "orders show": ["shop-1", AN_ORDER],
        "orders export": ["-o", file],
        "orders republish": [],
        "verify": [file],
        "sync start": ["shop-1", "--order", AN_ORDER],
        "sync stop": [task_id],
        "sync follow": [task_id],
        "sync status": ["shop-1"],
        "sync tasks": [],
        "sync history": ["shop-1"],
        "sync activate": ["shop-1"],
        "sync deactivate": ["shop-1"],
        "dead-letters list": [],
        "dead-letters show": ["1"],
        "dead-letters replay": ["1"],
        "dead-letters drop": ["2"],
        "encryption-keys rotate": [],
        "tokens deactivate": ["1"],
        "keys list": [],
        # The last ones: from then on the API asks for a key.
        "keys create": ["shop", "--scope", "read"],
        "keys revoke": ["shop"],
    }
    await pool.execute(
        'INSERT INTO dead_letters (service, topic, partition, "offset", value, digest, error_type, error)'
        " VALUES ('writer', 'orders', 0, 2, '\\x7b', '\\x00', 'UnreadableRecordError', 'not JSON')"
    )

    done = {name: orders_backup(*name.split(), *more, "--json") for name, more in arguments.items()}

    assert arguments.keys() | _ELSEWHERE | _OLD_NAMES == COMMANDS.keys()
    assert {name: result.err for name, result in done.items() if result.code} == {}
    for result in done.values():
        assert isinstance(json.loads(result.out), dict | list)
