"""How every client of ours connects to Kafka: which brokers, over TLS or not, and as whom."""

import ssl
from typing import Any

from faststream.security import BaseSecurity, SASLPlaintext, SASLScram256, SASLScram512

from shared.settings import KafkaSettings

_SASL = {"PLAIN": SASLPlaintext, "SCRAM-SHA-256": SASLScram256, "SCRAM-SHA-512": SASLScram512}


def _tls(settings: KafkaSettings) -> ssl.SSLContext | None:
    return settings.tls_context() if settings.kafka_security_protocol.endswith("SSL") else None


def connection_options(settings: KafkaSettings) -> dict[str, Any]:
    """What aiokafka's producers, consumers and admin clients are opened with."""
    options: dict[str, Any] = {
        "bootstrap_servers": list(settings.kafka_bootstrap_servers),
        "security_protocol": settings.kafka_security_protocol,
        "ssl_context": _tls(settings),
    }
    if settings.kafka_security_protocol.startswith("SASL"):
        options |= {
            "sasl_mechanism": settings.kafka_sasl_mechanism,
            "sasl_plain_username": settings.kafka_sasl_username,
            "sasl_plain_password": settings.kafka_sasl_password.get_secret_value(),
        }
    return options


def faststream_security(settings: KafkaSettings) -> BaseSecurity:
    """The same for FastStream's broker, which takes it in classes of its own."""
    tls = _tls(settings)
    if not settings.kafka_security_protocol.startswith("SASL"):
        return BaseSecurity(ssl_context=tls, use_ssl=tls is not None)
    return _SASL[settings.kafka_sasl_mechanism](
        username=settings.kafka_sasl_username,
        password=settings.kafka_sasl_password.get_secret_value(),
        ssl_context=tls,
        use_ssl=tls is not None,
    )
