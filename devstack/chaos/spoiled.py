"""Records that nobody can read, for the topics that services consume. Pure."""

from collections.abc import Iterator

from shared.topics import Topics

_KEY = b"1"


def spoiled_records(topics: Topics, tag: str) -> Iterator[tuple[str, bytes | None, bytes]]:
    """Topic, key and value of each; `tag` makes them others than those of the time before."""
    for topic in (topics.order_events, topics.orders, topics.order_windows, topics.dead_letters):
        for number, (key, value) in enumerate(_values()):
            yield topic, key, value.replace(b"TAG", f"{tag} {topic} {number}".encode())


def _values() -> Iterator[tuple[bytes | None, bytes]]:
    yield _KEY, b"no record: TAG"
    yield None, b"\xff\xfe\x00 TAG"
    yield b"\x00", b'{"schema":1,"kind":"order-observed","token_id":1,"order_id":"TAG'
    yield _KEY, b'{"schema":99,"kind":"order-observed","tag":"TAG"}'
    yield _KEY, b'{"schema":1,"kind":"no-such-kind","tag":"TAG"}'
    yield _KEY, b'{"schema":1,"kind":"order-observed","tag":"TAG","order":' + b"[" * 50_000
    yield b"9" * 40, b'{"schema":1,"kind":"order-event","token_id":"TAG","event_id":1e400}'
    yield _KEY, b'["TAG"]'
