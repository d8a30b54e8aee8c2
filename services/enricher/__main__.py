"""Run the enricher: `python -m services.enricher`."""

from services.enricher.app import build_app
from services.enricher.publish import SERVICE
from services.enricher.settings import EnricherSettings
from shared.service import run

if __name__ == "__main__":
    run(SERVICE, EnricherSettings, build_app)
