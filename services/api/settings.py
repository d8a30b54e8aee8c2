"""Everything the API reads from its environment, and nothing more."""

from typing import Self

from pydantic import Field, model_validator

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
    api_allow_unauthenticated: bool = Field(
        default=False, description="serve on an address that others reach, although the API asks nobody who he is"
    )

    @model_validator(mode="after")
    def _is_not_exposed_by_accident(self) -> Self:
        if not is_loopback(self.api_http_host) and not self.api_allow_unauthenticated:
            raise ValueError(
                "API_HTTP_HOST: not a loopback address; set API_ALLOW_UNAUTHENTICATED=true only behind something that"
                " controls access"
            )
        return self
