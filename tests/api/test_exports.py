"""Exports over HTTP: complete, exactly once, the same after any break, and proved by nothing but themselves."""

import base64
import csv
import io
import json
from collections.abc import Iterator
from decimal import Decimal
from typing import Any

import asyncpg
import httpx
import msgspec
import pytest
from pyarrow import parquet as pq

from services.api import middleware
from services.api.export import walk
from services.api.export.forms import NDJSON, _Line, harmless
from services.api.export.selection import OrderExport
from services.api.export.walk import Export
from services.api.problems import InvalidCursorError
from services.api.settings import ApiSettings
from services.writer.batch import collect
from services.writer.store import Store
from services.writer.unstorable import Storable
from shared.export.columns import SUMMARY
from shared.export.parquet import prove_parquet
from shared.export.proof import joined
from shared.export.reading import DamagedExportError, Proof, last_cursor, prove
from shared.messages import RawJson
from tests.api.test_frame import serving
from tests.builders import AN_ORDER, a_token, an_observation, consumed

pytestmark = pytest.mark.integration

PATH = "/api/v1/exports/orders"
COUNT = 450
RECORDS = ("ndjson", "csv")
"""Forms whose orders are records one after the other."""
EXACT = b'{"id": "x", "status": "BOUGHT", "price": 1.10, "large": 12345678901234567890.123456789, "name": "\xc5\x82"}'
NUL = b'{"id":"x",\n"status":"BOUGHT","note":"a\\u0000b","n":1.10,"twice":1,"twice":2}'

# Of two sellers, in turn; every seventh without a time of purchase, some with what tables find hard.
_FILL = """
INSERT INTO orders (user_token_id, allegro_order_id, status, buyer_login, total_amount, currency, bought_at, order_data,
                    observed_at, observed_by)
SELECT 1 + n % 2, 'order-' || n, CASE WHEN n % 10 = 0 THEN 'CANCELLED' ELSE 'BOUGHT' END,
       CASE WHEN n % 5 = 0 THEN E'=cmd("x"),\\r\\n' || n ELSE 'buyer' || n END, n * 1.10, 'PLN',
       CASE WHEN n % 7 <> 0 THEN now() - n * interval '1 minute' END,
       jsonb_build_object('n', n, 'pad', repeat('x', 9000)), now(), 'list'
  FROM generate_series($1::int, $2::int) n
"""


async def fill(pool: asyncpg.Pool, first: int = 1, last: int = COUNT) -> None:
    await pool.execute(_FILL, first, last)


@pytest.fixture
async def orders(pool: asyncpg.Pool) -> None:
    await a_token(pool)
    await a_token(pool, user_id="shop-2")
    await fill(pool)


def lines(body: bytes) -> list[dict[str, Any]]:
    return [json.loads(line) for line in body.splitlines()]


def table(body: bytes) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(body.decode(), newline="")))


def order_ids(body: bytes, form: str) -> list[str]:
    """Of every order, in the order of the export."""
    if form == "csv":
        return [row["order_id"] for row in table(body) if row["user_id"] != "#manifest"]
    return [line["order_id"] for line in lines(body) if "order_id" in line]


def cuts(body: bytes) -> Iterator[int]:
    """Places at which a connection may break: evenly, and around every line's end near some of them."""
    for number in range(12):
        place = len(body) * number // 12
        yield place
        end = body.find(b"\n", place) + 1
        yield from (end - 1, end, end + 1)
    yield len(body) - 1


class TestNdjson:
    async def test_documents_go_out_as_jsonb_has_them_and_what_it_cannot_hold_byte_for_byte(
        self, api: httpx.AsyncClient, pool: asyncpg.Pool
    ) -> None:
        await a_token(pool)
        observed = [
            consumed(an_observation(order_id="exact", body=RawJson(EXACT))),
            consumed(an_observation(order_id="nul", body=RawJson(NUL))),
        ]
        batch = collect(observed, dead_letter_topic="dead")
        await Store(pool).apply(batch, storable={NUL: Storable(b'{"id": "x"}', NUL)})

        answer = await api.get(PATH)

        by_id = {line["order_id"]: line for line in lines(answer.content) if "order_id" in line}
        stored: bytes = await pool.fetchval("SELECT order_data FROM orders WHERE allegro_order_id = 'exact'")
        assert answer.headers["content-type"] == "application/x-ndjson"
        assert b'"order_data":' + stored + b"," in answer.content
        assert by_id["exact"]["order_raw"] is None
        assert base64.b64decode(by_id["nul"]["order_raw"]) == NUL
        assert by_id["nul"]["order_data"] == {"id": "x"}

    def test_a_line_has_the_documented_names(self) -> None:
        names = msgspec.structs.fields(_Line)

        assert tuple(field.encode_name for field in names) == (*SUMMARY, "order_data", "order_raw", "cursor")
        assert {field.name for field in names if field.required} == {*SUMMARY, "order_data", "order_raw"}


