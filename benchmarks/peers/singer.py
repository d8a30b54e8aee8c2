"""The tap piped into `meltanolabs-target-postgres`, as Singer is run; both are children of this process."""

import json
import os
import subprocess
import sys
from pathlib import Path

from job import Job, Stopwatch


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
    watch = Stopwatch()
    tap = [sys.executable, str(Path(__file__).with_name("singer_tap.py")), sys.argv[1]]
    target = [str(Path(sys.executable).with_name("target-postgres")), "--config", str(config)]
    with subprocess.Popen(tap, stdout=subprocess.PIPE) as source:  # noqa: S603 - our own commands
        subprocess.run(target, stdin=source.stdout, stdout=sys.stderr, check=True, env=os.environ)  # noqa: S603
    if source.returncode:
        sys.exit(source.returncode)
    watch.report()


if __name__ == "__main__":
    main()
