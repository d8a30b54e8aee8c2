"""Everything the poller reads from its environment, and nothing more."""

from pydantic import Field

from shared.settings import (
    AllegroSettings,
    DatabaseSettings,
    EncryptionSettings,
    KafkaSettings,
    ServiceSettings,
    SyncSettings,
)


class PollerSettings(
    DatabaseSettings, KafkaSettings, AllegroSettings, EncryptionSettings, SyncSettings, ServiceSettings
):
    poller_http_host: str = Field(default="127.0.0.1", description="where /livez, /readyz and /metrics are served")
    poller_http_port: int = Field(default=8101, ge=0, le=65535)
    poller_tick_seconds: float = Field(default=1.0, gt=0, le=60, description="between two looks for due work")
    poller_concurrency: int = Field(
        default=32, ge=1, le=1000, description="sellers whose journal is read at the same time in one process"
    )
    poller_lease_seconds: float = Field(
        default=120.0, ge=1, le=3600, description="how long a dead replica's work waits for another one"
    )
    poller_max_pages: int = Field(
        default=3, ge=1, le=100, description="journal pages (1000 events) of one seller in one go: bounds memory"
    )
    poller_overlap_seconds: float = Field(
        default=120.0, ge=0, description="read again before the stored cursor, in case an event shows late"
    )
    poller_redelivery_seconds: float = Field(
        default=120.0, gt=0, description="the stored cursor has to follow what was published within this"
    )
    poller_window_redelivery_seconds: float = Field(
        default=120.0,
        gt=0,
        description="a bulk load without progress for this long is sent out again; each time after twice as long",
    )
    poller_stalled_seconds: float = Field(
        default=900.0, gt=0, description="a run without progress for this long is shown as stalled"
    )
    poller_audit_retention_days: int = Field(default=365, ge=1, description="of the API's audit log")