class TestParquet:
    async def test_it_holds_what_ndjson_holds(self, api: httpx.AsyncClient, pool: asyncpg.Pool, orders: None) -> None:
        expected = [line for line in lines((await api.get(PATH)).content) if "order_id" in line]

        answer = await api.get(PATH, params={"format": "parquet"})

        rows = pq.read_table(io.BytesIO(answer.content)).to_pylist()
        assert answer.headers["content-type"] == "application/vnd.apache.parquet"
        assert [row["order_id"] for row in rows] == [line["order_id"] for line in expected]
        assert [json.loads(row["order_data"]) for row in rows] == [line["order_data"] for line in expected]
        assert [row["total_amount"] for row in rows] == [Decimal(line["total_amount"]) for line in expected]
        assert prove_parquet(io.BytesIO(answer.content)).is_complete

    async def test_large_documents_are_few_in_a_row_group_however_well_they_compress(
        self, api: httpx.AsyncClient, pool: asyncpg.Pool, orders: None
    ) -> None:
        await pool.execute("UPDATE orders SET order_data = jsonb_build_object('pad', repeat('x', 100000))")

        answer = await api.get(PATH, params={"format": "parquet"})

        metadata = pq.read_metadata(io.BytesIO(answer.content))
        # The first is of a fixed size, and the second is read ahead of what the first tells.
        later = [metadata.row_group(number).num_rows for number in range(2, metadata.num_row_groups)]
        assert sum(later) == COUNT - 200
        assert max(later) * 100_000 < 10e6

    async def test_documents_stand_only_where_they_belong(self, api: httpx.AsyncClient, orders: None) -> None:
        answer = await api.get(PATH, params={"format": "parquet"})

        group = pq.read_metadata(io.BytesIO(answer.content)).row_group(0)
        told = {group.column(place).path_in_schema for place in range(21) if group.column(place).is_stats_set}
        assert told == set(SUMMARY)

    @pytest.mark.parametrize("limit", [1, 100, 449, 450, 451])
    async def test_parts_follow_one_another(
        self, api: httpx.AsyncClient, pool: asyncpg.Pool, orders: None, limit: int
    ) -> None:
        proofs: list[Proof] = []
        found: list[str] = []
        following: str | None = None
        while len(proofs) < 3 and (following is not None or not proofs):
            parameters: dict[str, str | int] = {"format": "parquet", "limit": limit}
            parameters |= {} if following is None else {"cursor": following}
            file = io.BytesIO((await api.get(PATH, params=parameters)).content)
            found += pq.read_table(file).column("order_id").to_pylist()
            proofs.append(prove_parquet(file))
            following = proofs[-1].manifest.next

        whole = joined(proofs)
        assert found == [f"order-{n}" for n in range(1, len(found) + 1)]
        assert whole.orders_in_file == whole.manifest.orders == min(COUNT, 3 * limit)
        assert whole.is_complete is (limit > 100)


