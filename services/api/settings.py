"""Everything the API reads from its environment, and nothing more."""

from pydantic import Field

from services.api.browsers import is_loopback
from shared.settings import (
    AllegroSettings,
    DatabaseSettings,
    EncryptionSettings,
    KafkaSettings,
    LogSettings,
    SyncSettings,
)


class ApiSettings(DatabaseSettings, KafkaSettings, AllegroSettings, EncryptionSettings, SyncSettings, LogSettings):
    api_http_host: str = Field(default="127.0.0.1", description="where the API is served")
    api_http_port: int = Field(default=8000, ge=0, le=65535)

    @property
    def is_on_loopback(self) -> bool:
        """Whether only programs of this machine reach the API; they need no key until there is one."""
        return is_loopback(self.api_http_host)
