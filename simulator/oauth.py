"""Who may do what: device codes, consent, tokens. No HTTP; errors are the bodies that Allegro answers with.

Rules and texts: allegro-api.md, sections 1 and 2. State is held in records that `dump` and `load` carry over a restart.
"""

import base64
import binascii
import hmac
from hashlib import blake2b
from typing import Any, Final, Literal

import msgspec

from simulator.clock import SECOND_US, Clock
from simulator.dice import Dice
from simulator.identity import seller_id
from simulator.settings import Settings

DEVICE_GRANT: Final = "urn:ietf:params:oauth:grant-type:device_code"
REFRESH_GRANT: Final = "refresh_token"
ORDERS_SCOPE: Final = "allegro:api:orders:read"
PROFILE_SCOPE: Final = "allegro:api:profile:read"

_SCOPES: Final = (
    ORDERS_SCOPE, "allegro:api:orders:write", PROFILE_SCOPE, "allegro:api:sale:offers:read",
)  # fmt: skip
# As many as an application that registered everything has: its tokens are longer than 1 kB (#3015).
_MANY_SCOPES: Final = (
    *_SCOPES, "allegro:api:sale:offers:write", "allegro:api:billing:read", "allegro:api:disputes",
    "allegro:api:ads:write", "allegro:api:sale:settings:write", "allegro:api:sale:settings:read",
    "allegro:api:ads:read", "allegro:api:fulfillment:read", "allegro:api:profile:write",
    "allegro:api:fulfillment:write", "allegro:api:campaigns", "allegro:api:affiliate:write", "allegro:api:bids",
    "allegro:api:shipments:write", "allegro:api:ads", "allegro:api:payments:write", "allegro:api:ratings",
    "allegro:api:affiliate:read", "allegro:api:payments:read", "allegro:api:shipments:read", "allegro:api:messaging",
)  # fmt: skip
_CODE_LETTERS: Final = "abcdefghijkmnpqrstuvwxyz23456789"
_DEVICE_LETTERS: Final = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789"
# Polls come a little early now and then; only clear haste is told to slow down.
_EARLY_POLL_SHARE: Final = 0.8

Decision = Literal["accept", "deny"]
# What a refresh does after the seller has un-linked the application: Allegro says it fails, users saw it succeed with
# an access token that is of no use (#13133, #1549).
UnlinkMode = Literal["refresh_fails", "useless_tokens"]


class OAuthError(Exception):
    """An answer of the form `{"error", "error_description"}`."""

    def __init__(self, status: int, error: str, description: str) -> None:
        super().__init__(f"{status} {error}: {description}")
        self.status = status
        self.error = error
        self.description = description

    @property
    def body(self) -> bytes:
        return msgspec.json.encode({"error": self.error, "error_description": self.description})


class DeviceCode(msgspec.Struct, kw_only=True):
    """A started device flow."""

    device_code: str
    user_code: str
    client_id: str
    scopes: tuple[str, ...]
    expires_us: int
    polled_us: int | None = None
    decision: Decision | None = None
    seller: int | None = None
    used: bool = False


class Session(msgspec.Struct, kw_only=True):
    """What one consent opened: every pair of tokens belongs to one."""

    id: str
    seller: int
    client_id: str
    scopes: tuple[str, ...]
    ended: bool = False
    # The seller removed the application: no access token of the session is of use any more.
    unlinked: UnlinkMode | None = None


class AccessToken(msgspec.Struct, kw_only=True):
    session: str
    expires_us: int


class RefreshToken(msgspec.Struct, kw_only=True):
    session: str
    expires_us: int
    first_used_us: int | None = None


class TokenPair(msgspec.Struct, frozen=True):
    """The answer to a successful token request; the fields in Allegro's order."""

    access_token: str
    refresh_token: str
    scope: str
    iss: str
    token_type: str
    expires_in: int
    jti: str


