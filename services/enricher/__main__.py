"""Run the enricher: `python -m services.enricher`."""

from services.enricher.app import build_app
from services.enricher.publish import SERVICE
from services.enricher.settings import EnricherSettings
from shared.service import run

# Its tasks and their frames refer to each other, and to what they hold: the memory of a backlog waits for the search
# (`make bench-scale`: 154 MiB after 100,000 objects).
_NEW_OBJECTS = 20_000

if __name__ == "__main__":
    run(SERVICE, EnricherSettings, build_app, new_objects=_NEW_OBJECTS)
