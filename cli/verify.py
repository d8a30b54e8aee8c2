"""`orders-backup verify`: prove that an exported file is complete and unchanged."""

from pathlib import Path
from typing import Annotated

import typer

from cli.errors import RefusedError
from cli.output import AsJson, show_fields, show_json
from shared.export.proof import prove_path

_SHOWN = ("file", "complete", "orders", "orders_in_file", "filters", "finished_at", "digest", "next")


def verify(
    file: Annotated[Path, typer.Argument(exists=True, help="What `orders export` wrote; of Parquet, the folder.")],
    as_json: AsJson = False,
) -> None:
    """Prove that an export holds every order it should, unchanged; it needs neither the API nor a network.

    Ends with 0 only if the file is a complete export.
    """
    proof = prove_path(file)
    manifest = proof.manifest
    found = {
        "file": str(file),
        "complete": proof.is_complete,
        "orders": manifest.orders,
        "orders_in_file": proof.orders_in_file,
        "filters": manifest.filters,
        "finished_at": manifest.finished_at.isoformat(),
        "digest": manifest.digest,
        "next": manifest.next,
    }
    if as_json:
        show_json(found)
    else:
        show_fields(found, _SHOWN)
    if not proof.is_complete:
        raise RefusedError(
            f"{file} is unchanged, but only a part: it begins after {proof.begins_after} orders"
            + ("" if manifest.next is None else ", and more follow")
        )
