"""Settings from the environment and `.env`, in small groups that a service composes; each names its variables.

Every variable is explained in `.env.example`; a test keeps the two together.
"""

import re
import ssl
from functools import cached_property
from pathlib import Path
from typing import Annotated, Literal, Self, TypeVar
from urllib.parse import unquote

from pydantic import Field, SecretStr, ValidationError, field_validator, model_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from shared.encryption import Keyring
from shared.errors import ConfigurationError
from shared.topics import Topics

_USER_AGENT = re.compile(r"^[A-Za-z0-9._-]+/[A-Za-z0-9.+_-]+ \(\+https?://[^\s()]+\)$")

_API_HOSTS = {"production": "https://api.allegro.pl", "sandbox": "https://api.allegro.pl.allegrosandbox.pl"}
_AUTH_HOSTS = {"production": "https://allegro.pl", "sandbox": "https://allegro.pl.allegrosandbox.pl"}


class Group(BaseSettings):
    """Base of every group: read from the environment first, then from `.env`; an empty variable is one not set."""

    model_config = SettingsConfigDict(
        env_file=".env", env_file_encoding="utf-8", env_ignore_empty=True, extra="ignore", frozen=True
    )


class DatabaseSettings(Group):
    database_url: SecretStr = Field(description="postgresql://user:password@host:port/database")
    database_pool_size: int = Field(default=10, ge=4, le=200, description="connections per process")

    @field_validator("database_url")
    @classmethod
    def _is_postgresql(cls, value: SecretStr) -> SecretStr:
        if not value.get_secret_value().startswith(("postgresql://", "postgres://")):
            raise ValueError("must start with postgresql://")
        return value


