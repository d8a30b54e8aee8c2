"""Proving an export that lies in files: one of any format, or a folder with the parts of a Parquet export."""

from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path

from shared.export.reading import DamagedExportError, Proof, prove

PARQUET_SUFFIX = ".parquet"
_PARQUET_MAGIC = b"PAR1"


def _silent(_offset: int) -> None:
    """Nobody wants to hear how far it is."""


def prove_path(path: Path, *, tell: Callable[[int], None] = _silent) -> Proof:
    """Prove that a file, or all parts in a folder, hold what was exported; raises DamagedExportError.

    `tell` hears from time to time how far the file in hand has been read, in bytes.
    """
    if path.is_dir():
        return joined(prove_file(part, tell=tell) for part in parts_in(path))
    return prove_file(path, tell=tell)


def prove_file(path: Path, *, tell: Callable[[int], None] = _silent) -> Proof:
    """The same for one file."""
    with path.open("rb") as file:
        is_parquet = file.read(len(_PARQUET_MAGIC)) == _PARQUET_MAGIC
        file.seek(0)
        if not is_parquet:
            return prove(file, tell=tell)
        from shared.export.parquet import prove_parquet

        return prove_parquet(file, tell=tell)


def parts_in(folder: Path) -> list[Path]:
    """The whole parts of a Parquet export, in their order."""
    return sorted(folder.glob(f"*{PARQUET_SUFFIX}"))


def joined(proofs: Iterable[Proof]) -> Proof:
    """Parts as one; raises DamagedExportError if one is missing, comes twice, or is of another export."""
    whole: Proof | None = None
    for proof in proofs:
        if whole is None:
            whole = proof
        elif proof.begins_at is None or proof.begins_at != whole.manifest.next:
            raise DamagedExportError(
                f"a part begins after {proof.begins_after} orders, and the one before it does not lead there"
            )
        else:
            whole = replace(whole, manifest=proof.manifest, orders_in_file=whole.orders_in_file + proof.orders_in_file)
    if whole is None:
        raise DamagedExportError("there is no part of an export")
    return whole
