"""OAuth of the client id: device flow and refresh (allegro-api.md 1 and 2). Knows secrets, stores none."""

import asyncio
import base64
import binascii
from dataclasses import dataclass
from typing import Any, NoReturn

import httpx
import msgspec

from shared.allegro.answer import Answer
from shared.allegro.errors import (
    AllegroUnavailableError,
    AnswerTooLargeError,
    AuthorizationEndedError,
    AuthorizationPendingError,
    InvalidClientError,
    InvalidGrantError,
    NotPermittedError,
    RateLimitedError,
    RequestRejectedError,
    SlowDownError,
    from_oauth_answer,
)
from shared.allegro.http import AllegroHttp, exchange
from shared.encryption import Secret
from shared.request_limits import Endpoint, RequestLimits
from shared.settings import AllegroSettings

__all__ = [
    "AllegroOAuth",
    "AuthorizationEndedError",
    "AuthorizationPendingError",
    "DeviceCode",
    "InvalidClientError",
    "InvalidGrantError",
    "SlowDownError",
    "TokenPair",
    "basic_authorization",
]

_DEVICE_GRANT = "urn:ietf:params:oauth:grant-type:device_code"
_DEFAULT_INTERVAL_SECONDS = 5
# Access tokens live 12 h (#1174); what an answer without `expires_in` is taken for.
_DEFAULT_EXPIRY_SECONDS = 12 * 3600
# A refresh runs under a row lock: however long API calls may take, it may not.
_LONGEST_TIMEOUT_SECONDS = 20.0
_MAX_ANSWER_BYTES = 1024 * 1024


@dataclass(frozen=True)
class DeviceCode:
    """A started device flow; times in seconds."""

    device_code: Secret
    user_code: str
    verification_uri: str
    verification_uri_complete: str
    expires_in: int
    interval: int


@dataclass(frozen=True)
class TokenPair:
    """A new pair of tokens; `seller_id` and `scopes` as the answer and the access token's claims tell them."""

    access_token: Secret
    refresh_token: Secret
    expires_in: int
    scopes: tuple[str, ...]
    seller_id: str | None


class AllegroOAuth:
    """Calls of the authorisation server; each waits for the limits itself."""

    def __init__(self, http: AllegroHttp, settings: AllegroSettings, limits: RequestLimits) -> None:
        self._http = http
        self._url = settings.auth_url
        self._timeout_seconds = min(settings.allegro_timeout_seconds, _LONGEST_TIMEOUT_SECONDS)
        self._client_id = settings.allegro_client_id
        self._basic = basic_authorization(settings)
        self._limits = limits

    async def start_device_flow(self) -> DeviceCode:
        """Ask for a device code; raises InvalidClientError, RateLimitedError, AllegroUnavailableError.

        May wait as long as the limit of starts asks for (ALLEGRO_DEVICE_LIMIT_PER_MINUTE).
        """
        body = await self._post(Endpoint.DEVICE, "/auth/oauth/device", {"client_id": self._client_id})
        return _device_code(body)

    async def poll_device_code(self, device_code: Secret, *, patience_seconds: float | None = None) -> TokenPair:
        """Ask whether the seller has decided; the one successful answer must be stored before anything else.

        Raises AuthorizationPendingError, SlowDownError, AuthorizationEndedError, InvalidClientError, RateLimitedError,
        AllegroUnavailableError (bot protection too: it is no refusal); NotPermittedError if the limits let nothing
        through for `patience_seconds`: then nothing has been asked.
        """
        try:
            body = await self._post(
                Endpoint.TOKEN,
                "/auth/oauth/token",
                {"grant_type": _DEVICE_GRANT, "device_code": device_code.reveal()},
                patience_seconds=patience_seconds,
            )
        except (InvalidGrantError, RequestRejectedError) as refusal:
            raise _end_of(refusal) from None
        return _token_pair(body)

    async def refresh(self, refresh_token: Secret) -> TokenPair:
        """Exchange a refresh token.

        Raises InvalidGrantError, InvalidClientError, RequestRejectedError, RateLimitedError, AllegroUnavailableError.
        """
        try:
            body = await self._post(
                Endpoint.TOKEN,
                "/auth/oauth/token",
                {"grant_type": "refresh_token", "refresh_token": refresh_token.reveal()},
            )
        except (AuthorizationPendingError, SlowDownError, AuthorizationEndedError) as odd:
            # What these words mean of a refresh is not documented: nothing final.
            raise RequestRejectedError(f"an answer of the device flow to a refresh: {odd}").at(
                odd.endpoint, odd.status
            ) from None
        return _token_pair(body)

    async def _post(
        self, endpoint: Endpoint, path: str, form: dict[str, str], *, patience_seconds: float | None = None
    ) -> dict[str, Any]:
        await self._permission(endpoint, patience_seconds)
        try:
            answer = await exchange(
                self._http,
                endpoint,
                "POST",
                self._url + path,
                timeout_seconds=self._timeout_seconds,
                data=form,
                headers={"Authorization": self._basic.reveal()},
                max_bytes=_MAX_ANSWER_BYTES,
            )
        except AnswerTooLargeError as error:
            raise AllegroUnavailableError(f"not what the authorisation server sends: {error}") from error
        if answer.status != httpx.codes.OK:
            await self._refuse(endpoint, answer)
        return _json_object(endpoint, answer.body)

    async def _permission(self, endpoint: Endpoint, patience_seconds: float | None) -> None:
        patience = asyncio.timeout(patience_seconds)
        try:
            async with patience:
                await self._limits.acquire(endpoint, token_id=None, traffic="live")
        except TimeoutError:
            if not patience.expired():
                raise  # PostgreSQL's
            raise NotPermittedError(f"no permission within {patience_seconds:g} s").at(endpoint.value) from None

    async def _refuse(self, endpoint: Endpoint, answer: Answer) -> NoReturn:
        error = from_oauth_answer(endpoint.value, answer.status, answer.body, retry_after=answer.retry_after)
        if isinstance(error, RateLimitedError):
            await self._limits.block(error.retry_after)
        raise error


