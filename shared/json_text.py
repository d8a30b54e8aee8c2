"""JSON that our readers refuse although it came: read with a stand-in of the same length, kept as it is (promise P9).

RFC 8259 (8.2) lets a string hold half of a surrogate pair; msgspec and PostgreSQL refuse the whole document for it, as
they do for bytes that are not UTF-8. Each such escape is six bytes, and so is `\\ufffd`: a stand-in of the same length
can be read in its place, and every part of it stands where it stands in the original. The same goes for nesting that is
deeper than a reader's stack: what lies too deep is read as a number, whatever it is.
"""

import json
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from typing import Any

import msgspec

# Escapes one after the other, so that a backslash that is itself escaped starts none.
_ESCAPE = re.compile(
    rb"\\u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}|(?P<lone>\\u[dD][89a-fA-F][0-9a-fA-F]{2})|\\.",
    re.DOTALL,
)
_BRACKET_OR_STRING = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*"|[\[{]|[\]}]', re.DOTALL)
# Far below any reader's limit, far above what Allegro nests.
_DEEPEST = 100
_NOT_UTF8 = re.compile("[\udc80-\udcff]")
_decode = msgspec.json.Decoder().decode
_encode = msgspec.json.Encoder().encode


def readable(raw: bytes) -> bytes:
    """The same text, as long, with U+FFFD for each lone surrogate and `?` for each byte that is not UTF-8."""
    try:
        raw.decode()
    except UnicodeDecodeError:
        raw = _NOT_UTF8.sub("?", raw.decode("utf-8", "surrogateescape")).encode()
    return _ESCAPE.sub(lambda found: b"\\ufffd" if found["lone"] else found[0], raw)


def shallow(raw: bytes) -> bytes:
    """The same text, as long, with `0` and spaces for whatever is nested too deep."""
    text = bytearray(raw)
    depth = start = 0
    for token in _BRACKET_OR_STRING.finditer(raw):
        match token[0]:
            case b"[" | b"{":
                depth += 1
                if depth == _DEEPEST:
                    start = token.start()
            case b"]" | b"}":
                if depth == _DEEPEST:
                    text[start : token.end()] = b"0".ljust(token.end() - start)
                depth -= 1
    return bytes(text)


def originals(raw: bytes, stand_in: bytes, parts: Iterable[msgspec.Raw]) -> Iterator[bytes]:
    """The parts of `stand_in`, in the order in which they stand there, as they are in `raw`."""
    end = 0
    for part in parts:
        text = bytes(part)
        start = stand_in.index(text, end)
        end = start + len(text)
        yield raw[start:end]


def may_lose_a_field(raw: bytes) -> bool:
    """Whether a reader that keeps the last of equal names in an object loses something of this document.

    RFC 8259 (4) leaves it open what such an object means. True also where the document cannot be read.
    """
    # The quick way for what Allegro sends: written again, a document is what it was unless it has spaces, escapes, odd
    # numbers, or fields twice.
    with suppress(ValueError, RecursionError):
        if _encode(_decode(raw)) == raw:
            return False
    try:
        return _has_a_field_twice(raw)
    except (ValueError, RecursionError):
        return True


def _has_a_field_twice(raw: bytes) -> bool:
    found = False

    def fields(pairs: Sequence[tuple[str, Any]]) -> None:
        nonlocal found
        found = found or len({name for name, _ in pairs}) < len(pairs)

    json.loads(raw, object_pairs_hook=fields)
    return found
