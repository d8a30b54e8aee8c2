"""Run as a process: `count` real processes that wait for the starting gun (a line on stdin) and call Allegro once.

Prints one JSON line for each: the generation of the token it called with, or the error.
"""

import asyncio
import json
import os
import sys

from shared.allegro.http import open_http
from shared.database import open_pool
from tests.shared.allegro.builders import Way, settings


async def call(database_url: str, allegro_url: str, token_id: int, what: str) -> dict[str, object]:
    pool = await open_pool(database_url, service="caller", max_size=4)
    chosen = settings(allegro_url)
    async with open_http(chosen) as http:
        way = await Way(pool, http, chosen).synchronise()
        try:
            if what == "refresh":
                await way.vault.refresh(token_id, force=True)
            else:
                await way.client.me(token_id)
            return {"generation": (await way.vault.access_token(token_id)).generation}
        except Exception as error:  # noqa: BLE001 - told to the test
            return {"error": repr(error)}
        finally:
            await pool.close()


def main() -> None:
    database_url, allegro_url, token_id, what, count = sys.argv[1:]
    gun, trigger = os.pipe()
    children = []
    for _ in range(int(count)):
        child = os.fork()
        if child == 0:
            os.close(trigger)
            os.read(gun, 1)  # ends when the parent closes its side
            outcome = asyncio.run(call(database_url, allegro_url, int(token_id), what))
            os.write(1, json.dumps(outcome).encode() + b"\n")
            os._exit(0)
        children.append(child)
    print("ready", flush=True)  # noqa: T201 - the test reads it
    sys.stdin.readline()
    os.close(trigger)
    for child in children:
        os.waitpid(child, 0)


if __name__ == "__main__":
    main()
