"""The authorisation server: device codes, consent, rotating tokens (sections 1 and 2). No HTTP here.

Tokens are shaped like Allegro's JWTs and carry the same claims; they are looked up, not verified, and the part where
the signature would be is noise after a mark (`CANARY`).
"""

import base64
import binascii
from collections.abc import Callable
from hashlib import blake2b, shake_256
from itertools import count, islice
from typing import Final

import msgspec

from simulator.clock import SECOND_US
from simulator.settings import Settings

# In every token and device code, so that one that comes out where it should not be can be found by a plain search.
CANARY: Final = "LeakCanary7Q"
_ORDERS_SCOPES: Final = "allegro:api:orders:read allegro:api:profile:read"
_ALL_SCOPES: Final = " ".join(
    f"allegro:api:{name}"
    for name in (
        "sale:offers:read", "sale:offers:write", "sale:settings:read", "sale:settings:write", "orders:read",
        "orders:write", "profile:read", "profile:write", "payments:read", "payments:write", "shipments:read",
        "shipments:write", "fulfillment:read", "fulfillment:write", "affiliate:read", "affiliate:write", "billing:read",
        "disputes", "campaigns", "bids", "ads", "ads:read", "ads:write", "ratings", "messaging",
    )
)  # fmt: skip


class OAuthError(Exception):
    """An answer with status 400."""

    def __init__(self, error: str, description: str) -> None:
        super().__init__(error)
        self.error = error
        self.description = description


class Device(msgspec.Struct, tag="device", array_like=True):
    """A device code; `decision` is what the seller said."""

    device_code: str
    user_code: str
    client_id: str
    started_us: int
    decision: str = "pending"
    seller: int | None = None
    used: bool = False
    last_poll_us: int = 0


class Session(msgspec.Struct, tag="session", array_like=True):
    """One consent of a seller and all tokens that came of it."""

    number: int
    seller: int
    client_id: str
    started_us: int
    alive: bool = True
    # The seller un-linked the app, yet refreshing seems to work (#13133).
    useless: bool = False


class Pair(msgspec.Struct, tag="pair", array_like=True):
    """Tokens that were issued together; `spent_us` is when the refresh token was first used."""

    session: int
    access: str
    refresh: str
    issued_us: int
    spent_us: int | None = None
    access_alive: bool = True
    jti: str = ""


Record = Device | Session | Pair


