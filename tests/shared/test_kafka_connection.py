"""Kafka over TLS and with a user: refused at start where it cannot be what it says, and used by every client."""

import asyncio
import os
import secrets
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path
from typing import Any, Literal

import pytest
from aiokafka.errors import KafkaConnectionError, KafkaError
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from devstack.apache_kafka import ApacheKafka, SecureListener
from devstack.ports import free_port
from shared.delivery import open_consumer
from shared.errors import ConfigurationError
from shared.kafka import RecordProducer, check_kafka, ensure_topics, faststream_broker, partitions_of, wait_for_topics
from shared.kafka_connection import connection_options
from shared.settings import KafkaSettings, load
from tests.canary import a_secret

_USER = "orders-backup"
_KAFKA = os.environ.get("KAFKA", "")


def self_signed(folder: Path) -> tuple[Path, Path]:
    """A certificate for 127.0.0.1 alone: what a client trusts, and what the broker shows (with its key)."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "orders-backup test")])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(hours=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(key, hashes.SHA256())
    )
    public = certificate.public_bytes(serialization.Encoding.PEM)
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    trusted, shown = folder / "ca.pem", folder / "broker.pem"
    trusted.write_bytes(public)
    shown.write_bytes(private + public)
    return trusted, shown


def settings(**given: Any) -> KafkaSettings:
    return KafkaSettings(**{"kafka_bootstrap_servers": "127.0.0.1:1", **given})


def with_user(**given: Any) -> dict[str, Any]:
    return {
        "kafka_security_protocol": "SASL_SSL",
        "kafka_sasl_username": _USER,
        "kafka_sasl_password": a_secret("kafka"),
        **given,
    }


@pytest.mark.parametrize(
    ("given", "complaint"),
    [
        ({"KAFKA_SECURITY_PROTOCOL": "SASL_SSL"}, "KAFKA_SASL_USERNAME, KAFKA_SASL_PASSWORD: SASL_SSL needs both"),
        ({"KAFKA_SASL_USERNAME": "u"}, "KAFKA_SECURITY_PROTOCOL: PLAINTEXT does not use KAFKA_SASL_USERNAME"),
        (
            {
                "KAFKA_SECURITY_PROTOCOL": "SASL_PLAINTEXT",
                "KAFKA_SASL_MECHANISM": "PLAIN",
                "KAFKA_SASL_USERNAME": "u",
                "KAFKA_SASL_PASSWORD": "p",
            },
            "KAFKA_SASL_MECHANISM: PLAIN sends the password as it is",
        ),
        ({"KAFKA_SSL_CA_FILE": "/nowhere.pem"}, "PLAINTEXT does not use the KAFKA_SSL files"),
        (
            {"KAFKA_SECURITY_PROTOCOL": "SSL", "KAFKA_SSL_CA_FILE": "/nowhere.pem"},
            "KAFKA_SSL_CA_FILE: /nowhere.pem: ",
        ),
        (
            {"KAFKA_SECURITY_PROTOCOL": "SSL", "KAFKA_SSL_CERTIFICATE_FILE": "/nowhere.pem"},
            "KAFKA_SSL_CERTIFICATE_FILE: /nowhere.pem: ",
        ),
    ],
)
def test_what_cannot_be_as_safe_as_it_says_is_refused_at_start(
    given: dict[str, str], complaint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KAFKA_BOOTSTRAP_SERVERS", "127.0.0.1:9092")
    for name, value in given.items():
        monkeypatch.setenv(name, value)

    with pytest.raises(ConfigurationError) as refused:
        load(KafkaSettings)

    assert complaint in str(refused.value)


def test_the_password_is_in_no_text_of_the_settings() -> None:
    given = with_user()

    told = settings(**given)

    assert given["kafka_sasl_password"] not in f"{told!r} {told} {told.model_dump()}"


def test_empty_variables_mean_the_defaults(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KAFKA_BOOTSTRAP_SERVERS", "127.0.0.1:9092")
    for name in KafkaSettings.model_fields:
        if name.startswith("kafka_s") and name != "kafka_session_timeout_seconds":
            monkeypatch.setenv(name.upper(), "")

    options = connection_options(load(KafkaSettings))

    assert options == {
        "bootstrap_servers": ["127.0.0.1:9092"],
        "security_protocol": "PLAINTEXT",
        "ssl_context": None,
    }


def test_tls_checks_certificate_and_name(tmp_path: Path) -> None:
    trusted, _ = self_signed(tmp_path)

    context = connection_options(settings(kafka_security_protocol="SSL", kafka_ssl_ca_file=trusted))["ssl_context"]

    assert (context.check_hostname, context.verify_mode.name) == (True, "CERT_REQUIRED")
    assert [entry["subject"][0][0][1] for entry in context.get_ca_certs()] == ["orders-backup test"]


@pytest.fixture(params=["SCRAM-SHA-512", "PLAIN"])
def mechanism(request: pytest.FixtureRequest) -> Literal["PLAIN", "SCRAM-SHA-512"]:
    chosen: Literal["PLAIN", "SCRAM-SHA-512"] = request.param
    return chosen


@pytest.fixture
def secured(tmp_path: Path, mechanism: Literal["PLAIN", "SCRAM-SHA-512"]) -> Iterator[dict[str, Any]]:
    """An Apache Kafka that lets in only our user, over TLS; returns the settings with which one gets in."""
    if _KAFKA != "apache":
        pytest.skip("the embedded broker knows neither TLS nor users: KAFKA=apache")
    trusted, shown = self_signed(tmp_path)
    password = secrets.token_urlsafe(12)
    listener = SecureListener(free_port(), mechanism, _USER, password, shown)
    with ApacheKafka(tmp_path / "kafka", secure=listener):
        yield with_user(
            kafka_bootstrap_servers=f"127.0.0.1:{listener.port}",
            kafka_sasl_mechanism=mechanism,
            kafka_sasl_password=password,
            kafka_ssl_ca_file=trusted,
            kafka_replication_factor=1,
        )


@pytest.mark.integration
async def test_every_client_gets_in_with_user_and_certificate(secured: dict[str, Any]) -> None:
    ours = settings(**secured)

    await ensure_topics(ours)
    await wait_for_topics(ours)
    topics = await partitions_of(ours)
    async with RecordProducer(ours, service="test") as producer:
        await producer.publish_all(ours.topics.orders, [(b"1", b"value", [])])
    consumer = open_consumer(ours, group="test", service="test", max_poll_interval_ms=60_000)
    consumer.subscribe([ours.topics.orders])
    async with asyncio.timeout(60), consumer:
        record = await consumer.getone()
    broker = faststream_broker(ours, service="test")
    async with broker:
        await broker.start()
        await check_kafka(broker)

    assert set(topics) == set(ours.topics.all())
    assert record.value == b"value"


@pytest.mark.integration
@pytest.mark.parametrize(
    "changed",
    [{"kafka_sasl_password": "wrong"}, {"kafka_ssl_ca_file": None}, {"kafka_sasl_username": "somebody"}],
    ids=["wrong password", "unknown certificate", "unknown user"],
)
async def test_nobody_else_gets_in_and_we_talk_to_no_stranger(secured: dict[str, Any], changed: dict[str, Any]) -> None:
    other = settings(**{**secured, **changed})

    with pytest.raises((KafkaError, KafkaConnectionError)):
        await ensure_topics(other)
