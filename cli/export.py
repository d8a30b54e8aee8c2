"""`orders-backup orders export`: all orders into a file, gone on with where it broke off, and proved in the end.

What has come stands in `FILE.part`. It gets its name when it is complete and proved, so a file that has its name is one
that can be relied upon. Parquet cannot be gone on with inside a file: there it is a folder of files, each of which is
proved before the next one is asked for.
"""

import os
import sys
import time
from collections.abc import Callable
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
from shared.export.proof import PARQUET_SUFFIX, joined, parts_in, prove_file
from shared.export.reading import DamagedExportError, Proof, last_cursor

_PATH = "/exports/orders"
_STANDARD_OUTPUT = "-"
# So often in a row it goes on without a single new order before it gives up.
_ATTEMPTS = 5
_PAUSE_SECONDS = 2.0
_OURS_ALONE = 0o600
# Of one Parquet file; what is lost when it breaks off.
_PART_ORDERS = 100_000

Keep = Callable[[BinaryIO], str | None]
"""Cuts off what is not whole, stands at the end, and says the cursor to go on with."""


class Format(StrEnum):
    """Forms of an export."""

    NDJSON = "ndjson"
    CSV = "csv"
    PARQUET = "parquet"


def export(
    output: Annotated[
        str, typer.Option("--output", "-o", help="The file, of Parquet the folder; - is standard output.")
    ],
    user_id: Annotated[list[str] | None, typer.Argument(help="Your own names for sellers; none: all of them.")] = None,
    format_: Annotated[
        Format, typer.Option("--format", help="csv is a table, the others are complete.")
    ] = Format.NDJSON,
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
        elif format_ is Format.PARQUET:
            _into_folder(download, Path(output))
        else:
            _into_file(download, Path(output))


class _Download:
    """One export as it comes in."""

    def __init__(self, api: Api, asked: dict[str, Any], bars: Progress, *, compressed: bool) -> None:
        self._api = api
        self._asked = asked
        self._compressed = compressed
        self._bars = bars
        self._bar: TaskID = bars.add_task("export", total=None, orders=0)

    def into(self, file: BinaryIO, cursor: str | None, *, limit: int | None = None) -> None:
        """Write everything that comes; raises AwayError where it breaks off."""
        orders = 0 if cursor is None else ExportPosition.decode(cursor).orders
        counts_lines = self._asked["format"] != Format.PARQUET.value
        with self._api.stream(_PATH, compressed=self._compressed, cursor=cursor, limit=limit, **self._asked) as pieces:
            for piece in pieces:
                file.write(piece)
                orders += piece.count(b"\n") if counts_lines else 0
                self._bars.update(self._bar, advance=len(piece), orders=orders)

    def prove(self, path: Path) -> Proof:
        """Read it all again. Raises DamagedExportError."""
        size = path.stat().st_size
        self._bars.update(self._bar, description="proof", completed=0, total=size)
        proof = prove_file(path, tell=lambda offset: self._bars.update(self._bar, completed=offset))
        self._bars.update(self._bar, completed=size, orders=proof.manifest.orders)
        return proof


def _into_file(download: _Download, path: Path) -> None:
    part = path.with_name(path.name + ".part")
    _fetch(download, part, _keep_what_is_whole)
    proof = download.prove(part)
    if not proof.is_complete:
        raise DamagedExportError(f"{part} is a part of an export only")
    part.replace(path)
    _say(proof.manifest.orders, path)


def _into_folder(download: _Download, path: Path) -> None:
    """Files of so many orders each; what is there already is proved again and gone on from."""
    folder = path.with_name(path.name + ".part")
    folder.mkdir(mode=_OURS_ALONE | 0o100, exist_ok=True)
    parts = parts_in(folder)
    proofs = [download.prove(part) for part in parts]
    while not proofs or joined(proofs).manifest.next is not None:
        file = folder / f"part-{len(proofs) + 1:05}{PARQUET_SUFFIX}"
        part = file.with_name(file.name + ".part")
        _fetch(download, part, _keep_nothing(proofs[-1].manifest.next if proofs else None), limit=_PART_ORDERS)
        proofs.append(download.prove(part))
        part.replace(file)
    whole = joined(proofs)
    if not whole.is_complete:
        raise DamagedExportError(f"{folder} holds a part of an export only")
    folder.replace(path)
    _say(whole.manifest.orders, path)


def _say(orders: int, path: Path) -> None:
    progress_console().print(f"{orders} orders in {path}, proved complete", highlight=False, markup=False)


def _fetch(download: _Download, part: Path, keep: Keep, *, limit: int | None = None) -> None:
    """All of it, gone on with after each break; raises AwayError if nothing more comes."""
    failures, reached = 0, -1
    while True:
        with _opened(part) as file:
            cursor = keep(file)
            begins_at = file.tell()
            try:
                download.into(file, cursor, limit=limit)
                os.fsync(file.fileno())
            except RefusedError as error:
                hint = "" if cursor is None else f"; to begin anew, remove {part if limit is None else part.parent}"
                raise RefusedError(f"{error}{hint}") from error
            except AwayError:
                failures = failures + 1 if begins_at <= reached else 1
                reached = begins_at
                if failures >= _ATTEMPTS:
                    raise
            else:
                return
        time.sleep(_PAUSE_SECONDS)


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


def _keep_nothing(cursor: str | None) -> Keep:
    """Begin anew at a cursor, every time."""

    def keep(file: BinaryIO) -> str | None:
        file.truncate(0)
        return cursor

    return keep


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
