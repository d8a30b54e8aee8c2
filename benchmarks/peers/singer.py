"""The tap piped into `meltanolabs-target-postgres`, as Singer is run; both are children of this process."""

import json
import os
import subprocess
import sys
from pathlib import Path

from job import Job, Spent, Stopwatch

_TAP = str(Path(__file__).with_name("singer_tap.py"))
_TARGET = str(Path(sys.executable).with_name("target-postgres"))


def main() -> None:
    job = Job.read()
    folder = Path(sys.argv[1]).parent
    config = folder / "target.json"
    config.write_text(
        json.dumps(
            {
                "sqlalchemy_url": job.database.replace("postgresql://", "postgresql+psycopg://"),
                "default_target_schema": "peer",
                "use_copy": True,
                "add_record_metadata": False,
                "activate_version": False,
                "batch_size_rows": 5000,
            }
        )
    )
    imports = _imports()
    watch = Stopwatch()
    tap = [sys.executable, _TAP, sys.argv[1]]
    target = [_TARGET, "--config", str(config)]
    with subprocess.Popen(tap, stdout=subprocess.PIPE) as source:  # noqa: S603 - our own commands
        subprocess.run(target, stdin=source.stdout, stdout=sys.stderr, check=True, env=os.environ)  # noqa: S603
    if source.returncode:
        sys.exit(source.returncode)
    watch.report(less=imports)


def _imports() -> Spent:
    """What both programs take to be there, at the same time as in the run itself; the second time, from warm files."""
    for _ in range(2):
        watch = Stopwatch()
        commands = ([sys.executable, _TAP, sys.argv[1], "--only-import"], [_TARGET, "--version"])
        for process in [subprocess.Popen(command, stdout=sys.stderr) for command in commands]:  # noqa: S603 - our own
            if process.wait():
                sys.exit(process.returncode)
        spent = watch.read()
    return spent


if __name__ == "__main__":
    main()
