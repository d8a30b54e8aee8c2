"""Exports by command line: gone on with where they broke off, and nothing gets its name that is not proved."""

import errno
import io
import json
import shutil
from pathlib import Path
from typing import Any

import asyncpg
import httpx
import pytest
from pyarrow import parquet as pq
from rich.console import Console

from cli.client import Api
from cli.export import _expected
from tests.builders import a_token
from tests.cli.conftest import Run

pytestmark = pytest.mark.integration

_FILL = """
INSERT INTO orders (user_token_id, allegro_order_id, status, order_data, observed_at, observed_by)
SELECT 1, 'order-' || n, 'BOUGHT', jsonb_build_object('pad', repeat('x', 9000)), now(), 'list'
  FROM generate_series(1, 500) n
"""


@pytest.fixture
async def orders(pool: asyncpg.Pool) -> None:
    await a_token(pool)
    await pool.execute(_FILL)


@pytest.mark.parametrize("form", ["ndjson", "csv"])
async def test_what_broke_off_is_gone_on_with_and_proved(
    api: Path, orders_backup: Run, orders: None, tmp_path: Path, form: str
) -> None:
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    orders_backup("orders", "export", "shop-1", "--format", form, "-o", str(whole))
    part = tmp_path / "broken.part"
    part.write_bytes(whole.read_bytes()[: whole.stat().st_size * 3 // 4])

    done = orders_backup("orders", "export", "shop-1", "--format", form, "-o", str(broken))
    verified = orders_backup("verify", str(broken), "--json")

    assert (done.code, part.exists()) == (0, False)
    assert "500 orders" in done.err
    found = json.loads(verified.out)
    assert (verified.code, found["complete"], found["orders"], found["orders_in_file"]) == (0, True, 500, 500)
    assert whole.stat().st_mode & 0o777 == 0o600


async def test_a_damaged_file_is_found_and_a_part_of_other_filters_is_not_gone_on_with(
    api: Path, orders_backup: Run, orders: None, tmp_path: Path
) -> None:
    file = tmp_path / "orders.ndjson"
    orders_backup("orders", "export", "-o", str(file))
    content = file.read_bytes()
    place = content.index(b"xxx")
    file.write_bytes(content[:place] + b"y" + content[place + 1 :])
    (tmp_path / "other.part").write_bytes(content)

    verified = orders_backup("verify", str(file))
    other = orders_backup("orders", "export", "-o", str(tmp_path / "other"), "--status", "BOUGHT")

    assert (verified.code, other.code) == (1, 1)
    assert "not as it was exported" in verified.err
    assert "remove" in other.err
    assert not (tmp_path / "other").exists()


async def test_parquet_is_a_folder_of_parts_that_is_gone_on_with_and_proved(
    api: Path, orders_backup: Run, orders: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cli.export._PART_ORDERS", 200)
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    orders_backup("orders", "export", "--format", "parquet", "-o", str(whole))
    started = tmp_path / "broken.part"
    started.mkdir()
    shutil.copy(whole / "part-00001.parquet", started)
    (started / "part-00002.parquet.part").write_bytes((whole / "part-00002.parquet").read_bytes()[:5000])

    done = orders_backup("orders", "export", "--format", "parquet", "-o", str(broken))
    verified = orders_backup("verify", str(broken), "--json")
    (broken / "part-00002.parquet").unlink()
    lacking = orders_backup("verify", str(broken))
    part = orders_backup("verify", str(broken / "part-00001.parquet"))

    assert (done.code, "500 orders" in done.err, started.exists()) == (0, True, False)
    found = json.loads(verified.out)
    assert (verified.code, found["complete"], found["orders"], found["orders_in_file"]) == (0, True, 500, 500)
    assert pq.read_table(broken.with_name("whole")).column("order_id").to_pylist() == [
        f"order-{n}" for n in range(1, 501)
    ]
    assert (lacking.code, "does not lead there" in lacking.err) == (1, True)
    assert (part.code, "only a part" in part.err) == (1, True)


async def test_an_export_goes_to_standard_output(api: Path, orders_backup: Run, orders: None, tmp_path: Path) -> None:
    done = orders_backup("orders", "export", "-o", "-", "--format", "csv", "--compressed")
    file = tmp_path / "orders.csv"
    file.write_text(done.out, newline="")

    assert orders_backup("verify", str(file)).code == 0


@pytest.mark.parametrize("form", ["ndjson", "csv", "parquet"])
async def test_an_export_of_the_same_name_is_replaced_and_told_as_json(
    api: Path, orders_backup: Run, pool: asyncpg.Pool, orders: None, tmp_path: Path, form: str
) -> None:
    target = tmp_path / "orders"
    first = orders_backup("orders", "export", "--format", form, "-o", str(target), "--json")
    await pool.execute("DELETE FROM orders WHERE allegro_order_id = 'order-7'")
    # As a crash leaves it in the middle of replacing a folder.
    (tmp_path / "orders.replaced").mkdir()

    second = orders_backup("orders", "export", "--format", form, "-o", str(target), "--json")
    verified = orders_backup("verify", str(target), "--json")

    assert (first.code, json.loads(first.out)["orders"]) == (0, 500)
    assert (second.code, json.loads(second.out)) == (0, json.loads(verified.out))
    assert json.loads(verified.out)["orders"] == 499
    assert not (tmp_path / "orders.part").exists()
    assert (tmp_path / "orders.replaced").exists() is (form != "parquet")


async def test_an_export_to_standard_output_is_told_as_json_beside_it(
    api: Path, orders_backup: Run, orders: None
) -> None:
    done = orders_backup("orders", "export", "-o", "-", "--json")

    told, manifest = json.loads(done.err), json.loads(done.out.splitlines()[-1])["manifest"]
    assert (told["orders"], told["digest"]) == (500, manifest["digest"])


async def test_a_full_disk_ends_an_export_with_the_name_of_the_file(
    api: Path, orders_backup: Run, orders: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("cli.export.os.fsync", full)

    done = orders_backup("orders", "export", "-o", str(tmp_path / "orders"))

    assert done.code == 1
    assert done.err == f"orders-backup: {tmp_path / 'orders'}: No space left on device\n"


async def test_orders_that_are_gone_can_be_asked_for_alone_or_left_out(
    api: Path, orders_backup: Run, pool: asyncpg.Pool, orders: None
) -> None:
    await pool.execute("UPDATE orders SET gone_at = now(), gone_reason = 'x' WHERE allegro_order_id = 'order-7'")

    gone = orders_backup("orders", "list", "shop-1", "--gone", "--json")
    exported = orders_backup("orders", "export", "-o", "-", "--gone")
    others = orders_backup("orders", "export", "-o", "-", "--not-gone", "--json")

    assert [order["order_id"] for order in json.loads(gone.out)] == ["order-7"]
    assert [json.loads(line).get("order_id") for line in exported.out.splitlines()] == ["order-7", None]
    assert json.loads(others.err)["orders"] == 499


async def test_a_terminal_sees_how_much_of_how_much_has_come(
    api: Path, orders_backup: Run, orders: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = io.StringIO()
    monkeypatch.setattr("cli.export.progress_console", lambda: Console(file=seen, force_terminal=True, width=200))

    done = orders_backup("orders", "export", "-o", str(tmp_path / "orders"))

    assert done.code == 0
    assert "500 of 500 orders" in seen.getvalue()
    assert "/s, 4." in seen.getvalue()


_COUNTED = {"orders": 9, "by_status": [{"status": "SENT", "orders": 4}, {"status": "NEW", "orders": 5}]}


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        pytest.param({}, 9, id="everything"),
        pytest.param({"user_id": ["a", "b", "a"]}, 18, id="two-sellers"),
        pytest.param({"status": "SENT", "bought_from": "2026-01-01T00:00:00Z"}, 4, id="a-status"),
        pytest.param({"status": "PAID"}, 0, id="a-status-that-nothing-has"),
        pytest.param({"buyer_login": "jan"}, None, id="a-buyer"),
        pytest.param({"gone": False}, None, id="what-is-not-gone"),
        pytest.param({"user_id": ["nobody"]}, None, id="a-seller-that-is-not-known"),
    ],
)
def test_a_total_is_told_where_the_statistics_know_it(asked: dict[str, Any], expected: int | None) -> None:
    def answer(request: httpx.Request) -> httpx.Response:
        if request.url.path.endswith("/nobody"):
            return httpx.Response(404, json={"detail": "x", "correlation_id": "c"})
        return httpx.Response(200, json=_COUNTED)

    filters = ["user_id", "status", "fulfillment_status", "bought_from", "bought_to", "updated_since", "buyer_login"]
    with Api("http://127.0.0.1", transport=httpx.MockTransport(answer)) as api:
        assert _expected(api, {**dict.fromkeys([*filters, "gone"]), **asked}) == expected
