"""Everything the writer reads from its environment, and nothing more."""

from pydantic import Field

from shared.settings import DatabaseSettings, KafkaSettings, ServiceSettings


class WriterSettings(DatabaseSettings, KafkaSettings, ServiceSettings):
    writer_http_host: str = Field(default="127.0.0.1", description="where /livez, /readyz and /metrics are served")
    writer_http_port: int = Field(default=8103, ge=0, le=65535)
    writer_batch_records: int = Field(
        default=2000, ge=1, le=10_000, description="most records of one batch: bounds memory and lock time"
    )
