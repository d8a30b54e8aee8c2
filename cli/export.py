"""`orders-backup orders export`: all orders into a file, gone on with where it broke off, and proved in the end.

What has come stands in `FILE.part`. It gets its name when it is complete and proved, so a file that has its name is one
that can be relied upon. Parquet cannot be gone on with inside a file: there it is a folder of files, each of which is
proved before the next one is asked for. An export of the same name that is there already stays until then, too.
"""

import os
import re
import shutil
import sys
import time
from collections.abc import Callable
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, BinaryIO

import msgspec
import typer
from rich.console import Console
from rich.filesize import decimal
from rich.progress import (
    BarColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from cli.client import DEFAULT_URL, Api, ApiUrl
from cli.client import part as path_part
from cli.errors import AwayError, RefusedError, files
from cli.output import progress_console, show_json
from cli.verify import summary
from shared.export.manifest import Manifest, UnreadableManifestError, from_record
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
_PART_NAME = re.compile(r"part-\d{5,}" + re.escape(PARQUET_SUFFIX))
# Larger than any manifest: it stands in the last record.
_TAIL_BYTES = 2**16

Gone = Annotated[
    bool | None,
    typer.Option("--gone/--not-gone", help="Only orders that Allegro no longer has, or only those that it has."),
]

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
    gone: Gone = None,
    compressed: Annotated[bool, typer.Option("--compressed", help="Compress on the way: for slow networks.")] = False,
    as_json: Annotated[
        bool,
        typer.Option("--json", help="Tell as JSON what was exported; on standard error if the orders go to the other."),
    ] = False,
    api_url: ApiUrl = DEFAULT_URL,
) -> None:
    """Export orders into a file; the same command goes on with one that broke off.

    An export that is there already is replaced, as soon as the new one is complete and proved.
    """
    asked = {
        "format": format_.value,
        "user_id": user_id or None,
        "status": status,
        "fulfillment_status": fulfillment_status,
        "bought_from": bought_from,
        "bought_to": bought_to,
        "updated_since": updated_since,
        "buyer_login": buyer_login,
        "gone": gone,
    }
    is_piped = output == _STANDARD_OUTPUT
    if not is_piped:
        _check_target(Path(output), format_)
    console = progress_console()
    with Api(api_url) as api, _bars(console) as bars:
        # Counted only for somebody who looks.
        expected = _expected(api, asked) if console.is_terminal else None
        download = _Download(api, asked, bars, expected=expected, compressed=compressed)
        with files("standard output" if is_piped else output):
            if is_piped:
                found = _into_output(download)
            elif format_ is Format.PARQUET:
                found = _into_folder(download, Path(output))
            else:
                found = _into_file(download, Path(output))
    if as_json:
        show_json(found, err=is_piped)
    elif not is_piped:
        console.print(f"{found['orders']} orders in {output}, proved complete", highlight=False, markup=False)


class _Download:
    """One export as it comes in."""

    def __init__(
        self, api: Api, asked: dict[str, Any], bars: Progress, *, expected: int | None, compressed: bool
    ) -> None:
        self._api = api
        self._asked = asked
        self._compressed = compressed
        self._bars = bars
        self._expected = expected
        self._bar = bars.add_task("export", total=expected, received=0)
        self._received = 0

    def into(self, file: BinaryIO, cursor: str | None, *, limit: int | None = None) -> bytes:
        """Write everything that comes, and return its end; raises AwayError where it breaks off."""
        orders = 0 if cursor is None else ExportPosition.decode(cursor).orders
        counts_lines = self._asked["format"] != Format.PARQUET.value
        tail = b""
        self._tell(orders)
        with self._api.stream(_PATH, compressed=self._compressed, cursor=cursor, limit=limit, **self._asked) as pieces:
            for piece in pieces:
                file.write(piece)
                tail = (tail + piece)[-_TAIL_BYTES:]
                orders += piece.count(b"\n") if counts_lines else 0
                self._received += len(piece)
                self._tell(orders)
        return tail

    def prove(self, path: Path) -> Proof:
        """Read it all again. Raises DamagedExportError."""
        size = path.stat().st_size
        bar = self._bars.add_task("proof", total=size)
        proof = prove_file(path, tell=lambda offset: self._bars.update(bar, completed=offset))
        self._bars.remove_task(bar)
        self._tell(proof.manifest.orders, is_exact=True)
        return proof

    def _tell(self, orders: int, *, is_exact: bool = False) -> None:
        # Lines are a little more than orders: the header and the manifest are lines, too.
        shown = orders if is_exact or self._expected is None else min(orders, self._expected)
        self._bars.update(self._bar, completed=shown, received=self._received)


