"""Keys of the API at the prompt, against a running API."""

import json
from pathlib import Path

import pytest

from tests.cli.conftest import Run

pytestmark = pytest.mark.integration


def test_a_key_is_made_used_listed_and_revoked(api: Path, orders_backup: Run) -> None:
    made = orders_backup("keys", "create", "shop", "--scope", "read", "--user", "shop-1", "--expires-in-days", "30")
    key = made.out.strip()
    refused = orders_backup("tokens", "list")
    used = orders_backup("tokens", "list", "--json", ORDERS_BACKUP_API_KEY=key)
    listed = orders_backup("keys", "list", "--json")
    revoked = orders_backup("keys", "revoke", "shop")
    again = orders_backup("keys", "create", "shop", "--scope", "admin")

    assert (made.code, key[:4], used.code, json.loads(used.out)) == (0, "aob_", 0, [])
    assert refused.code == 1
    assert "ORDERS_BACKUP_API_KEY" in refused.err
    (row,) = json.loads(listed.out)
    assert (row["name"], row["scope"], row["user_ids"], row["status"]) == ("shop", "read", ["shop-1"], "active")
    assert row["last_used_at"] is not None
    assert key.split("_", 2)[2] not in listed.out + api.read_text()
    assert (revoked.code, again.code) == (0, 1)
    assert "names are not used twice" in again.err


def test_wrong_usage_is_told(orders_backup: Run) -> None:
    assert orders_backup("keys", "create", "shop").code == 2
    assert orders_backup("keys", "create", " ", "--scope", "read").code == 2
    assert orders_backup("keys", "revoke", "nobody").code == 1


@pytest.mark.parametrize("name", ["anonymous", "Anonymous", " anonymous "])
def test_no_key_is_called_as_those_who_have_none(orders_backup: Run, name: str) -> None:
    refused = orders_backup("keys", "create", name, "--scope", "read")

    assert (refused.code, "without a key" in refused.err) == (2, True)
    assert json.loads(orders_backup("keys", "list", "--json").out) == []


def test_the_old_names_of_the_commands_go_on_and_are_not_offered(orders_backup: Run) -> None:
    made = orders_backup("api-keys", "create", "shop", "--scope", "read", "--json")
    rotated = orders_backup("keys", "rotate", "--json")

    assert json.loads(made.out)["name"] == "shop"
    assert json.loads(rotated.out) == {"moved": 0, "left": 0}
    assert "api-keys" not in orders_backup("--help").out
    assert "rotate" not in orders_backup("keys", "--help").out
