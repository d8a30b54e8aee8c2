"""Exports by command line: gone on with where they broke off, and nothing gets its name that is not proved."""

import json
import shutil
from pathlib import Path

import asyncpg
import pytest
from pyarrow import parquet as pq

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