def _check_target(path: Path, format_: Format) -> None:
    """Whether the name can be given in the end: told now, not after the last order has come. Raises RefusedError."""
    if format_ is not Format.PARQUET:
        if path.exists() and not path.is_file():
            raise RefusedError(f"{path} is no file: give a name that is free, or that of an export")
        return
    for place in (path, _aside(path)):
        if place.exists() and not _is_an_export(place):
            raise RefusedError(
                f"{place} is something else than an export: give a name that is free, or an empty folder"
            )


def _is_an_export(path: Path) -> bool:
    """Whether it is a folder with parts of an export and nothing else, which may be replaced by a newer one."""
    with files(path):
        return (
            path.is_dir() and not path.is_symlink() and all(_PART_NAME.fullmatch(file.name) for file in path.iterdir())
        )


def _expected(api: Api, asked: dict[str, Any]) -> int | None:
    """How many orders will come, by the statistics; None where filters are asked for that they do not know."""
    if any(asked[name] is not None for name in ("fulfillment_status", "updated_since", "buyer_login", "gone")):
        return None
    times = {name: asked[name] for name in ("bought_from", "bought_to")}
    paths = [f"/statistics/{path_part(user)}" for user in dict.fromkeys(asked["user_id"] or ())] or ["/statistics"]
    try:
        found = [api.get(path, **times) for path in paths]
    except (RefusedError, AwayError):
        # Whatever is wrong, the export itself will say it, in better words.
        return None
    status = asked["status"]
    rows = found if status is None else [row for one in found for row in one["by_status"] if row["status"] == status]
    orders: list[int] = [row["orders"] for row in rows]
    return sum(orders)


def _into_output(download: _Download) -> dict[str, Any]:
    """Nothing is proved here: only who has the orders can do that."""
    tail = download.into(sys.stdout.buffer, None)
    sys.stdout.buffer.flush()
    manifest = _manifest_in(tail)
    told = ("orders", "filters", "finished_at", "digest", "next")
    said = {} if manifest is None else msgspec.to_builtins(manifest)
    return {"file": _STANDARD_OUTPUT, "complete": None, **{name: said.get(name) for name in told}}


def _manifest_in(tail: bytes) -> Manifest | None:
    """The last record, of a format that has lines."""
    lines = tail.splitlines(keepends=True)
    try:
        return from_record(lines[-1]) if lines else None
    except UnreadableManifestError:
        return None


def _into_file(download: _Download, path: Path) -> dict[str, Any]:
    part = path.with_name(path.name + ".part")
    _fetch(download, part, _keep_what_is_whole)
    proof = download.prove(part)
    if not proof.is_complete:
        raise DamagedExportError(f"{part} is a part of an export only")
    part.replace(path)
    return summary(path, proof)


def _into_folder(download: _Download, path: Path) -> dict[str, Any]:
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
    _replace_folder(path, folder)
    return summary(path, whole)


def _replace_folder(path: Path, new: Path) -> None:
    """Give the new folder its name; an export that has it is removed, if it is one still: hours may have passed."""
    _check_target(path, Format.PARQUET)
    # Aside first, as a folder cannot be replaced at once: the name is without an export for a moment only.
    aside = _aside(path)
    if aside.exists():
        shutil.rmtree(aside)
    if path.exists():
        path.replace(aside)
    new.replace(path)
    if aside.exists():
        shutil.rmtree(aside)


def _aside(path: Path) -> Path:
    return path.with_name(path.name + ".replaced")


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


class _Amount(ProgressColumn):
    """How much of how much, and how fast: of orders what has come, of a proof the bytes that were read."""

    def render(self, task: Task) -> Text:
        received = task.fields.get("received")
        if received is None:
            return Text(f"{decimal(int(task.completed))} of {decimal(int(task.total or 0))}")
        of = "" if task.total is None else f" of {int(task.total):,}"
        speed = task.finished_speed or task.speed
        rate = "" if speed is None else f", {int(speed):,}/s"
        return Text(f"{int(task.completed):,}{of} orders{rate}, {decimal(received)}")


def _bars(console: Console) -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        _Amount(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=console,
        disable=not console.is_terminal,
    )