class TestCsv:
    async def test_columns_are_typed_and_every_value_comes_back(
        self, api: httpx.AsyncClient, pool: asyncpg.Pool, orders: None
    ) -> None:
        answer = await api.get(PATH, params={"format": "csv", "user_id": "shop-1"})

        rows = {row["order_id"]: row for row in table(answer.content)}
        bought_at = await pool.fetchval("SELECT bought_at FROM orders WHERE allegro_order_id = 'order-10'")
        row = rows["order-10"]
        assert (row["user_id"], row["total_amount"], row["currency"]) == ("shop-1", "11.00", "PLN")
        assert row["bought_at"] == bought_at.isoformat().replace("+00:00", "Z")
        assert rows["order-14"]["bought_at"] == ""
        assert row["buyer_login"] == '\'=cmd("x"),\r\n10'

    @pytest.mark.parametrize("text", ["=1+1", "+1", "-1", "@x", "\tx", "\rx", "\nx", "\uff1d1"])
    def test_no_cell_is_a_formula(self, text: str) -> None:
        assert harmless(text) == "'" + text
        assert harmless(" \u00a0" + text) == "' \u00a0" + text
        assert harmless("a" + text) == "a" + text

    async def test_a_user_who_is_called_like_the_manifest_is_a_user(
        self, api: httpx.AsyncClient, pool: asyncpg.Pool
    ) -> None:
        await a_token(pool, user_id="#manifest")
        await fill(pool, 2, 2)
        await pool.execute("UPDATE orders SET user_token_id = 1")

        answer = await api.get(PATH, params={"format": "csv"})

        assert prove(io.BytesIO(answer.content)).orders_in_file == 1


