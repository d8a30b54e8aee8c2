"""Run the API: `python -m services.api`."""

from services.api.app import SERVICE, build_app
from services.api.settings import ApiSettings
from shared.service import run

if __name__ == "__main__":
    run(SERVICE, ApiSettings, build_app)
