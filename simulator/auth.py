"""The authorisation server over HTTP, and the page on which a seller agrees (section 1)."""

from html import escape
from math import ceil
from typing import Final

import msgspec

from simulator import errors
from simulator.errors import PLAIN_JSON
from simulator.faults import Faults
from simulator.limits import Limits
from simulator.oauth import Device, OAuth, OAuthError, Pair
from simulator.settings import Settings
from simulator.wire import Answer, Request
from simulator.world import Seller, World

_DEVICE_GRANT: Final = "urn:ietf:params:oauth:grant-type:device_code"
CONSENT_PATH: Final = "/skojarz-aplikacje"


class Consents:
    """What sellers decide; used by the page and by the control endpoint."""

    def __init__(self, world: World, oauth: OAuth) -> None:
        self._world = world
        self._oauth = oauth

    def decide(self, user_code: str, decision: str, seller: Seller | None) -> Seller | None:
        """The seller (or the next who has not been connected yet) allows or denies; None if nobody waits for it."""
        anybody = self._world.sellers[0] if decision == "deny" else None
        chosen = seller or self._next_free() or anybody
        if chosen is None:
            return None
        device = self._oauth.decide(user_code, decision, chosen.number)
        if device is None:
            return None
        if decision == "allow":
            self._world.connect(chosen)
        return chosen

    def _next_free(self) -> Seller | None:
        return next((seller for seller in self._world.sellers if not seller.connected), None)


class Auth:
    def __init__(self, world: World, oauth: OAuth, faults: Faults, settings: Settings, consents: Consents) -> None:
        self._world = world
        self._oauth = oauth
        self._faults = faults
        self._settings = settings
        self._consents = consents
        self._limits = Limits(0, {"device": settings.device_limit}, settings.limit_minute_seconds)
        self._refused_once: set[str] = set()

    def answer(self, endpoint: str, request: Request) -> Answer:
        if request.method != "POST":
            return errors.wrong_method(request.path)
        client_id = self._oauth.client(request.headers.get("authorization", ""))
        if client_id is None:
            return errors.bad_client()
        parameters = {**request.parameters(), **request.form()}
        return (
            self._device(client_id, request, parameters) if endpoint == "device" else self._token(client_id, parameters)
        )

    def _device(self, client_id: str, request: Request, parameters: dict[str, str]) -> Answer:
        # In the query or in the form, both work (#5140).
        if parameters.get("client_id") != client_id:
            return errors.oauth_error(400, "invalid_request", "Invalid client_id")
        bucket = self._limits.bucket("device", client_id)
        wait = 0.0 if bucket is None else bucket.wait_seconds(self._world.now_us() / 1_000_000)
        if wait:
            answer = errors.too_many_requests()
            if self._settings.retry_after:
                answer.headers.append((b"retry-after", b"%d" % ceil(wait)))
            return answer
        device = self._oauth.start_device(client_id)
        base = f"http://{request.headers.get('host', f'{self._settings.host}:{self._settings.port}')}"
        body = {
            "user_code": device.user_code,
            "device_code": device.device_code,
            "interval": ceil(self._settings.device_interval),
            "verification_uri_complete": f"{base}{CONSENT_PATH}?code={device.user_code}",
            "verification_uri": f"{base}{CONSENT_PATH}",
            "expires_in": int(self._settings.device_lifetime),
        }
        return Answer(200, msgspec.json.encode(body), PLAIN_JSON)

    def _token(self, client_id: str, parameters: dict[str, str]) -> Answer:
        grant = parameters.get("grant_type")
        try:
            if grant == _DEVICE_GRANT:
                return self._tokens(self._oauth.poll(client_id, parameters.get("device_code", "")))
            if grant == "refresh_token":
                return self._refresh(client_id, parameters.get("refresh_token", ""))
        except OAuthError as error:
            return errors.oauth_error(400, error.error, error.description)
        return errors.oauth_error(400, "unsupported_grant_type", f"Unsupported grant type: {grant}")

    def _refresh(self, client_id: str, token: str) -> Answer:
        faults, seller = self._faults, self._oauth.seller_of_refresh(token)
        seller_id = None if seller is None else self._world.sellers[seller].id
        # An unpublished limit per user on how many tokens may be made (#8321, #4763).
        limited = faults.strikes("token_endpoint_429", "token", seller_id)
        if limited is not None:
            return errors.too_many_requests(limited.amount)
        first = seller_id is not None and seller_id not in self._refused_once
        # Not always final (#9592, #3050).
        if first and faults.strikes("invalid_grant_once", "token", seller_id):
            self._refused_once.add(seller_id or "")
            return errors.oauth_error(400, "invalid_grant", f"Invalid refresh token: {token}")
        useless = faults.strikes("unlink", "token", seller_id) is not None
        answer = self._tokens(self._oauth.refresh(client_id, token, useless=useless))
        if faults.strikes("refresh_answer_lost", "token", seller_id):
            answer.cut_at = 0
        return answer

    def _tokens(self, pair: Pair) -> Answer:
        body = {
            "access_token": pair.access,
            "refresh_token": pair.refresh,
            "scope": self._oauth.scopes(),
            "iss": "https://allegro.pl",
            "token_type": "bearer",
            "expires_in": int(self._settings.token_lifetime),
            "jti": pair.jti,
        }
        return Answer(200, msgspec.json.encode(body), PLAIN_JSON)

    def page(self, request: Request) -> Answer:
        """The human side: see who asks, say yes or no."""
        if request.method == "POST":
            return self._decided(request.form())
        code = request.parameters().get("code", "")
        device = self._oauth.user_codes.get(code)
        return _html(self._question(device) if device is not None and device.decision == "pending" else _CODE_FORM)

    def _decided(self, form: dict[str, str]) -> Answer:
        seller = self._world.seller(form.get("seller_id", ""))
        decision = "allow" if form.get("decision") == "allow" else "deny"
        chosen = self._consents.decide(form.get("code", ""), decision, seller)
        if chosen is None:
            return _html("<p>Ten kod już nie działa. / This code does not work any more.</p>", 404)
        word = "połączone / connected" if decision == "allow" else "odmowa / denied"
        return _html(
            f"<p>{escape(chosen.shop.login)}: {word}. Możesz zamknąć to okno. / You may close this window.</p>"
        )

    def _question(self, device: Device) -> str:
        options = "".join(
            f'<option value="{one.id}">{escape(one.shop.login)}{" (✓)" if one.connected else ""}</option>'
            for one in sorted(self._world.sellers[:500], key=lambda one: one.connected)
        )
        return (
            f"<p>Aplikacja <b>{escape(device.client_id)}</b> prosi o dostęp do zamówień. / asks for orders.</p>"
            f'<form method="post" action="{CONSENT_PATH}"><input type="hidden" name="code" value="{device.user_code}">'
            f'<p><label>Konto / account: <select name="seller_id">{options}</select></label></p>'
            '<button name="decision" value="allow">Zezwól / allow</button> '
            '<button name="decision" value="deny">Odmów / deny</button></form>'
        )


_CODE_FORM: Final = (
    f'<form method="get" action="{CONSENT_PATH}"><label>Kod / code: <input name="code" autofocus></label> '
    "<button>Dalej / next</button></form>"
)


def _html(content: str, status: int = 200) -> Answer:
    page = (
        '<!doctype html><html lang="pl"><head><meta charset="utf-8"><title>Symulowane Allegro</title></head>'
        f"<body><h1>Symulowane Allegro</h1>{content}</body></html>"
    )
    return Answer(status, page.encode(), b"text/html; charset=utf-8")
