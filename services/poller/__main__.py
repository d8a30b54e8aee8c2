"""Run the poller: `python -m services.poller`."""

from services.poller.app import SERVICE, build_app
from services.poller.settings import PollerSettings
from shared.service import run

if __name__ == "__main__":
    run(SERVICE, PollerSettings, build_app)
