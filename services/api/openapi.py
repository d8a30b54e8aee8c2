"""Export of the API's description: `python -m services.api.openapi > docs/openapi.json`. A test compares the two."""

import json
import sys

from services.api.app import build_app
from services.api.settings import ApiSettings


def export_settings() -> ApiSettings:
    """Enough to put the application together, and to reach nothing."""
    return ApiSettings.model_validate(
        {
            "database_url": "postgresql://localhost/none",
            "kafka_bootstrap_servers": "localhost:9092",
            "allegro_client_id": "none",
            "allegro_client_secret": "none",
            "allegro_user_agent": "None/1.0 (+https://example.org/none)",
            "encryption_keys": "none:" + "A" * 43 + "=",
        }
    )


def export() -> str:
    """The document as it stands in `docs/openapi.json`; needs no setting and opens nothing."""
    return json.dumps(build_app(export_settings()).openapi(), indent=2, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    sys.stdout.write(export())
