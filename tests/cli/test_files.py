"""Files of this machine: what is wrong with them is told by name, at once, and not as something to wait for."""

import errno
import os
import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import pytest

from cli.app import main
from cli.errors import is_of_a_file
from shared.export.manifest import FORMAT, Manifest, as_line

_ROOT = Path(__file__).parents[2]
# Nobody listens there: who asks the API first ends with another code.
_NO_API = ("--api-url", "http://127.0.0.1:1")


def _end_of(*arguments: str, monkeypatch: pytest.MonkeyPatch) -> int | str | None:
    monkeypatch.setattr(sys, "argv", ["orders-backup", *arguments])
    with pytest.raises(SystemExit) as end:
        main()
    return end.value.code


@pytest.mark.parametrize(
    ("error", "is_file"),
    [
        pytest.param(FileNotFoundError(errno.ENOENT, "No such file", "orders.ndjson"), True, id="named"),
        pytest.param(OSError(errno.ENOSPC, "No space left on device"), True, id="disk-full"),
        pytest.param(FileNotFoundError(errno.ENOENT, "No such file"), False, id="socket-of-a-server"),
        pytest.param(ConnectionRefusedError(errno.ECONNREFUSED, "Connect call failed"), False, id="refused"),
        pytest.param(TimeoutError(), False, id="silence"),
        pytest.param(ValueError(), False, id="another"),
    ],
)
def test_errors_of_files_are_told_from_those_of_connections(error: Exception, is_file: bool) -> None:
    assert is_of_a_file(error) is is_file


@pytest.mark.parametrize("form", ["ndjson", "parquet"])
def test_an_export_into_a_folder_that_is_not_there_has_failed(
    tmp_path: Path, form: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / "nowhere" / "orders"

    code = _end_of("orders", "export", "--format", form, "-o", str(target), *_NO_API, monkeypatch=monkeypatch)

    assert code == 1
    assert capsys.readouterr().err == f"orders-backup: {target}.part: No such file or directory\n"


@pytest.mark.parametrize(
    ("form", "make"),
    [
        pytest.param("ndjson", Path.mkdir, id="a-file-onto-a-folder"),
        pytest.param("csv", Path.mkdir, id="a-table-onto-a-folder"),
        pytest.param("parquet", Path.touch, id="a-folder-onto-a-file"),
        pytest.param(
            "parquet", lambda path: (path / "photos").mkdir(parents=True), id="a-folder-onto-one-of-something-else"
        ),
        pytest.param("parquet", lambda path: path.symlink_to(path.parent), id="a-folder-onto-a-link"),
        pytest.param("parquet", lambda path: Path(f"{path}.replaced").touch(), id="no-room-to-put-the-old-one-aside"),
    ],
)
def test_a_name_that_cannot_be_given_is_refused_before_anything_is_asked_for(
    tmp_path: Path,
    form: str,
    make: Callable[[Path], object],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    target = tmp_path / "orders"
    make(target)

    code = _end_of("orders", "export", "--format", form, "-o", str(target), *_NO_API, monkeypatch=monkeypatch)

    said = capsys.readouterr().err
    assert code == 1
    assert str(target) in said
    assert "give a name" in said


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="Linux has a device that is full")
def test_a_full_disk_behind_standard_output_has_failed(tmp_path: Path) -> None:
    file = tmp_path / "orders.ndjson"
    nothing = Manifest(format=FORMAT, orders=0, digest="0" * 64, finished_at=datetime.now(UTC), filters={}, next=None)
    file.write_bytes(as_line(nothing))

    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "cli", "verify", str(file), "--json"],
            env={**os.environ, "PYTHONPATH": str(_ROOT)},
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )

    assert (done.returncode, len(done.stderr.splitlines())) == (1, 1)
    assert "No space left on device" in done.stderr
