"""Hypothesis strategies that spoil JSON: first a document's values, then its bytes."""

import json
from collections.abc import Iterator
from typing import Any

from hypothesis import strategies as st

_LONG_NUMBER = "9" * 5_000
# What stands where something else was expected, as JSON text.
_SURPRISES = (
    *("null", "true", "false", "0", "-1", '""', "[]", "{}", '"x"', "1.5", '"\\u0000"', '"a\\u0000b"', '"\\ud800"'),
    *("1e400", "-1e400", "1e-400", "18446744073709551616", _LONG_NUMBER, f'"{_LONG_NUMBER}"', '"9223372036854775808"'),
    *('"NaN"', '"Infinity"', '"-0"', '"٣"', '"9999-12-31T23:59:59+00:00"', '"0001-01-01T00:00:00+14:00"'),
    *("[" * 200 + "]" * 200, '{"a":' * 200 + "1" + "}" * 200, "[" * 20_000 + "]" * 20_000, '"' + "x" * 100_000 + '"'),
)
_MARK = "\x01"


def _places(value: Any) -> list[tuple[Any, Any]]:
    """Every container with a key or an index of it."""
    if isinstance(value, dict):
        return [(value, key) for key in value] + [place for inner in value.values() for place in _places(inner)]
    if isinstance(value, list):
        return [(value, index) for index in range(len(value))] + [place for inner in value for place in _places(inner)]
    return []


@st.composite
def spoiled_values(draw: st.DrawFn, document: Any) -> bytes:
    """The document with up to three values exchanged, removed or doubled."""
    spoiled = json.loads(json.dumps(document))
    texts: list[str] = []
    for _ in range(draw(st.integers(1, 3))):
        places = _places(spoiled)
        if not places:
            break
        container, key = draw(st.sampled_from(places))
        match draw(st.sampled_from(("exchange", "remove", "double"))):
            case "exchange":
                texts.append(draw(st.sampled_from(_SURPRISES)))
                container[key] = f"{_MARK}{len(texts) - 1}{_MARK}"
            case "remove":
                del container[key]
            case _ if isinstance(container, dict):
                # A key that occurs twice, once with another value.
                texts.append(f'1,"{key}":{draw(st.sampled_from(_SURPRISES))}')
                container[key] = f"{_MARK}{len(texts) - 1}{_MARK}"
            case _:
                container.append(container[key])
    encoded = json.dumps(spoiled)
    for number, text in enumerate(texts):
        encoded = encoded.replace(f'"\\u0001{number}\\u0001"', text)
    return encoded.encode("utf-8", "surrogatepass")


def every_surprise(document: Any) -> Iterator[bytes]:
    """The document with each of its values in turn exchanged for each surprise."""
    for number in range(len(_places(document))):
        for surprise in _SURPRISES:
            spoiled = json.loads(json.dumps(document))
            container, key = _places(spoiled)[number]
            container[key] = f"{_MARK}0{_MARK}"
            yield json.dumps(spoiled).replace('"\\u00010\\u0001"', surprise).encode()


@st.composite
def spoiled_bytes(draw: st.DrawFn, body: bytes) -> bytes:
    """The bytes cut off, or with a few of them exchanged or put in."""
    match draw(st.sampled_from(("cut", "exchange", "insert", "nothing", "wrap"))):
        case "cut":
            return body[: draw(st.integers(0, len(body)))]
        case "exchange" if body:
            at = draw(st.integers(0, len(body) - 1))
            return body[:at] + draw(st.binary(min_size=1, max_size=4)) + body[at + 1 :]
        case "insert":
            at = draw(st.integers(0, len(body)))
            junk = st.sampled_from((b"\xff", b"\xed\xa0\x80", b"\x00", b"\xef\xbb\xbf", b"{", b"]", b'"', b"\\u0000"))
            return body[:at] + draw(junk) + body[at:]
        case "wrap":
            return draw(st.sampled_from((b"[%b]", b"<html>%b</html>", b"%b%b"))).replace(b"%b", body)
        case _:
            return body


@st.composite
def spoiled(draw: st.DrawFn, document: Any) -> bytes:
    """A document that was JSON once, and mostly still is."""
    return draw(spoiled_bytes(draw(spoiled_values(document))))
