"""`python -m devstack demo|up|chaos`: see `make help`."""

import signal
import sys

from rich.console import Console

from devstack.errors import DevstackError

_LOG_WIDTH = 160


def main(arguments: list[str]) -> int:
    """Run one of the commands; an expected failure is one message and exit code 1."""
    # A log has room: the terminal's width is a guess there, and narrow tables cannot be read.
    console = Console(width=None if sys.stdout.isatty() else _LOG_WIDTH)
    command, rest = (arguments[0], arguments[1:]) if arguments else ("", [])
    try:
        if command == "demo":
            from devstack import demo

            signal.signal(signal.SIGTERM, signal.default_int_handler)  # stop everything, as Ctrl-C does
            return demo.run(demo.plan_from(rest), console)
        if command == "up":
            from devstack import up

            return up.run(up.plan_from(rest), console)
        if command == "chaos":
            from devstack.chaos import run as chaos

            signal.signal(signal.SIGTERM, signal.default_int_handler)
            return chaos.run(chaos.options_from(rest), console)
    except DevstackError as error:
        console.print(str(error), style="red", markup=False, highlight=False)
        return 1
    except KeyboardInterrupt:
        return 130
    console.print("usage: python -m devstack demo|up|chaos [--help]")
    return 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