def _end_of(refusal: InvalidGrantError | RequestRejectedError) -> AuthorizationEndedError:
    """Any other refusal of a device code is final (#11373)."""
    return AuthorizationEndedError(
        "code_used",
        "Allegro no longer knows this code: it has expired, or it was used and the answer was lost. Start again.",
    ).at(refusal.endpoint, refusal.status)


def basic_authorization(settings: AllegroSettings) -> Secret:
    """How an app proves who it is (RFC 6749, 2.3.1)."""
    pair = f"{settings.allegro_client_id}:{settings.allegro_client_secret.get_secret_value()}"
    return Secret("Basic " + base64.b64encode(pair.encode()).decode())


def _device_code(body: dict[str, Any]) -> DeviceCode:
    try:
        return DeviceCode(
            device_code=Secret(str(body["device_code"])),
            user_code=str(body["user_code"]),
            verification_uri=str(body["verification_uri"]),
            verification_uri_complete=str(body.get("verification_uri_complete") or body["verification_uri"]),
            # The documentation shows strings, the service sends numbers (#11017).
            expires_in=int(body["expires_in"]),
            interval=int(body.get("interval") or _DEFAULT_INTERVAL_SECONDS),
        )
    except (KeyError, ValueError, TypeError) as error:
        # `from None`: a ValueError quotes the value, and a value may be the code.
        raise AllegroUnavailableError(f"device flow: unreadable answer ({type(error).__name__})").at(
            Endpoint.DEVICE.value, 200
        ) from None


def _token_pair(body: dict[str, Any]) -> TokenPair:
    access, refresh = body.get("access_token"), body.get("refresh_token")
    if not (isinstance(access, str) and access and isinstance(refresh, str) and refresh):
        raise AllegroUnavailableError("the answer holds no pair of tokens").at(Endpoint.TOKEN.value, 200)
    token = Secret(access)
    scopes = tuple(str(body.get("scope") or "").split()) or scopes_of(token)
    return TokenPair(token, Secret(refresh), _seconds(body.get("expires_in")), scopes, seller_of(token))


def seller_of(access_token: Secret) -> str | None:
    """The seller's numeric id: the claim `user_name`, which is not the login (#326, #9955)."""
    seller = _claims(access_token.reveal()).get("user_name")
    return str(seller) if isinstance(seller, str | int) else None


def scopes_of(access_token: Secret) -> tuple[str, ...]:
    """What the seller has consented to, as the token itself tells it."""
    scopes = _claims(access_token.reveal()).get("scope")
    return tuple(map(str, scopes)) if isinstance(scopes, list) else ()


def _seconds(value: object) -> int:
    """`expires_in`; a pair is too dear to be thrown away for a strange number."""
    try:
        seconds = int(value) if isinstance(value, int | float | str) else 0
    except (ValueError, OverflowError):
        seconds = 0
    return seconds if 0 < seconds < 10**8 else _DEFAULT_EXPIRY_SECONDS


def _claims(access_token: str) -> dict[str, Any]:
    """The claims of a JSON web token, unverified: they come from Allegro itself over TLS."""
    parts = access_token.split(".")
    if len(parts) < 2:
        return {}
    try:
        claims = msgspec.json.decode(base64.urlsafe_b64decode(parts[1] + "=" * (-len(parts[1]) % 4)))
    except (msgspec.DecodeError, UnicodeDecodeError, binascii.Error, ValueError, RecursionError):
        return {}
    return claims if isinstance(claims, dict) else {}


def _json_object(endpoint: Endpoint, body: bytes) -> dict[str, Any]:
    try:
        parsed = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        parsed = None
    if not isinstance(parsed, dict):
        raise AllegroUnavailableError("the answer is no JSON object").at(endpoint.value, 200)
    return parsed