class KafkaSettings(Group):
    kafka_bootstrap_servers: Annotated[tuple[str, ...], NoDecode] = Field(description="host:port[,host:port...]")
    kafka_topic_prefix: str = Field(default="", pattern=r"^[A-Za-z0-9._-]*$", description="put before every topic name")
    kafka_topic_partitions: int = Field(
        default=12,
        ge=1,
        le=1000,
        description="of each topic at its creation: the upper bound of useful replicas",
    )
    kafka_replication_factor: int = Field(default=1, ge=1, le=9, description="of each topic at its creation")
    kafka_idempotent_producer: bool = Field(
        default=False,
        description="needs a broker with InitProducerId; not needed: every effect is idempotent",
    )
    kafka_session_timeout_seconds: float = Field(
        default=30.0, ge=1, le=300, description="a consumer that is silent for so long loses its partitions"
    )
    kafka_fetch_wait_seconds: float = Field(
        default=0.5,
        gt=0,
        le=30,
        description="how long a broker may hold a consumer's question until there is something new",
    )
    kafka_compression: Literal["none", "gzip", "snappy", "lz4", "zstd"] = Field(default="zstd")
    kafka_security_protocol: Literal["PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"] = Field(
        default="PLAINTEXT", description="SSL: over TLS; SASL: with a user name"
    )
    kafka_ssl_ca_file: Path | None = Field(
        default=None, description="PEM of who signs the brokers' certificates; none: whom the system trusts"
    )
    kafka_ssl_certificate_file: Path | None = Field(
        default=None, description="PEM of our own certificate and its key, where the brokers ask for one"
    )
    kafka_sasl_mechanism: Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"] = Field(default="SCRAM-SHA-512")
    kafka_sasl_username: str = Field(default="")
    kafka_sasl_password: SecretStr = Field(default=SecretStr(""))

    @field_validator("kafka_bootstrap_servers", mode="before")
    @classmethod
    def _split(cls, value: object) -> object:
        if isinstance(value, str):
            return tuple(filter(None, (server.strip() for server in value.split(","))))
        return value

    @field_validator("kafka_bootstrap_servers")
    @classmethod
    def _has_ports(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if not value or not all(re.fullmatch(r"\S+:\d+", server) for server in value):
            raise ValueError("must be host:port[,host:port...]")
        return value

    @model_validator(mode="after")
    def _is_secured_as_it_says(self) -> Self:
        """A credential that the protocol does not use is a mistake: it looks safer than it is."""
        protocol = self.kafka_security_protocol
        given = bool(self.kafka_sasl_username), bool(self.kafka_sasl_password.get_secret_value())
        if protocol.startswith("SASL") and not all(given):
            raise ValueError(f"KAFKA_SASL_USERNAME, KAFKA_SASL_PASSWORD: {protocol} needs both")
        if not protocol.startswith("SASL") and any(given):
            raise ValueError(f"KAFKA_SECURITY_PROTOCOL: {protocol} does not use KAFKA_SASL_USERNAME and _PASSWORD")
        if protocol == "SASL_PLAINTEXT" and self.kafka_sasl_mechanism == "PLAIN":
            raise ValueError("KAFKA_SASL_MECHANISM: PLAIN sends the password as it is: use SASL_SSL, or SCRAM-SHA-512")
        if protocol.endswith("SSL"):
            self.tls_context()
        elif self.kafka_ssl_ca_file is not None or self.kafka_ssl_certificate_file is not None:
            raise ValueError(f"KAFKA_SECURITY_PROTOCOL: {protocol} does not use the KAFKA_SSL files")
        return self

    def tls_context(self) -> ssl.SSLContext:
        """TLS that checks certificate and host name; raises ValueError that names the file it cannot use."""
        try:
            context = ssl.create_default_context(cafile=self.kafka_ssl_ca_file)
        except OSError as error:
            raise ValueError(f"KAFKA_SSL_CA_FILE: {self.kafka_ssl_ca_file}: {error}") from error
        if self.kafka_ssl_certificate_file is not None:
            try:
                context.load_cert_chain(self.kafka_ssl_certificate_file)
            except OSError as error:
                raise ValueError(f"KAFKA_SSL_CERTIFICATE_FILE: {self.kafka_ssl_certificate_file}: {error}") from error
        return context

    @cached_property
    def topics(self) -> Topics:
        return Topics(self.kafka_topic_prefix)


class AllegroSettings(Group):
    allegro_environment: Literal["production", "sandbox"] = Field(default="production")
    allegro_api_url: str = Field(default="", description="overrides the environment's API address (simulator)")
    allegro_auth_url: str = Field(default="", description="overrides the environment's OAuth address (simulator)")
    allegro_client_id: str = Field(min_length=1, description="of an app registered as type DEVICE (#6639)")
    allegro_client_secret: SecretStr
    allegro_user_agent: str = Field(
        description="<name of the registered app>/<version> (+https://info-page): mandatory since June 2026 (#13126)"
    )
    allegro_accept_language: Literal["en-US", "pl-PL", "uk-UA", "sk-SK", "cs-CZ", "hu-HU"] = Field(default="en-US")
    allegro_timeout_seconds: float = Field(default=30.0, gt=0, le=300)
    allegro_client_limit_per_minute: int = Field(
        default=9000, ge=1, description="one client id, all sellers and replicas"
    )
    allegro_events_limit_per_minute: int = Field(default=60, ge=1, description="GET /order/events, per token")
    allegro_list_limit_per_minute: int = Field(default=100, ge=1, description="GET /order/checkout-forms, per token")
    allegro_detail_limit_per_minute: int = Field(
        default=1000, ge=1, description="GET /order/checkout-forms/{id}, per token"
    )
    allegro_device_limit_per_minute: int = Field(default=10, ge=1, description="starts of the device flow")
    allegro_live_share: float = Field(
        default=0.3, ge=0.0, lt=1.0, description="part of the client limit that bulk loads never use"
    )
    allegro_limit_minute_seconds: float = Field(
        default=60.0,
        gt=0,
        le=60,
        description="length of the limits' minute: shorter only against the simulator",
    )

    @field_validator("allegro_user_agent")
    @classmethod
    def _is_well_formed(cls, value: str) -> str:
        if not _USER_AGENT.fullmatch(value):
            raise ValueError(
                "must read <registered-app-name>/<version> (+https://info-page), without spaces in the name"
            )
        return value

    @field_validator("allegro_api_url", "allegro_auth_url")
    @classmethod
    def _is_an_address(cls, value: str) -> str:
        if value and not value.startswith(("http://", "https://")):
            raise ValueError("must start with http:// or https://")
        return value.rstrip("/")

    @property
    def api_url(self) -> str:
        return self.allegro_api_url or _API_HOSTS[self.allegro_environment]

    @property
    def auth_url(self) -> str:
        return self.allegro_auth_url or _AUTH_HOSTS[self.allegro_environment]


class EncryptionSettings(Group):
    encryption_keys: SecretStr = Field(
        default=SecretStr(""), description="<id>:<base64 of 32 bytes>[,...]; first is used for new secrets"
    )
    encryption_keys_file: Path | None = Field(default=None, description="the same, one key a line, from a file")

    @model_validator(mode="after")
    def _has_one_source(self) -> Self:
        if bool(self.encryption_keys.get_secret_value()) == (self.encryption_keys_file is not None):
            raise ValueError("give either ENCRYPTION_KEYS or ENCRYPTION_KEYS_FILE")
        return self

    def keyring(self) -> Keyring:
        """The keys; raises ConfigurationError that names the variable."""
        if self.encryption_keys_file is None:
            return Keyring.parse(self.encryption_keys.get_secret_value())
        try:
            return Keyring.parse(self.encryption_keys_file.read_text("ascii"))
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigurationError(f"ENCRYPTION_KEYS_FILE: {error}") from error


class SyncSettings(Group):
    sync_interval_seconds: int = Field(default=180, ge=1, description="between two looks into a token's journal")
    sync_full_interval_seconds: int = Field(default=6 * 3600, ge=10, description="between two complete listings")
    sync_tracked_event_types: Annotated[frozenset[str], NoDecode] = Field(
        default=frozenset(),
        description="types that cause a fetch, comma-separated; empty: all; every type is stored",
    )
    sync_list_lag_seconds: float = Field(
        default=60.0, ge=0, description="how old a list page may be: its observations are dated back by this"
    )
    sync_history_retention_days: int = Field(default=90, ge=1)
    sync_events_retention_days: int = Field(default=730, ge=61, description="of order_events; orders are never removed")

    @field_validator("sync_tracked_event_types", mode="before")
    @classmethod
    def _split(cls, value: object) -> object:
        if isinstance(value, str):
            return frozenset(filter(None, (name.strip() for name in value.split(","))))
        return value


class LogSettings(Group):
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = Field(default="INFO")
    log_dir: Path | None = Field(default=None, description="also write <service>.log here: 5 MB, 3 files")


class TracingSettings(Group):
    """OpenTelemetry's own names, read by us: its SDK does not know `.env`."""

    otel_exporter_otlp_endpoint: str = Field(
        default="", description="collector that takes traces by OTLP over HTTP, without /v1/traces; empty: no traces"
    )
    otel_exporter_otlp_headers: SecretStr = Field(
        default=SecretStr(""), description="sent with them: name=value[,...], values URL-encoded"
    )
    otel_traces_sampler_arg: float = Field(
        default=1.0, ge=0, le=1, description="part of the API calls and polls that are traced"
    )

    @field_validator("otel_exporter_otlp_endpoint")
    @classmethod
    def _is_an_address(cls, value: str) -> str:
        if value and not value.startswith(("http://", "https://")):
            raise ValueError("must start with http:// or https://")
        return value.rstrip("/")

    @model_validator(mode="after")
    def _has_readable_headers(self) -> Self:
        self.otlp_headers()
        return self

    def otlp_headers(self) -> dict[str, str]:
        """Name and value of each; raises ValueError that names the variable, and no value."""
        pairs = [pair for pair in self.otel_exporter_otlp_headers.get_secret_value().split(",") if pair.strip()]
        if not all(re.fullmatch(r"\s*[A-Za-z0-9!#$%&'*+.^_`|~-]+\s*=[^\r\n]*", pair) for pair in pairs):
            raise ValueError("OTEL_EXPORTER_OTLP_HEADERS: must read name=value[,name=value...]")
        return {name.strip().lower(): unquote(value.strip()) for name, _, value in (p.partition("=") for p in pairs)}


class ServiceSettings(LogSettings, TracingSettings):
    """What every service reads."""


_Settings = TypeVar("_Settings", bound=BaseSettings)


def load(settings: type[_Settings]) -> _Settings:
    """Read and validate; raises ConfigurationError with one line a variable and never its value."""
    try:
        return settings()
    except ValidationError as error:
        lines = []
        for item in error.errors(include_input=False, include_url=False):
            name = ".".join(str(part) for part in item["loc"]).upper()
            complaint = item["msg"].removeprefix("Value error, ")
            lines.append(f"{name}: {complaint}" if name else complaint)
        raise ConfigurationError("; ".join(lines)) from None
