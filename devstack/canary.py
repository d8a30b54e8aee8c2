"""Has a secret come out (requirement A8, promise P8)? Looks for known secrets in whatever the product wrote.

A secret is found in plain text and in the forms in which text travels: base64 at any alignment, hexadecimal, percent
encoded, escaped as in JSON, UTF-16. Nothing is left out of a look: where only ciphertext may be (`bytea` columns),
the plain text must not be found either.
"""

import base64
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import asyncpg
from aiokafka import AIOKafkaConsumer, ConsumerRecord, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient

_CHUNK_BYTES = 1024 * 1024
_SHORTEST_SECRET = 8
_CONTEXT_BYTES = 60

# language=sql
_TABLES = """
SELECT schemaname, tablename FROM pg_tables
 WHERE schemaname NOT IN ('pg_catalog', 'information_schema') ORDER BY schemaname, tablename
"""


@dataclass(frozen=True)
class Leak:
    """One find: what was found, written how, where, and what stands before it."""

    secret: str
    form: str
    place: str
    before: str

    def __str__(self) -> str:
        return f"{self.place}: {self.secret} ({self.form}) after {self.before!r}"


class Scanner:
    """Looks for secrets, given by a name and a value (or a part that all secrets of a kind have)."""

    def __init__(self, secrets: Mapping[str, str]) -> None:
        self._exact: list[tuple[str, str, bytes]] = []
        self._folded: list[tuple[str, str, bytes]] = []
        for name, value in secrets.items():
            if len(value) < _SHORTEST_SECRET:
                raise ValueError(f"{name} is too short to be told from other text")
            self._exact += [(name, form, text) for form, text in _exact_forms(value.encode())]
            self._folded += [(name, form, text.lower()) for form, text in _folded_forms(value)]
        # A secret may stand across two chunks of a stream.
        self._overlap = max(len(text) for _, _, text in (*self._exact, *self._folded)) - 1
        self.leaks: list[Leak] = []
        self.bytes_looked_at = 0

    def look(self, place: str, text: bytes | str) -> None:
        """Look through one text; what is found is added to `leaks`, once a place, secret and form."""
        raw = text.encode("utf-8", "surrogatepass") if isinstance(text, str) else text
        self.bytes_looked_at += len(raw)
        self._find(place, raw, raw, self._exact)
        self._find(place, raw, raw.lower(), self._folded)

    def look_through(self, place: str, chunks: Iterable[bytes]) -> None:
        """Look through a stream, also where one chunk meets the next."""
        follow = self.follow(place)
        for chunk in chunks:
            follow(chunk)

    def follow(self, place: str) -> Callable[[bytes], None]:
        """A function that takes a stream's chunks in turn."""
        tail = b""

        def take(chunk: bytes) -> None:
            nonlocal tail
            self.look(place, tail + chunk)
            tail = (tail + chunk)[-self._overlap :]

        return take

    def _find(self, place: str, raw: bytes, searched: bytes, forms: Iterable[tuple[str, str, bytes]]) -> None:
        for name, form, text in forms:
            at = searched.find(text)
            if at >= 0:
                before = raw[max(0, at - _CONTEXT_BYTES) : at].decode("utf-8", "replace")
                if not any((leak.secret, leak.form, leak.place) == (name, form, place) for leak in self.leaks):
                    self.leaks.append(Leak(name, form, place, before))


def _exact_forms(value: bytes) -> Iterator[tuple[str, bytes]]:
    """What base64 makes of the value, wherever it begins within a group of three bytes; without the edges, which
    depend on the neighbours."""
    for shift in range(3):
        whole = value[(3 - shift) % 3 :]
        whole = whole[: len(whole) // 3 * 3]
        yield "base64", base64.b64encode(whole)
        yield "base64", base64.urlsafe_b64encode(whole)


def _folded_forms(value: str) -> Iterator[tuple[str, bytes]]:
    """Forms in which upper and lower case may have been exchanged."""
    yield "plain", value.encode()
    yield "hexadecimal", value.encode().hex().encode()
    yield "percent encoded", "".join(f"%{byte:02x}" for byte in value.encode()).encode()
    yield "escaped", "".join(f"\\u{ord(character):04x}" for character in value).encode()
    yield "UTF-16", value.encode("utf-16-le")


def look_through_files(scanner: Scanner, folder: Path, patterns: Iterable[str]) -> int:
    """Look through the files below a folder whose names match; returns how many there were."""
    files = sorted({file for pattern in patterns for file in folder.rglob(pattern) if file.is_file()})
    for file in files:
        with file.open("rb") as stream:
            scanner.look_through(str(file.relative_to(folder)), iter(lambda: stream.read(_CHUNK_BYTES), b""))
    return len(files)


async def look_through_tables(scanner: Scanner, connection: asyncpg.Connection) -> int:
    """Look through every column of every row of every table of a database; returns how many tables there were."""
    tables = await connection.fetch(_TABLES)
    for table in tables:
        follow = scanner.follow(f"table {table['tablename']}")
        pending = bytearray()

        async def take(chunk: bytes, pending: bytearray = pending, follow: Callable[[bytes], None] = follow) -> None:
            pending.extend(chunk)
            if len(pending) >= _CHUNK_BYTES:
                follow(bytes(pending))
                pending.clear()

        # Binary: `bytea` arrives as the bytes it holds, `jsonb` and `text` as their text.
        await connection.copy_from_table(
            table["tablename"], schema_name=table["schemaname"], output=take, format="binary"
        )
        follow(bytes(pending))
    return len(tables)


async def look_through_topics(scanner: Scanner, bootstrap_servers: str, prefix: str) -> int:
    """Look through every record (key, value, headers) of the topics that begin so; returns how many there were."""
    partitions = await partitions_below(bootstrap_servers, prefix)
    if not partitions:
        return 0
    records = 0
    async with AIOKafkaConsumer(bootstrap_servers=bootstrap_servers, auto_offset_reset="earliest") as consumer:
        ends = await consumer.end_offsets(partitions)
        begins = await consumer.beginning_offsets(partitions)
        unread = {partition for partition in partitions if begins[partition] < ends[partition]}
        consumer.assign(list(unread))
        for partition in unread:
            consumer.seek(partition, begins[partition])
        while unread:
            for partition, batch in (await consumer.getmany(timeout_ms=1000)).items():
                records += len(batch)
                scanner.look(f"topic {partition.topic.removeprefix(prefix)}", b"\n".join(map(_bytes_of, batch)))
            unread = {partition for partition in unread if await consumer.position(partition) < ends[partition]}
    return records


async def partitions_below(bootstrap_servers: str, prefix: str) -> list[TopicPartition]:
    """All partitions of the topics that begin so. A consumer without a subscription knows none on Apache Kafka."""
    admin = AIOKafkaAdminClient(bootstrap_servers=bootstrap_servers)
    await admin.start()
    try:
        topics = await admin.describe_topics()
    finally:
        await admin.close()
    return [
        TopicPartition(topic["topic"], partition["partition"])
        for topic in topics
        if topic["topic"].startswith(prefix)
        for partition in topic["partitions"]
    ]


def _bytes_of(record: ConsumerRecord[Any, Any]) -> bytes:
    headers = (part for name, value in record.headers for part in (name.encode(), value or b""))
    return b"\n".join((record.key or b"", record.value or b"", *headers))