class Memory(msgspec.Struct):
    """All state of the authorisation server."""

    issued: int = 0
    device_codes: dict[str, DeviceCode] = {}
    sessions: dict[str, Session] = {}
    access_tokens: dict[str, AccessToken] = {}
    refresh_tokens: dict[str, RefreshToken] = {}
    refreshes: dict[str, int] = {}
    consents: int = 0


class AuthorizationServer:
    """Issues and checks tokens for all sellers of the settings."""

    def __init__(self, settings: Settings, clock: Clock, issuer: str) -> None:
        self._settings = settings
        self._issuer = issuer
        self._clock = clock
        self._memory = Memory()
        self._clients = dict(client.split(":", 1) for client in settings.client)
        self._scopes = _MANY_SCOPES if settings.long_tokens else _SCOPES
        self._dice = Dice(settings.seed, "oauth")
        self._key = self._dice.roll(0)

    # -- the application -----------------------------------------------------------------------------------------

    def check_client(self, authorization: str | None) -> str:
        """The client id of a Basic header; raises OAuthError 401 (`invalid_client`)."""
        scheme, _, encoded = (authorization or "").partition(" ")
        try:
            client, separator, secret = base64.b64decode(encoded, validate=True).decode().partition(":")
        except (binascii.Error, UnicodeDecodeError):
            client = separator = secret = ""
        accepted = bool(scheme.lower() == "basic" and separator and client)
        if self._clients:
            accepted = accepted and self._clients.get(client) == secret
        if not accepted:
            raise OAuthError(401, "invalid_client", "Client authentication failed")
        return client

    # -- device flow ---------------------------------------------------------------------------------------------

    def start_device_flow(self, client_id: str, scope: str | None) -> DeviceCode:
        now_us = self._clock.now_us()
        code = DeviceCode(
            device_code=self._name(_DEVICE_LETTERS, 32),
            user_code=self._name(_CODE_LETTERS, 9),
            client_id=client_id,
            scopes=tuple(scope.split()) if scope else self._scopes,
            expires_us=now_us + round(self._settings.device_lifetime * SECOND_US),
        )
        self._memory.device_codes[code.device_code] = code
        return code

    def waiting(self) -> list[DeviceCode]:
        """Device codes that wait for a seller's decision, oldest first."""
        now_us = self._clock.now_us()
        return [
            code
            for code in self._memory.device_codes.values()
            if code.decision is None and not code.used and code.expires_us > now_us
        ]

    def decide(self, user_code: str, decision: Decision, seller: int | None = None) -> int | None:
        """The seller's answer; without `seller`, the next one in turn. Returns the seller, None if the code is unknown.

        Raises ValueError for a seller that does not exist.
        """
        code = next((code for code in self.waiting() if code.user_code == user_code), None)
        if code is None:
            return None
        if seller is None:
            seller = self._memory.consents % self._settings.sellers
        if not 0 <= seller < self._settings.sellers:
            raise ValueError(f"there is no seller {seller_id(seller)}")
        self._memory.consents += 1
        code.decision, code.seller = decision, seller
        return seller

    def poll(self, client_id: str, device_code: str) -> TokenPair:
        """Exchange a device code, once (#11373); raises OAuthError, always 400."""
        now_us = self._clock.now_us()
        code = self._memory.device_codes.get(device_code)
        if code is None or code.used or code.client_id != client_id or code.expires_us <= now_us:
            raise OAuthError(400, "invalid_request", "Invalid device code")
        if code.decision is None:
            before_us, code.polled_us = code.polled_us, now_us
            interval_us = self._settings.device_interval * SECOND_US * _EARLY_POLL_SHARE
            if before_us is not None and now_us - before_us < interval_us:
                raise OAuthError(400, "slow_down", "Polling too frequently.")
            raise OAuthError(400, "authorization_pending", "User has not authorized the device code yet.")
        if code.decision == "deny":
            raise OAuthError(400, "access_denied", "User denied access.")
        assert code.seller is not None  # noqa: S101 - decided codes have one
        code.used = True
        session = Session(
            id=self._name(_DEVICE_LETTERS, 16), seller=code.seller, client_id=client_id, scopes=code.scopes
        )
        self._memory.sessions[session.id] = session
        self._end_oldest_sessions(code.seller)
        return self._issue(session, now_us)

    def _end_oldest_sessions(self, seller: int) -> None:
        """The 21st session kills the oldest (#11815)."""
        alive = [one for one in self._memory.sessions.values() if one.seller == seller and not one.ended]
        limit = self._settings.session_limit
        for session in alive[:-limit] if limit else []:
            session.ended = True

    # -- tokens --------------------------------------------------------------------------------------------------

    def refresh(self, client_id: str, refresh_token: str) -> TokenPair:
        """A new pair; the spent token works for `refresh_grace` seconds more (#4136). Raises OAuthError 400."""
        now_us = self._clock.now_us()
        token = self._memory.refresh_tokens.get(refresh_token)
        session = None if token is None else self._memory.sessions[token.session]
        if token is None or session is None or not self._is_refreshable(token, session, client_id, now_us):
            raise self.invalid_grant(refresh_token)
        if token.first_used_us is None:
            token.first_used_us = now_us
        if self._settings.old_access_dies:
            self._expire_session(session.id)
        seller = seller_id(session.seller)
        self._memory.refreshes[seller] = self._memory.refreshes.get(seller, 0) + 1
        return self._issue(session, now_us)

    def _is_refreshable(self, token: RefreshToken, session: Session, client_id: str, now_us: int) -> bool:
        if session.ended or session.client_id != client_id or token.expires_us <= now_us:
            return False
        if session.unlinked == "refresh_fails":
            return False
        grace_us = self._settings.refresh_grace * SECOND_US
        return token.first_used_us is None or now_us - token.first_used_us < grace_us

    @staticmethod
    def invalid_grant(refresh_token: str) -> OAuthError:
        """The text echoes the token (#2881)."""
        return OAuthError(400, "invalid_grant", f"Invalid refresh token: {refresh_token}")

    def seller_of_refresh_token(self, refresh_token: str) -> int | None:
        token = self._memory.refresh_tokens.get(refresh_token)
        return None if token is None else self._memory.sessions[token.session].seller

    def check_bearer(self, authorization: str | None) -> Session:
        """The session of an API call; raises OAuthError 401 with the texts of section 2."""
        scheme, _, token = (authorization or "").partition(" ")
        if scheme.lower() != "bearer" or not token:
            raise OAuthError(401, "unauthorized", "Full authentication is required to access this resource")
        found = self._memory.access_tokens.get(token)
        if found is None:
            if self._is_ours(token):
                raise OAuthError(401, "invalid_token", f"Access token expired: {token}")
            raise OAuthError(401, "invalid_token", "Cannot convert access token to JSON")
        session = self._memory.sessions[found.session]
        if found.expires_us <= self._clock.now_us() or session.ended or session.unlinked:
            raise OAuthError(401, "invalid_token", f"Access token expired: {token}")
        return session

    @property
    def refreshes(self) -> dict[str, int]:
        """Successful refreshes by seller id."""
        return self._memory.refreshes

    def forget_refreshes(self) -> None:
        self._memory.refreshes = {}

    def connected_sellers(self) -> list[int]:
        """Sellers with a session that works, in order."""
        return sorted({one.seller for one in self._memory.sessions.values() if not one.ended and not one.unlinked})

    # -- what happens to sellers ---------------------------------------------------------------------------------

    def expire_access_tokens(self, seller: int | None = None) -> int:
        """All access tokens, or one seller's, are expired at once; refreshing still works."""
        return sum(
            self._expire_session(session.id)
            for session in self._memory.sessions.values()
            if seller is None or session.seller == seller
        )

    def _expire_session(self, session: str) -> int:
        now_us = self._clock.now_us()
        alive = [
            token
            for token in self._memory.access_tokens.values()
            if token.session == session and token.expires_us > now_us
        ]
        for token in alive:
            token.expires_us = now_us
        return len(alive)

    def revoke(self, seller: int) -> int:
        """Password change, log-out everywhere, sales block (#11815): every session of the seller ends."""
        alive = [one for one in self._memory.sessions.values() if one.seller == seller and not one.ended]
        for session in alive:
            session.ended = True
        return len(alive)

    def unlink(self, seller: int, mode: UnlinkMode) -> int:
        """The seller removes the application; `mode` says what a refresh does then."""
        alive = [one for one in self._memory.sessions.values() if one.seller == seller and not one.ended]
        for session in alive:
            session.unlinked = mode
        return len(alive)

    # -- making tokens -------------------------------------------------------------------------------------------

    def _issue(self, session: Session, now_us: int) -> TokenPair:
        self._forget_expired(now_us)
        self._memory.issued += 1
        jti = self._jti()
        seconds = self._settings.token_lifetime
        expires_us = now_us + round(seconds * SECOND_US)
        refresh_expires_us = now_us + round(self._settings.refresh_lifetime * SECOND_US)
        claims = {
            "user_name": seller_id(session.seller),
            "scope": session.scopes,
            "allegro_api": True,
            "iss": self._issuer,
            "exp": expires_us // SECOND_US,
            "jti": jti,
            "client_id": session.client_id,
        }
        access = self._sign(claims)
        refresh = self._sign({**claims, "ati": jti, "jti": self._jti(), "exp": refresh_expires_us // SECOND_US})
        self._memory.access_tokens[access] = AccessToken(session=session.id, expires_us=expires_us)
        self._memory.refresh_tokens[refresh] = RefreshToken(session=session.id, expires_us=refresh_expires_us)
        return TokenPair(access, refresh, " ".join(session.scopes), self._issuer, "bearer", max(int(seconds), 1), jti)

    def _forget_expired(self, now_us: int) -> None:
        """Tokens expire in the order of their making, save those that were expired by hand; these go later."""
        tokens = self._memory.access_tokens
        for token in [token for token, found in list(tokens.items())[:8] if found.expires_us <= now_us]:
            del tokens[token]
        grace_us = int(self._settings.refresh_grace * SECOND_US)
        spent = self._memory.refresh_tokens
        for name, found in list(spent.items())[:8]:
            used_us = found.first_used_us
            if found.expires_us <= now_us or (used_us is not None and used_us + grace_us <= now_us):
                del spent[name]

    def _sign(self, claims: dict[str, Any]) -> str:
        head = f"{_base64({'alg': 'RS256', 'typ': 'JWT'})}.{_base64(claims)}"
        return f"{head}.{self._signature(head)}"

    def _signature(self, head: str) -> str:
        """342 letters, as an RS256 signature has, though nobody can check it without the simulator's seed."""
        digests = b"".join(blake2b(head.encode(), key=self._key, salt=bytes([part])).digest() for part in range(4))
        return base64.urlsafe_b64encode(digests).decode().rstrip("=")

    def _is_ours(self, token: str) -> bool:
        head, _, signature = token.rpartition(".")
        return hmac.compare_digest(self._signature(head).encode(), signature.encode())

    def _jti(self) -> str:
        digits = self._dice.roll(self._next()).hex()
        return f"{digits[:8]}-{digits[8:12]}-4{digits[13:16]}-a{digits[17:20]}-{digits[20:32]}"

    def _name(self, letters: str, length: int) -> str:
        """A name that differs from all others of a run, and from those of other runs by the time."""
        state = blake2b(self._dice.roll(self._next()), key=str(self._clock.now_us()).encode(), digest_size=length)
        return "".join(letters[byte % len(letters)] for byte in state.digest())

    def _next(self) -> int:
        self._memory.issued += 1
        return self._memory.issued

    # -- over a restart ------------------------------------------------------------------------------------------

    def dump(self) -> Any:
        return msgspec.to_builtins(self._memory)

    def load(self, dumped: Any) -> None:
        self._memory = msgspec.convert(dumped, Memory)


def _base64(value: object) -> str:
    return base64.urlsafe_b64encode(msgspec.json.encode(value)).decode().rstrip("=")
