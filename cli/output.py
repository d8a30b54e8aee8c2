"""What a command shows: tables for people, JSON for programs (`--json`)."""

import json
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

# A terminal obeys these, and buyers write what we show.
_CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")

AsJson = Annotated[bool, typer.Option("--json", help="JSON on standard output, for programs.")]


def progress_console() -> Console:
    """Where spinners, bars and advice go: standard output stays clean for what was asked for."""
    return Console(stderr=True)


def show_json(value: Any, *, err: bool = False) -> None:
    """One JSON document; `err`: where standard output has something else to hold."""
    (sys.stderr if err else sys.stdout).write(json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def show_line(value: Any) -> None:
    """One JSON document on one line, at once: for what goes on coming."""
    sys.stdout.write(json.dumps(value, ensure_ascii=False) + "\n")
    sys.stdout.flush()


def show_rows(rows: Iterable[bytes]) -> None:
    """One JSON array of rows that are JSON already, one a line."""
    sys.stdout.write("[")
    for number, row in enumerate(rows):
        sys.stdout.write((",\n" if number else "\n") + row.decode())
    sys.stdout.write("\n]\n")


def show_table(rows: Iterable[Mapping[str, Any]], columns: Sequence[str], *, empty: str) -> None:
    """One line a row; `columns` are fields of the API's answers."""
    table = Table(box=None, header_style="bold", pad_edge=False)
    for column in columns:
        table.add_column(column.replace("_", " "), overflow="fold")
    for row in rows:
        table.add_row(*(_cell(row.get(column)) for column in columns))
    if table.row_count:
        _console().print(table)
    else:
        typer.echo(empty)


def show_fields(fields: Mapping[str, Any], names: Sequence[str]) -> None:
    """One line a field."""
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    for name in names:
        table.add_row(name.replace("_", " "), _cell(fields.get(name)))
    _console().print(table)


def _console() -> Console:
    # As wide as it takes where nobody looks: a pipe must not get cut lines.
    return Console(width=None if sys.stdout.isatty() else 250, highlight=False, markup=False)


def _cell(value: Any) -> str:
    match value:
        case None:
            return "-"
        case list():
            return _harmless(", ".join(str(item) for item in value))
        case str() if value.endswith("Z") and "T" in value:
            return _local(value)
        case _:
            return _harmless(str(value))


def _harmless(text: str) -> str:
    """The text with control characters spelled out, but for line ends and tabs."""
    return _CONTROLS.sub(lambda found: f"\\x{ord(found[0]):02x}", text)


def _local(moment: str) -> str:
    """A moment of the API in this machine's time zone; anything else as it is."""
    try:
        return datetime.fromisoformat(moment).astimezone().strftime("%Y-%m-%d %H:%M:%S")
    except ValueError:
        return moment
