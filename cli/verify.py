"""`orders-backup verify`: prove that an exported file is complete and unchanged."""

from pathlib import Path
from typing import Annotated, Any

import typer

from cli.errors import RefusedError, files
from cli.output import AsJson, show_fields, show_json
from shared.export.proof import prove_path
from shared.export.reading import Proof

_SHOWN = ("file", "complete", "orders", "orders_in_file", "filters", "finished_at", "digest", "next")


def verify(
    file: Annotated[Path, typer.Argument(exists=True, help="What `orders export` wrote; of Parquet, the folder.")],
    as_json: AsJson = False,
) -> None:
    """Prove that an export holds every order it should, unchanged; it needs neither the API nor a network.

    Ends with 0 only if the file is a complete export.
    """
    with files(file):
        proof = prove_path(file)
    found = summary(file, proof)
    if as_json:
        show_json(found)
    else:
        show_fields(found, _SHOWN)
    if not proof.is_complete:
        raise RefusedError(
            f"{file} is unchanged, but only a part: it begins after {proof.begins_after} orders"
            + ("" if proof.manifest.next is None else ", and more follow")
        )


def summary(file: Path, proof: Proof) -> dict[str, Any]:
    """What a proof says of a file, in JSON's words."""
    manifest = proof.manifest
    return {
        "file": str(file),
        "complete": proof.is_complete,
        "orders": manifest.orders,
        "orders_in_file": proof.orders_in_file,
        "filters": manifest.filters,
        "finished_at": manifest.finished_at.isoformat(),
        "digest": manifest.digest,
        "next": manifest.next,
    }
