"""Everything the enricher reads from its environment, and nothing more."""

from pydantic import Field

from shared.settings import (
    AllegroSettings,
    DatabaseSettings,
    EncryptionSettings,
    KafkaSettings,
    ServiceSettings,
    SyncSettings,
)


class EnricherSettings(
    DatabaseSettings, KafkaSettings, AllegroSettings, EncryptionSettings, SyncSettings, ServiceSettings
):
    enricher_http_host: str = Field(default="127.0.0.1", description="where /livez, /readyz and /metrics are served")
    enricher_http_port: int = Field(default=8102, ge=0, le=65535)
    enricher_lane_records: int = Field(
        default=500, ge=1, le=5000, description="most records of one token that are merged into looks at a time"
    )
    enricher_detail_concurrency: int = Field(
        default=8, ge=1, le=100, description="single fetches of one token at the same time"
    )
    enricher_walks: int = Field(default=16, ge=1, le=500, description="bulk loads at the same time in one process")
