"""Everything the poller reads from its environment, and nothing more."""

from pydantic import Field

from shared.settings import (
    AllegroSettings,
    DatabaseSettings,
    EncryptionSettings,
    KafkaSettings,
    LogSettings,
    SyncSettings,
)


class PollerSettings(DatabaseSettings, KafkaSettings, AllegroSettings, EncryptionSettings, SyncSettings, LogSettings):
    poller_http_host: str = Field(default="127.0.0.1", description="where /livez, /readyz and /metrics are served")
    poller_http_port: int = Field(default=8101, ge=0, le=65535)
    poller_concurrency: int = Field(default=50, ge=1, le=1000, description="journals read at the same time")
    poller_lease_seconds: float = Field(
        default=180.0, ge=10, description="how long claimed work is left alone: longer than the slowest turn"
    )
    poller_max_pages: int = Field(default=10, ge=1, le=1000, description="journal pages of one token in one turn")
    poller_overlap_seconds: float = Field(
        default=120.0, ge=0, description="of the journal, read again at every turn for lines that came late"
    )
    poller_redelivery_seconds: float = Field(
        default=60.0, ge=5, description="published events that are not stored by then are read and published again"
    )
    poller_window_redelivery_seconds: float = Field(
        default=120.0, ge=5, description="a bulk load without progress for so long is sent out again"
    )
