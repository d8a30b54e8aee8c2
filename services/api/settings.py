"""Everything the API reads from its environment, and nothing more."""

import re
from typing import Annotated

from pydantic import Field, field_validator
from pydantic_settings import NoDecode

from services.api.browsers import is_loopback
from shared.settings import (
    AllegroSettings,
    DatabaseSettings,
    EncryptionSettings,
    KafkaSettings,
    ServiceSettings,
    SyncSettings,
)

# As browsers write it: in lower case, and neither a path nor a wildcard.
_ORIGIN = re.compile(r"https?://[a-z0-9.:\[\]-]+")


class ApiSettings(DatabaseSettings, KafkaSettings, AllegroSettings, EncryptionSettings, SyncSettings, ServiceSettings):
    api_http_host: str = Field(default="127.0.0.1", description="where the API is served")
    api_http_port: int = Field(default=8000, ge=0, le=65535)

    api_requests_per_minute: int = Field(
        default=12_000, ge=1, le=10_000_000, description="of one key at one process; a key may have a rate of its own"
    )
    api_exports: int = Field(default=8, ge=1, le=1000, description="at a time, at one process")
    api_exports_per_key: int = Field(default=4, ge=1, le=1000, description="of them, of one key")
    api_event_streams: int = Field(default=1000, ge=1, le=100_000, description="open at a time, at one process")
    api_event_streams_per_key: int = Field(default=100, ge=1, le=100_000, description="of them, of one key")
    api_cors_origins: Annotated[tuple[str, ...], NoDecode] = Field(
        default=(), description="scheme://host[:port],...: sites whose pages may call the API; empty: none"
    )

    @field_validator("api_cors_origins", mode="before")
    @classmethod
    def _split_origins(cls, value: object) -> object:
        if isinstance(value, str):
            return tuple(filter(None, (origin.strip() for origin in value.split(","))))
        return value

    @field_validator("api_cors_origins")
    @classmethod
    def _are_origins(cls, origins: tuple[str, ...]) -> tuple[str, ...]:
        wrong = [origin for origin in origins if not _ORIGIN.fullmatch(origin)]
        if wrong:
            raise ValueError(f"not an origin such as https://shop.example.com: {', '.join(wrong)}")
        return origins

    @property
    def is_on_loopback(self) -> bool:
        """Whether only programs of this machine reach the API; they need no key until there is one."""
        return is_loopback(self.api_http_host)
