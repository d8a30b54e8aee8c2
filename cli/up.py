"""`orders-backup up`: the whole product on this machine, for a first look and for development."""

import os
import sys
from importlib.util import find_spec
from typing import Annotated

import typer

from cli.errors import RefusedError

ANY_ARGUMENTS = {"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []}


def up(
    arguments: typer.Context,
    as_json: Annotated[
        bool, typer.Option("--json", help="One line of JSON on standard output, once it is ready.")
    ] = False,
) -> None:
    """Run everything on this machine and stay: PostgreSQL, a broker, a simulated Allegro unless .env names an app.

    Ctrl-C stops it; the data stays in .data/ (or DATA_DIR). The same as `make up`; `up --help` lists the options.
    """
    if find_spec("devstack") is None:
        raise RefusedError("this installation has no servers of its own: use deploy/compose.yaml, or the repository")
    options = [*arguments.args, *(["--json"] if as_json else [])]
    # In place of this process, so that signals reach it: it starts and stops servers.
    os.execv(sys.executable, [sys.executable, "-m", "devstack", "up", *options])  # noqa: S606 - our own module
