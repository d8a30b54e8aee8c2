"""The search for secrets finds them: wherever they are planted, and whatever form they have taken."""

import base64
import json
from collections.abc import Callable
from pathlib import Path
from urllib.parse import quote

import asyncpg
import pytest
from aiokafka import AIOKafkaProducer
from hypothesis import given
from hypothesis import strategies as st

from devstack.canary import Scanner, look_through_files, look_through_tables, look_through_topics
from tests.builders import a_token

# Not the mark of the simulated Allegro: what is planted here must not be taken for a leak of the suite.
MARK = "PlantedBird9"
TOKEN = f"eyJhbGciOiJub25lIn0.eyJqdGkiOiIxIn0.{MARK}-and+the/rest"


@pytest.fixture
def scanner() -> Scanner:
    return Scanner({"a planted secret": MARK})


def found(scanner: Scanner) -> set[tuple[str, str]]:
    return {(leak.place, leak.form) for leak in scanner.leaks}


@pytest.mark.parametrize(
    ("form", "write"),
    [
        pytest.param("plain", lambda token: f"Invalid refresh token: {token}", id="plain"),
        pytest.param("plain", lambda token: f"Invalid refresh token: {token}"[:80], id="cut-off"),
        pytest.param("plain", str.upper, id="upper-case"),
        pytest.param("plain", lambda token: quote(token, safe=""), id="url"),
        pytest.param("plain", lambda token: json.dumps({"a": [json.dumps(token)]}), id="json-in-json"),
        pytest.param("percent encoded", lambda token: "".join(f"%{ord(c):02X}" for c in token), id="percent"),
        pytest.param("escaped", lambda token: "".join(f"\\u{ord(c):04X}" for c in token), id="escaped"),
        pytest.param("hexadecimal", lambda token: token.encode().hex(), id="hexadecimal"),
        pytest.param("UTF-16", lambda token: token.encode("utf-16"), id="utf-16"),
    ],
)
def test_a_secret_is_found_in_every_form(scanner: Scanner, form: str, write: Callable[[str], str | bytes]) -> None:
    scanner.look("here", write(TOKEN))

    assert found(scanner) == {("here", form)}


@given(before=st.binary(max_size=20), after=st.binary(max_size=20), url_safe=st.booleans())
def test_base64_hides_nothing_whatever_stands_around_it(before: bytes, after: bytes, url_safe: bool) -> None:
    scanner = Scanner({"a planted secret": MARK})
    encode = base64.urlsafe_b64encode if url_safe else base64.b64encode

    scanner.look("here", encode(before + MARK.encode() + after))

    assert found(scanner) == {("here", "base64")}


@given(st.binary(max_size=300))
def test_nothing_is_found_where_nothing_is(noise: bytes) -> None:
    scanner = Scanner({"a planted secret": MARK})

    for text in (noise, base64.b64encode(noise), noise.hex(), MARK[:-1], MARK[1:]):
        scanner.look("here", text)

    assert scanner.leaks == []


@given(st.lists(st.integers(1, 40), min_size=1, max_size=20))
def test_a_secret_across_the_edge_of_two_chunks_is_found(sizes: list[int]) -> None:
    scanner = Scanner({"a planted secret": MARK})
    stream = b"x" * 17 + TOKEN.encode() + b"y" * 17
    chunks = []
    for size in sizes:
        chunks.append(stream[:size])
        stream = stream[size:]

    scanner.look_through("here", [*chunks, stream])

    assert found(scanner) == {("here", "plain")}


def test_a_find_says_where_and_shows_not_the_secret(scanner: Scanner) -> None:
    scanner.look("answer to GET /tokens", f'{{"reason": "Access token expired: {TOKEN}"}}')
    scanner.look("answer to GET /tokens", TOKEN)

    assert len(scanner.leaks) == 1
    assert str(scanner.leaks[0]).startswith("answer to GET /tokens: a planted secret (plain) after ")
    assert "Access token expired: " in str(scanner.leaks[0])
    assert MARK not in str(scanner.leaks[0])


def test_a_secret_too_short_to_be_told_from_other_text_is_refused() -> None:
    with pytest.raises(ValueError, match="the password is too short"):
        Scanner({"the password": "postgres"[:7]})


def test_log_files_of_every_folder_are_looked_through(scanner: Scanner, tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    (tmp_path / "api.out").write_text("nothing")
    (tmp_path / "deep" / "api.log.1").write_text("x" * 2_000_000 + TOKEN)
    (tmp_path / "deep" / "data").write_text(TOKEN)

    looked_at = look_through_files(scanner, tmp_path, ("*.log*", "*.out"))

    assert looked_at == 2
    assert found(scanner) == {("deep/api.log.1", "plain")}


@pytest.mark.integration
@pytest.mark.parametrize(
    ("plant", "form"),
    [
        pytest.param("UPDATE user_tokens SET status_reason = $1", "plain", id="text"),
        pytest.param("UPDATE user_tokens SET access_token = convert_to($1, 'UTF8')", "plain", id="bytea"),
        pytest.param("UPDATE user_tokens SET scopes = ARRAY['a', $1]", "plain", id="array"),
        pytest.param(
            "INSERT INTO task_history (task_id, user_token_id, user_id, kind, parameters)"
            " SELECT gen_random_uuid(), id, user_id, 'full', jsonb_build_object('a', $1::text) FROM user_tokens",
            "plain",
            id="jsonb",
        ),
        pytest.param(
            "UPDATE user_tokens SET status_reason = encode(convert_to('a' || $1, 'UTF8'), 'base64')",
            "base64",
            id="base64",
        ),
    ],
)
async def test_a_secret_in_any_column_is_found(scanner: Scanner, database_url: str, plant: str, form: str) -> None:
    connection = await asyncpg.connect(database_url)
    try:
        await a_token(connection)
        await look_through_tables(scanner, connection)
        before = found(scanner)
        await connection.execute(plant, MARK)

        tables = await look_through_tables(scanner, connection)
    finally:
        await connection.close()

    assert before == set()
    assert tables >= 13
    assert {leak.form for leak in scanner.leaks} == {form}
    assert {leak.place for leak in scanner.leaks} <= {"table user_tokens", "table task_history"}


@pytest.mark.integration
async def test_a_secret_in_any_part_of_a_record_is_found(
    scanner: Scanner, kafka_bootstrap: str, fresh_topics: str
) -> None:
    async with AIOKafkaProducer(bootstrap_servers=kafka_bootstrap, compression_type="gzip") as producer:
        for number in range(100):
            await producer.send(f"{fresh_topics}orders", key=str(number).encode(), value=b"nothing")
        await producer.send_and_wait(f"{fresh_topics}orders", key=b"1", value=None, headers=[("error", MARK.encode())])
        await producer.send_and_wait(f"{fresh_topics}order-events", key=MARK.encode(), value=b"{}")
        await producer.send_and_wait(f"{fresh_topics}dead-letters", value=base64.b64encode(TOKEN.encode()))

    records = await look_through_topics(scanner, kafka_bootstrap, fresh_topics)

    assert records == 103
    assert found(scanner) == {
        ("topic orders", "plain"),
        ("topic order-events", "plain"),
        ("topic dead-letters", "base64"),
    }