class OAuth:
    def __init__(self, settings: Settings, now_us: Callable[[], int]) -> None:
        self._settings = settings
        self._now_us = now_us
        self._clients = dict(pair.split(":", 1) for pair in settings.client)
        self._numbers = count(1)
        # Codes and tokens must differ between starts, or a restarted server would take an old token for a new one.
        self._noise = f"{settings.seed} {now_us()}"
        self.devices: dict[str, Device] = {}
        self.user_codes: dict[str, Device] = {}
        self.sessions: dict[int, Session] = {}
        self._by_access: dict[str, Pair] = {}
        self._by_refresh: dict[str, Pair] = {}
        self.listeners: list[Callable[[Record], None]] = []
        self.tokens_issued = 0
        self.refreshes: dict[int, int] = {}

    # Clients

    def client(self, authorization: str) -> str | None:
        """The client id of a Basic header; None if it is missing, malformed or wrong."""
        scheme, _, credentials = authorization.partition(" ")
        if scheme.lower() != "basic":
            return None
        try:
            client_id, colon, secret = base64.b64decode(credentials, validate=True).decode().partition(":")
        except (binascii.Error, UnicodeDecodeError):
            return None
        if not (client_id and colon and secret):
            return None
        if self._clients and self._clients.get(client_id) != secret:
            return None
        return client_id

    # Device codes

    def start_device(self, client_id: str) -> Device:
        noise = self._digest("device")
        device = Device(
            device_code=(CANARY + base64.b64encode(noise, altchars=b"xY").decode())[:32],
            user_code=base64.b32encode(noise).decode().lower()[-17:-8],
            client_id=client_id,
            started_us=self._now_us(),
        )
        self._save(device)
        return device

    def decide(self, user_code: str, decision: str, seller: int | None) -> Device | None:
        """The seller's answer; None if nobody waits for it."""
        device = self.user_codes.get(user_code)
        if device is None or device.decision != "pending" or self._is_over(device):
            return None
        device.decision, device.seller = decision, seller
        self._save(device)
        return device

    def pending(self) -> list[Device]:
        return [one for one in self.devices.values() if one.decision == "pending" and not self._is_over(one)]

    def poll(self, client_id: str, device_code: str) -> Pair:
        """Tokens, once, if the seller agreed; raises OAuthError with what Allegro says otherwise."""
        device, now_us = self.devices.get(device_code), self._now_us()
        # Unknown, used and expired codes get the same answer (#11017, #11373); `expired_token` was never seen.
        if device is None or device.client_id != client_id or device.used or self._is_over(device):
            raise OAuthError("invalid_request", "Invalid device code")
        too_early = now_us - device.last_poll_us < self._settings.device_interval * SECOND_US * 0.95
        device.last_poll_us = now_us
        # The bodies of slow_down and access_denied are not known; the codes are those of RFC 8628.
        if too_early:
            raise OAuthError("slow_down", "Polling too frequently.")
        if device.decision == "pending":
            raise OAuthError("authorization_pending", "User has not authorized the device code yet.")
        device.used = True
        self._save(device)
        if device.decision != "allow" or device.seller is None:
            raise OAuthError("access_denied", "User denied access")
        session = self._open_session(device.seller, client_id)
        return self._issue(session)

    def _is_over(self, device: Device) -> bool:
        return self._now_us() - device.started_us > self._settings.device_lifetime * SECOND_US

    # Sessions and tokens

    def refresh(self, client_id: str, token: str, *, useless: bool = False) -> Pair:
        """A new pair. The old refresh token works again for a while, then never (#4136, #8321)."""
        pair, now_us = self._by_refresh.get(token), self._now_us()
        session = None if pair is None else self.sessions[pair.session]
        if pair is None or session is None or not self._accepts(pair, session, client_id, now_us):
            raise OAuthError("invalid_grant", f"Invalid refresh token: {token}")
        if pair.spent_us is None:
            pair.spent_us = now_us
            if self._settings.old_access_dies:
                pair.access_alive = False
            self._save(pair)
        if useless and not session.useless:
            session.useless = True
            self._save(session)
        self.refreshes[session.seller] = self.refreshes.get(session.seller, 0) + 1
        return self._issue(session)

    def _accepts(self, pair: Pair, session: Session, client_id: str, now_us: int) -> bool:
        spent_for = 0 if pair.spent_us is None else now_us - pair.spent_us
        return (
            session.alive
            and session.client_id == client_id
            and spent_for <= self._settings.refresh_grace * SECOND_US
            and now_us - pair.issued_us <= self._settings.refresh_lifetime * SECOND_US
        )

    def owner(self, access_token: str) -> Session | str:
        """Whose token it is, or the description of a 401."""
        pair = self._by_access.get(access_token)
        if pair is None:
            # A token of ours that nobody remembers has expired; anything else is no token at all (section 2).
            known_shape = access_token.count(".") == 2 and access_token.startswith(TOKEN_HEADER)
            return f"Access token expired: {access_token}" if known_shape else "Cannot convert access token to JSON"
        session = self.sessions[pair.session]
        expires_us = pair.issued_us + self._settings.token_lifetime * SECOND_US
        alive = session.alive and not session.useless and pair.access_alive
        if not alive or self._now_us() >= expires_us:
            return f"Access token expired: {access_token}"
        return session

    def expire_access(self, seller: int | None = None) -> int:
        """End access tokens now, as after a change of password: `exp` stays in the future (#1627)."""
        ended = 0
        for pair in self._by_access.values():
            if pair.access_alive and seller in (None, self.sessions[pair.session].seller):
                pair.access_alive = False
                self._save(pair)
                ended += 1
        return ended

    def revoke(self, seller: int, *, refresh_works: bool) -> int:
        """The seller un-links the app: refreshing fails, or works and gives useless tokens (#13133)."""
        ended = 0
        for session in self.sessions.values():
            if session.seller == seller and session.alive and not session.useless:
                session.useless, session.alive = refresh_works, refresh_works
                self._save(session)
                ended += 1
        return ended

    def has_session(self, seller: int) -> bool:
        return any(one.seller == seller and one.alive and not one.useless for one in self.sessions.values())

    def seller_of_refresh(self, token: str) -> int | None:
        pair = self._by_refresh.get(token)
        return None if pair is None else self.sessions[pair.session].seller

    def scopes(self) -> str:
        return _ALL_SCOPES if self._settings.long_tokens else _ORDERS_SCOPES

    def _open_session(self, seller: int, client_id: str) -> Session:
        session = Session(len(self.sessions) + 1, seller, client_id, self._now_us())
        self._save(session)
        # More than 20 sessions: the oldest dies (#11815).
        mine = [one for one in self.sessions.values() if one.seller == seller and one.alive]
        if self._settings.session_limit:
            for oldest in mine[: -self._settings.session_limit]:
                oldest.alive = False
                self._save(oldest)
        return session

    def _issue(self, session: Session) -> Pair:
        now_us = self._now_us()
        pair = Pair(session.number, "", "", now_us)
        claims = {
            "user_name": str(110_000_001 + session.seller),
            "scope": self.scopes().split(),
            "allegro_api": True,
            "iss": "https://allegro.pl",
            "client_id": session.client_id,
        }
        pair.jti = jti = self._jti()
        pair.access = self._token({"exp": self._expiry(now_us, self._settings.token_lifetime), "jti": jti, **claims})
        pair.refresh = self._token(
            {"exp": self._expiry(now_us, self._settings.refresh_lifetime), "jti": self._jti(), "ati": jti, **claims}
        )
        self.tokens_issued += 1
        self._forget_old(now_us)
        self._save(pair)
        return pair

    def _forget_old(self, now_us: int) -> None:
        """Drop pairs that work no more, a few at each call; an answer about them stays the same."""
        for refresh in list(islice(self._by_refresh, 4)):
            pair = self._by_refresh.pop(refresh)
            spent = pair.spent_us is not None and now_us - pair.spent_us > self._settings.refresh_grace * SECOND_US
            if spent and now_us - pair.issued_us >= self._settings.token_lifetime * SECOND_US:
                self._by_access.pop(pair.access, None)
            else:
                # To the end of the queue.
                self._by_refresh[refresh] = pair

    @staticmethod
    def _expiry(now_us: int, lifetime: float) -> int:
        return int(now_us / SECOND_US + lifetime)

    def _token(self, claims: dict[str, object]) -> str:
        payload = _segment(msgspec.json.encode(claims))
        signature = _segment(shake_256(f"{self._noise}{payload}".encode()).digest(256))
        return f"{TOKEN_HEADER}.{payload}.{CANARY}{signature}"

    def _jti(self) -> str:
        digits = self._digest("jti").hex()
        return f"{digits[:8]}-{digits[8:12]}-4{digits[13:16]}-8{digits[17:20]}-{digits[20:32]}"

    def _digest(self, purpose: str) -> bytes:
        return blake2b(f"{self._noise} {purpose} {next(self._numbers)}".encode(), digest_size=32).digest()

    # Records

    def _save(self, record: Record) -> None:
        self.restore(record)
        for listener in self.listeners:
            listener(record)

    def restore(self, record: Record) -> None:
        """Take a record in, new or changed; also those that another process wrote."""
        match record:
            case Device():
                self.devices[record.device_code] = self.user_codes[record.user_code] = record
            case Session():
                self.sessions[record.number] = record
            case Pair():
                self._by_access[record.access] = self._by_refresh[record.refresh] = record


def _segment(content: bytes) -> str:
    return base64.urlsafe_b64encode(content).rstrip(b"=").decode()


TOKEN_HEADER: Final = _segment(msgspec.json.encode({"alg": "RS256", "typ": "JWT"}))