@pytest.mark.parametrize("form", RECORDS)
class TestRecords:
    async def test_all_orders_once_and_proved(self, api: httpx.AsyncClient, orders: None, form: str) -> None:
        answer = await api.get(PATH, params={"format": form})

        proof = prove(io.BytesIO(answer.content))
        assert sorted(order_ids(answer.content, form)) == sorted(f"order-{n}" for n in range(1, COUNT + 1))
        assert (proof.is_complete, proof.manifest.orders, proof.orders_in_file) == (True, COUNT, COUNT)

    async def test_wherever_it_breaks_off_it_goes_on_without_loss(
        self, api: httpx.AsyncClient, orders: None, form: str
    ) -> None:
        params = {"format": form, "user_id": ["shop-2", "shop-1"]}
        whole = (await api.get(PATH, params=params)).content
        resumed = 0

        for place in cuts(whole):
            kept = io.BytesIO(whole[:place])
            found = last_cursor(kept)
            if found is not None:
                rest = await api.get(PATH, params={**params, "cursor": found.cursor})
                together = whole[: found.offset] + rest.content
                assert prove(io.BytesIO(together)).is_complete
                assert order_ids(together, form) == order_ids(whole, form)
                resumed += 1
        assert resumed > 10

    async def test_parts_of_any_size_make_up_the_whole(self, api: httpx.AsyncClient, orders: None, form: str) -> None:
        ids: list[str] = []
        cursor = None

        for limit in (1, 120, 99, 200, 1000):
            params = {"format": form, "limit": limit} | ({"cursor": cursor} if cursor else {})
            part = await api.get(PATH, params=params)
            proof = prove(io.BytesIO(part.content))
            assert (proof.begins_after, proof.is_complete) == (len(ids), False)
            with_header = await api.get(PATH, params={**params, "header": "true"})
            ids += order_ids(with_header.content, form)
            cursor = proof.manifest.next

        assert cursor is None
        assert sorted(ids) == sorted(f"order-{n}" for n in range(1, COUNT + 1))

    async def test_a_limit_that_is_exactly_enough_is_the_whole(
        self, api: httpx.AsyncClient, orders: None, form: str
    ) -> None:
        answer = await api.get(PATH, params={"format": form, "limit": COUNT})

        assert prove(io.BytesIO(answer.content)).is_complete

    async def test_nothing_to_export_is_a_complete_export(
        self, api: httpx.AsyncClient, pool: asyncpg.Pool, form: str
    ) -> None:
        answer = await api.get(PATH, params={"format": form})

        assert (prove(io.BytesIO(answer.content)).is_complete, order_ids(answer.content, form)) == (True, [])

    async def test_any_change_of_the_file_is_found(self, api: httpx.AsyncClient, orders: None, form: str) -> None:
        whole = (await api.get(PATH, params={"format": form})).content
        ends = [place for place, byte in enumerate(whole) if byte == 10]
        middle = ends[len(ends) // 2]
        start = whole.index(b"order-7")

        for damaged in (
            whole[:start] + b"order-8" + whole[start + 7 :],  # a byte of the first chunk
            whole[:middle] + whole[ends[len(ends) // 2 + 1] :],  # an order less
            whole[: ends[-2] + 1],  # no manifest
            whole[:-3],  # cut off
            whole + whole[ends[-3] + 1 :],  # more after the end
        ):
            with pytest.raises(DamagedExportError):
                prove(io.BytesIO(damaged))

    async def test_compressed_it_is_the_same(self, api: httpx.AsyncClient, orders: None, form: str) -> None:
        answer = await api.get(PATH, params={"format": form}, headers={"Accept-Encoding": "gzip"})

        assert answer.headers["content-encoding"] == "gzip"
        assert prove(io.BytesIO(answer.content)).manifest.orders == COUNT

    async def test_without_a_manifest_there_are_orders_only(
        self, api: httpx.AsyncClient, orders: None, form: str
    ) -> None:
        answer = await api.get(PATH, params={"format": form, "manifest": "false", "status": "CANCELLED"})

        assert len(order_ids(answer.content, form)) == COUNT // 10
        assert b"manifest" not in answer.content


class TestWhatIsInIt:
    @pytest.mark.parametrize(
        ("filters", "count"),
        [
            ({"status": "CANCELLED"}, COUNT // 10),
            ({"user_id": "shop-1"}, COUNT // 2),
            ({"user_id": ["shop-1", "shop-2"], "bought_from": "2000-01-01T00:00:00Z"}, COUNT - COUNT // 7),
            ({"bought_to": "2000-01-01T00:00:00Z"}, 0),
            ({"updated_since": "2000-01-01T00:00:00Z", "buyer_login": "buyer1"}, 1),
        ],
    )
    async def test_filters_have_to_hold(
        self, api: httpx.AsyncClient, orders: None, filters: dict[str, Any], count: int
    ) -> None:
        answer = await api.get(PATH, params=filters)

        manifest = prove(io.BytesIO(answer.content)).manifest
        assert (manifest.orders, set(manifest.filters)) == (count, set(filters))

    @pytest.mark.parametrize("users", [None, [1, 2]], ids=["in-one-walk", "seller-by-seller"])
    async def test_what_was_there_at_the_beginning_is_met_once_whatever_happens_meanwhile(
        self, pool: asyncpg.Pool, orders: None, users: list[int] | None
    ) -> None:
        export = await Export.begin(pool, OrderExport(), NDJSON, users)
        pieces = export.pieces()
        body = await anext(pieces)
        await fill(pool, COUNT + 1, COUNT + 50)
        await pool.execute("UPDATE orders SET bought_at = now(), updated_at = now(), status = 'CHANGED'")

        async for piece in pieces:
            body += piece

        assert sorted(order_ids(body, "ndjson")) == sorted(f"order-{n}" for n in range(1, COUNT + 1))
        assert prove(io.BytesIO(body)).is_complete

    async def test_a_slow_reader_holds_neither_a_transaction_nor_a_connection(
        self, pool: asyncpg.Pool, orders: None
    ) -> None:
        export = await Export.begin(pool, OrderExport(), NDJSON, None)
        pieces = export.pieces()
        await anext(pieces)

        # Two are all there are; whoever held one would keep us waiting for ever.
        async with pool.acquire() as one, pool.acquire():
            state = await one.fetchval(
                "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
                " AND xact_start IS NOT NULL"
            )
        await pieces.aclose()

        assert state == 0

    @pytest.mark.parametrize(
        ("query", "status"),
        [
            ("user_id=nobody", 404),
            ("cursor=x", 400),
            ("format=xml", 422),
            ("limit=0", 422),
            ("paint=red", 422),
            ("bought_from=now", 422),
        ],
    )
    async def test_bad_questions_are_refused_before_anything_is_sent(
        self, api: httpx.AsyncClient, orders: None, query: str, status: int
    ) -> None:
        answer = await api.get(f"{PATH}?{query}")

        assert (answer.status_code, answer.headers["content-type"]) == (status, "application/problem+json")

    async def test_a_cursor_belongs_to_one_form_and_its_filters(self, api: httpx.AsyncClient, orders: None) -> None:
        first = await api.get(PATH, params={"limit": 10, "user_id": "shop-1"})
        cursor = prove(io.BytesIO(first.content)).manifest.next

        for other in ({}, {"user_id": "shop-2"}, {"user_id": "shop-1", "format": "csv"}):
            answer = await api.get(PATH, params={**other, "cursor": cursor})
            assert (answer.status_code, answer.json()["type"].rpartition(":")[2]) == (400, "invalid-cursor")

    async def test_a_cursor_of_all_sellers_is_none_of_some(self, pool: asyncpg.Pool, orders: None) -> None:
        first = await Export.begin(pool, OrderExport(limit=10), NDJSON, None)
        body = b"".join([piece async for piece in first.pieces()])
        asked = OrderExport(cursor=prove(io.BytesIO(body)).manifest.next)

        with pytest.raises(InvalidCursorError):
            await Export.begin(pool, asked, NDJSON, [1, 2])
        await Export.begin(pool, asked, NDJSON, None)

    async def test_one_order_is_named_by_user_and_id(self, api: httpx.AsyncClient, pool: asyncpg.Pool) -> None:
        await a_token(pool)
        await Store(pool).apply(collect([consumed(an_observation())], dead_letter_topic="dead"))

        order, _ = lines((await api.get(PATH)).content)

        assert (order["user_id"], order["order_id"], order["total_amount"]) == ("shop-1", AN_ORDER, "85.97")
        assert order["observed_at"] == "2026-10-10T12:00:00Z"


# Every row takes its time, as one that has to come from a slow disk.
_SLOW = """
ALTER TABLE orders RENAME TO stored_orders;
CREATE FUNCTION is_read() RETURNS boolean LANGUAGE plpgsql VOLATILE COST 0.0001 AS
$$ BEGIN PERFORM pg_sleep(0.015); RETURN true; END $$;
CREATE VIEW orders AS SELECT * FROM stored_orders WHERE is_read();
"""

_LIMITED = """
DO $$ BEGIN EXECUTE format('ALTER DATABASE %I SET statement_timeout = 2000', current_database()); END $$
"""


class TestSparse:
    """Few orders among many meet the filters."""

    @pytest.mark.parametrize("parameters", [{}, {"user_id": "shop-1"}], ids=["of-all", "of-one"])
    @pytest.mark.parametrize("form", RECORDS)
    async def test_no_statement_takes_longer_because_there_are_more_orders(
        self,
        settings: ApiSettings,
        pool: asyncpg.Pool,
        orders: None,
        monkeypatch: pytest.MonkeyPatch,
        parameters: dict[str, str],
        form: str,
    ) -> None:
        monkeypatch.setattr(walk, "_LOOKED_AT", 20)
        monkeypatch.setattr(middleware, "_DEADLINE_SECONDS", 2.5)
        await pool.execute("UPDATE orders SET status = 'RARE' WHERE allegro_order_id IN ('order-2', 'order-448')")
        await pool.execute(_SLOW)
        # To read all of them takes six seconds and more, half of that those of one seller.
        await pool.execute(_LIMITED)

        async with serving(settings) as client:
            answer = await client.get(PATH, params={"format": form, "status": "RARE", **parameters})

        assert order_ids(answer.content, form) == ["order-2", "order-448"]
        assert prove(io.BytesIO(answer.content)).is_complete

    @pytest.mark.parametrize("users", [None, [1, 2]], ids=["in-one-walk", "seller-by-seller"])
    @pytest.mark.parametrize("looked_at", [1, 7, COUNT // 2, COUNT, 1000])
    async def test_every_order_is_met_once_however_far_a_statement_looks(
        self,
        pool: asyncpg.Pool,
        orders: None,
        monkeypatch: pytest.MonkeyPatch,
        users: list[int] | None,
        looked_at: int,
    ) -> None:
        monkeypatch.setattr(walk, "_LOOKED_AT", looked_at)
        asked = OrderExport(status="CANCELLED")
        whole = b"".join([piece async for piece in (await Export.begin(pool, asked, NDJSON, users)).pieces()])

        ids: list[str] = []
        cursor: str | None = None
        while cursor is not None or not ids:
            part = await Export.begin(pool, OrderExport(status="CANCELLED", limit=4, cursor=cursor), NDJSON, users)
            body = b"".join([piece async for piece in part.pieces()])
            ids += order_ids(body, "ndjson")
            cursor = prove(io.BytesIO(body)).manifest.next

        assert sorted(ids) == sorted(f"order-{n}" for n in range(10, COUNT + 1, 10))
        assert order_ids(whole, "ndjson") == ids
        assert prove(io.BytesIO(whole)).is_complete
