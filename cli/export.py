"""`orders-backup orders export`: all orders into a file, gone on with where it broke off, and proved in the end.

What has come stands in `FILE.part`. It gets its name when it is complete and proved, so a file that has its name is one
that can be relied upon.
"""

import os
import sys
import time
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, BinaryIO

import typer
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TransferSpeedColumn,
)

from cli.client import DEFAULT_URL, Api, ApiUrl
from cli.errors import AwayError, RefusedError
from cli.output import progress_console
from shared.export.position import ExportPosition
from shared.export.reading import DamagedExportError, last_cursor, prove

_PATH = "/exports/orders"
_STANDARD_OUTPUT = "-"
# So often in a row it goes on without a single new order before it gives up.
_ATTEMPTS = 5
_PAUSE_SECONDS = 2.0
_OURS_ALONE = 0o600


class Format(StrEnum):
    """Forms of an export."""

    NDJSON = "ndjson"
    CSV = "csv"


def export(
    output: Annotated[str, typer.Option("--output", "-o", help="The file; - is standard output.")],
    user_id: Annotated[list[str] | None, typer.Argument(help="Your own names for sellers; none: all of them.")] = None,
    format_: Annotated[Format, typer.Option("--format", help="ndjson: complete; csv: a table.")] = Format.NDJSON,
    status: Annotated[str | None, typer.Option(help="As Allegro names it: READY_FOR_PROCESSING.")] = None,
    fulfillment_status: Annotated[str | None, typer.Option(help="As Allegro names it: SENT.")] = None,
    bought_from: Annotated[str | None, typer.Option(help="Bought at or after: 2026-01-01T00:00:00Z.")] = None,
    bought_to: Annotated[str | None, typer.Option(help="Bought before.")] = None,
    updated_since: Annotated[str | None, typer.Option(help="Our copy changed at or after.")] = None,
    buyer_login: Annotated[str | None, typer.Option(help="Of this buyer.")] = None,
    compressed: Annotated[bool, typer.Option("--compressed", help="Compress on the way: for slow networks.")] = False,
    api_url: ApiUrl = DEFAULT_URL,
) -> None:
    """Export orders into a file; the same command goes on with one that broke off."""
    asked = {
        "format": format_.value,
        "user_id": user_id or None,
        "status": status,
        "fulfillment_status": fulfillment_status,
        "bought_from": bought_from,
        "bought_to": bought_to,
        "updated_since": updated_since,
        "buyer_login": buyer_login,
    }
    with Api(api_url) as api, _bars() as bars:
        download = _Download(api, asked, bars, compressed=compressed)
        if output == _STANDARD_OUTPUT:
            download.into(sys.stdout.buffer, None)
            return
        _into_file(download, Path(output))


class _Download:
    """One export as it comes in."""

    def __init__(self, api: Api, asked: dict[str, Any], bars: Progress, *, compressed: bool) -> None:
        self._api = api
        self._asked = asked
        self._compressed = compressed
        self._bars = bars
        self._bar: TaskID = bars.add_task("export", total=None, orders=0)

    def into(self, file: BinaryIO, cursor: str | None) -> None:
        """Write everything that comes; raises AwayError where it breaks off."""
        orders = 0 if cursor is None else ExportPosition.decode(cursor).orders
        with self._api.stream(_PATH, compressed=self._compressed, cursor=cursor, **self._asked) as pieces:
            for piece in pieces:
                file.write(piece)
                orders += piece.count(b"\n")
                self._bars.update(self._bar, advance=len(piece), orders=orders)

    def prove(self, path: Path) -> int:
        """Read it all again; returns the number of orders. Raises DamagedExportError."""
        size = path.stat().st_size
        self._bars.update(self._bar, description="proof", completed=0, total=size)
        with path.open("rb") as file:
            proof = prove(file, tell=lambda offset: self._bars.update(self._bar, completed=offset))
        self._bars.update(self._bar, completed=size, orders=proof.manifest.orders)
        if not proof.is_complete:
            raise DamagedExportError(f"{path} is a part of an export only")
        return proof.manifest.orders


def _into_file(download: _Download, path: Path) -> None:
    part = path.with_name(path.name + ".part")
    failures, reached = 0, -1
    while True:
        with _opened(part) as file:
            cursor = _keep_what_is_whole(file)
            begins_at = file.tell()
            try:
                download.into(file, cursor)
                os.fsync(file.fileno())
                break
            except RefusedError as error:
                hint = "" if cursor is None else f"; to begin anew, remove {part}"
                raise RefusedError(f"{error}{hint}") from error
            except AwayError:
                failures = failures + 1 if begins_at <= reached else 1
                reached = begins_at
                if failures >= _ATTEMPTS:
                    raise
        time.sleep(_PAUSE_SECONDS)
    orders = download.prove(part)
    part.replace(path)
    progress_console().print(f"{orders} orders in {path}, proved complete", highlight=False, markup=False)


def _opened(part: Path) -> BinaryIO:
    """Orders are personal data: nobody else may read them."""
    return os.fdopen(os.open(part, os.O_RDWR | os.O_CREAT, _OURS_ALONE), "r+b")


def _keep_what_is_whole(file: BinaryIO) -> str | None:
    """Cut off what came after the last cursor, and return that."""
    file.seek(0)
    found = last_cursor(file)
    file.truncate(0 if found is None else found.offset)
    file.seek(0, os.SEEK_END)
    return None if found is None else found.cursor


def _bars() -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.fields[orders]} orders"),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeElapsedColumn(),
        console=progress_console(),
    )
