"""OAuth of the client id: device flow and refresh (allegro-api.md 1 and 2). Knows secrets, stores none."""

import base64
import binascii
import time
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import httpx
import msgspec

from shared.allegro import metrics
from shared.allegro.errors import AllegroUnavailableError, RateLimitedError, describe, from_answer
from shared.encryption import Secret
from shared.errors import OrdersBackupError, PermanentError
from shared.request_limits import Endpoint, RequestLimits
from shared.settings import AllegroSettings

_DEVICE_GRANT = "urn:ietf:params:oauth:grant-type:device_code"
_DEFAULT_INTERVAL_SECONDS = 5
_DEFAULT_BLOCK = timedelta(seconds=60)


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


class AuthorizationPendingError(OrdersBackupError):
    """The seller has not decided yet."""


class SlowDownError(OrdersBackupError):
    """Polled too fast: the interval grows by 5 s (RFC 8628, 3.5)."""


class AuthorizationEndedError(PermanentError):
    """The device flow is over without tokens; `reason` is machine-readable, the text is for a person."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


class InvalidGrantError(PermanentError):
    """The refresh token was not accepted; not always the last word (#3622, #9592)."""


class InvalidClientError(PermanentError):
    """ALLEGRO_CLIENT_ID or ALLEGRO_CLIENT_SECRET is wrong, or the application was deleted (#11371)."""


class AllegroOAuth:
    """Calls of the authorisation server."""

    def __init__(self, http: httpx.AsyncClient, settings: AllegroSettings, limits: RequestLimits) -> None:
        self._http = http
        self._url = settings.auth_url
        self._client_id = settings.allegro_client_id
        self._basic = httpx.BasicAuth(settings.allegro_client_id, settings.allegro_client_secret.get_secret_value())
        self._limits = limits

    async def start_device_flow(self) -> DeviceCode:
        """Ask for a device code; raises InvalidClientError and the errors of AllegroError."""
        await self._limits.acquire(Endpoint.DEVICE, token_id=None, traffic="live")
        body = await self._post(Endpoint.DEVICE, "/auth/oauth/device", {"client_id": self._client_id})
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
        except (KeyError, ValueError) as error:
            raise AllegroUnavailableError(f"device flow: the answer lacks {error}").at("device", 200) from error

    async def poll_device_code(self, device_code: Secret) -> TokenPair:
        """Ask whether the seller has decided; the one successful answer must be stored before anything else.

        Raises AuthorizationPendingError, SlowDownError, AuthorizationEndedError, InvalidClientError, AllegroError.
        """
        await self.wait_for_allowance()
        try:
            body = await self._post(
                Endpoint.TOKEN,
                "/auth/oauth/token",
                {"grant_type": _DEVICE_GRANT, "device_code": device_code.reveal()},
            )
        except _RefusedError as refusal:
            raise _poll_error(refusal) from None
        return _token_pair(body)

    async def wait_for_allowance(self) -> None:
        """Wait until a call of the token endpoint is allowed; apart from `refresh`, which runs under a lock."""
        await self._limits.acquire(Endpoint.TOKEN, token_id=None, traffic="live")

    async def refresh(self, refresh_token: Secret) -> TokenPair:
        """Exchange a refresh token, after `wait_for_allowance`; raises InvalidGrantError, InvalidClientError,
        AllegroError.
        """
        try:
            body = await self._post(
                Endpoint.TOKEN,
                "/auth/oauth/token",
                {"grant_type": "refresh_token", "refresh_token": refresh_token.reveal()},
            )
        except _RefusedError as refusal:
            raise InvalidGrantError(f"refresh refused: {refusal.code}") from None
        return _token_pair(body)

    async def _post(self, endpoint: Endpoint, path: str, form: dict[str, str]) -> dict[str, Any]:
        started = time.perf_counter()
        try:
            response = await self._http.post(self._url + path, data=form, auth=self._basic)
            body = response.content
        except httpx.HTTPError as error:
            metrics.requests.labels(endpoint.value, type(error).__name__).inc()
            # `from None`: a driver's exception may hold the request, and the request holds the secret.
            raise AllegroUnavailableError(f"no answer: {type(error).__name__}").at(endpoint.value) from None
        metrics.request_seconds.labels(endpoint.value).observe(time.perf_counter() - started)
        metrics.requests.labels(endpoint.value, str(response.status_code)).inc()
        if response.status_code == httpx.codes.OK:
            return _json_object(endpoint, body)
        await self._raise(endpoint, response, body)
        raise AssertionError("unreachable")

    async def _raise(self, endpoint: Endpoint, response: httpx.Response, body: bytes) -> None:
        code = _error_code(body)
        if response.status_code == httpx.codes.UNAUTHORIZED:
            raise InvalidClientError(f"ALLEGRO_CLIENT_ID / ALLEGRO_CLIENT_SECRET not accepted: {describe(body)}")
        if response.status_code == httpx.codes.BAD_REQUEST and code is not None:
            raise _RefusedError(code)
        error = from_answer(
            endpoint.value, response.status_code, body, trace_id=None, retry_after=retry_after(response.headers)
        )
        if isinstance(error, RateLimitedError):
            await self._limits.block(error.retry_after or _DEFAULT_BLOCK)
        raise error


class _RefusedError(Exception):
    """400 with an OAuth error code (RFC 6749, 5.2)."""

    def __init__(self, code: str) -> None:
        super().__init__(code)
        self.code = code


def _poll_error(refusal: _RefusedError) -> OrdersBackupError:
    match refusal.code:
        case "authorization_pending":
            return AuthorizationPendingError(refusal.code)
        case "slow_down":
            return SlowDownError(refusal.code)
        case "access_denied":
            return AuthorizationEndedError("denied", "The seller refused access.")
        case "expired_token":
            return AuthorizationEndedError("expired", "The code expired before the seller decided. Start again.")
        case "invalid_request" | "invalid_grant":
            return AuthorizationEndedError(
                "code_used",
                "Allegro no longer knows this code: it has expired, or was used and its answer was lost. Start again.",
            )
        case _:
            return AuthorizationEndedError(
                "rejected", f"Allegro ended the authorisation ({refusal.code}). Start again."
            )


def _token_pair(body: dict[str, Any]) -> TokenPair:
    try:
        access, refresh = str(body["access_token"]), str(body["refresh_token"])
        expires_in = int(body.get("expires_in") or 0)
    except (KeyError, ValueError) as error:
        raise AllegroUnavailableError(f"token endpoint: the answer lacks {error}").at("token", 200) from None
    claims = _claims(access)
    scopes = str(body.get("scope") or "").split() or [str(scope) for scope in claims.get("scope") or ()]
    # user_name is the seller's numeric id, not the login (#326, #9955).
    seller = claims.get("user_name")
    return TokenPair(
        Secret(access), Secret(refresh), expires_in, tuple(scopes), None if seller is None else str(seller)
    )


def _claims(access_token: str) -> dict[str, Any]:
    """The claims of a JSON web token, unverified: they come from Allegro itself over TLS."""
    parts = access_token.split(".")
    if len(parts) < 2:
        return {}
    try:
        claims = msgspec.json.decode(base64.urlsafe_b64decode(parts[1] + "=" * (-len(parts[1]) % 4)))
    except (msgspec.DecodeError, UnicodeDecodeError, binascii.Error, ValueError):
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


def _error_code(body: bytes) -> str | None:
    try:
        parsed = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    code = parsed.get("error") if isinstance(parsed, dict) else None
    return code if isinstance(code, str) else None


def retry_after(headers: httpx.Headers) -> timedelta | None:
    """The wait that an answer asks for; only the form in seconds (RFC 9110, 10.2.3) is of use to us."""
    value = headers.get("Retry-After", "")
    return timedelta(seconds=int(value)) if value.isascii() and value.isdigit() and len(value) < 7 else None
