"""Export of the API's description: `python -m services.api.openapi > docs/openapi.json`. A test compares the two."""

import json
import sys

from services.api.app import build_app
from services.api.settings import ApiSettings


def export() -> str:
    """The document as it stands in `docs/openapi.json`; needs no setting and opens nothing."""
    settings = ApiSettings.model_validate(
        {
            "database_url": "postgresql://localhost/none",
            "kafka_bootstrap_servers": "localhost:9092",
            "allegro_client_id": "none",
            "allegro_client_secret": "none",
            "allegro_user_agent": "None/1.0 (+https://example.org/none)",
            "encryption_keys": "none:" + "A" * 43 + "=",
        }
    )
    return json.dumps(build_app(settings).openapi(), indent=2, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    sys.stdout.write(export())
