"""Keys of the API at the prompt, against a running API."""

import json
from pathlib import Path

import pytest

from tests.cli.conftest import Run

pytestmark = pytest.mark.integration


def test_a_key_is_made_used_listed_and_revoked(api: Path, orders_backup: Run) -> None:
    made = orders_backup("api-keys", "create", "shop", "--scope", "read", "--user", "shop-1", "--expires-in-days", "30")
    key = made.out.strip()
    refused = orders_backup("tokens", "list")
    used = orders_backup("tokens", "list", "--json", ORDERS_BACKUP_API_KEY=key)
    listed = orders_backup("api-keys", "list", "--json")
    revoked = orders_backup("api-keys", "revoke", "shop")
    again = orders_backup("api-keys", "create", "shop", "--scope", "admin")

    assert (made.code, key[:4], used.code, json.loads(used.out)) == (0, "aob_", 0, [])
    assert refused.code == 1
    assert "ORDERS_BACKUP_API_KEY" in refused.err
    (row,) = json.loads(listed.out)
    assert (row["name"], row["scope"], row["user_ids"], row["status"]) == ("shop", "read", ["shop-1"], "active")
    assert row["last_used_at"] is not None
    assert key.rpartition("_")[2] not in listed.out + api.read_text()
    assert (revoked.code, again.code) == (0, 1)
    assert "names are not used twice" in again.err


def test_wrong_usage_is_told(orders_backup: Run) -> None:
    assert orders_backup("api-keys", "create", "shop").code == 2
    assert orders_backup("api-keys", "create", " ", "--scope", "read").code == 2
    assert orders_backup("api-keys", "revoke", "nobody").code == 1
