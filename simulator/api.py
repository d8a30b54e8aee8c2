"""Allegro's order API over HTTP: headers, tokens, limits, then the answer (sections 3 to 8)."""

import re
from itertools import islice
from typing import Final

import msgspec

from simulator import errors, listing, toxic
from simulator.clock import iso
from simulator.dice import Dice
from simulator.errors import API_JSON
from simulator.faults import Fault, Faults
from simulator.identity import is_time_uuid
from simulator.limits import Limits
from simulator.listing import BadQueryError, Page, Row
from simulator.oauth import OAuth
from simulator.settings import Settings
from simulator.stats import Stats
from simulator.wire import Answer, Request
from simulator.world import Order, Seller, World

_MEDIA_TYPE: Final = "application/vnd.allegro.public.v1+json"
# <RegisteredAppName>/<version> (+https://info-page), mandatory since the end of June 2026 (#13126, #13403).
_USER_AGENT: Final = re.compile(r"[A-Za-z0-9._-]+/[A-Za-z0-9.+_-]+ \(\+https?://[^\s()]+\)( .*)?")
_MOST_EVENTS: Final = 1000
_USUAL_EVENTS: Final = 100
_LARGEST_CURSOR: Final = 2**63 - 1
_LIST_PATH: Final = "/order/checkout-forms"


class Api:
    def __init__(self, world: World, oauth: OAuth, faults: Faults, settings: Settings, stats: Stats) -> None:
        self._world = world
        self._oauth = oauth
        self._faults = faults
        self._settings = settings
        self._stats = stats
        self.limits = Limits(
            settings.client_limit,
            {"events": settings.events_limit, "list": settings.list_limit, "detail": settings.detail_limit},
            settings.limit_minute_seconds,
        )
        self._trace = Dice(settings.seed, "trace").roll(0).hex()[:12]
        self._traces = 0

    def answer(self, endpoint: str, request: Request, argument: str) -> Answer:
        answer = self._checked(endpoint, request, argument)
        answer.headers.append((b"trace-id", self.next_trace()))
        return answer

    def next_trace(self) -> bytes:
        self._traces += 1
        return f"{self._traces:08x}-{self._trace[:4]}-4{self._trace[4:7]}-8000-{self._trace}".encode()

    def caller(self, request: Request) -> str | None:
        """The id of the seller whose token a request bears; None if it bears none that is good."""
        authorization = request.headers.get("authorization", "")
        session = self._oauth.owner(authorization[7:]) if authorization[:7].lower() == "bearer " else ""
        return None if isinstance(session, str) else self._world.sellers[session.seller].id

    def _checked(self, endpoint: str, request: Request, argument: str) -> Answer:
        if request.method not in ("GET", "HEAD"):
            return errors.wrong_method(request.path)
        authorization = request.headers.get("authorization", "")
        if authorization[:7].lower() != "bearer ":
            return errors.no_token()
        session = self._oauth.owner(authorization[7:])
        if isinstance(session, str):
            return errors.bad_token(session)
        seller = self._world.sellers[session.seller]
        refusal, remaining = self._limited(endpoint, session.client_id, seller)
        answer = refusal or self._headers_refused(request) or self._reply(endpoint, seller, request, argument)
        if self._settings.rate_headers and remaining is not None:
            answer.headers.append((b"x-ratelimit-remaining", b"%d" % remaining))
        return answer

    def _limited(self, endpoint: str, client_id: str, seller: Seller) -> tuple[Answer | None, int | None]:
        """429 if there were too many requests, and how many more there may be."""
        now = self._world.now_us() / 1_000_000
        self._stats.count_client(client_id)
        client = self.limits.client(client_id)
        wait = client.wait_seconds(now)
        bucket = self.limits.bucket(endpoint, seller.id)
        if not wait and bucket is not None:
            wait = bucket.wait_seconds(now)
        if wait:
            return self.too_many(wait), 0
        left = [client.remaining, None if bucket is None else bucket.remaining]
        return None, min((number for number in left if number is not None), default=None)

    def too_many(self, wait_seconds: float) -> Answer:
        answer = errors.too_many_requests()
        if self._settings.retry_after:
            answer.headers.append((b"retry-after", b"%d" % -(-wait_seconds // 1)))
        return answer

    def _headers_refused(self, request: Request) -> Answer | None:
        if not self._settings.check_headers:
            return None
        accept = request.headers.get("accept")
        if accept is None:
            return errors.no_accept()
        if accept != _MEDIA_TYPE and not _accepts(accept):
            return errors.not_acceptable()
        if not _USER_AGENT.fullmatch(request.headers.get("user-agent", "")):
            return errors.bad_user_agent()
        return None

    def _reply(self, endpoint: str, seller: Seller, request: Request, argument: str) -> Answer:
        match endpoint:
            case "detail":
                return self._detail(seller, argument)
            case "list":
                return self._list(seller, request)
            case "events":
                return self._events(seller, request)
            case "event_stats":
                return self._event_stats(seller)
            case _:
                return _me(seller)

    def _detail(self, seller: Seller, order_id: str) -> Answer:
        if not is_time_uuid(order_id):
            return errors.not_a_time_uuid()
        order = seller.find(order_id)
        if order is None or order.gone_ms is not None or order.form.bought_ms < self._world.oldest_order_ms():
            return errors.order_not_found(order_id)
        return Answer(200, self._body(seller, order, None), API_JSON)

    def _body(self, seller: Seller, order: Order, as_of_ms: int | None) -> bytes:
        body = seller.body(order, as_of_ms)
        fault = self._faults.get("toxic")
        if fault is not None:
            kind = toxic.kind_of(self._faults, seller.form_id(order))
            if kind is not None:
                self._faults.note("toxic")
                return toxic.poison(kind, body, fault)
        return body

    def _list(self, seller: Seller, request: Request) -> Answer:
        try:
            query = listing.read_query(request.parameters())
        except BadQueryError as error:
            return errors.api_error(error.status, error.code, error.message, _LIST_PATH)
        lag = self._faults.get("list_lag_seconds")
        as_of_ms = None if lag is None else self._world.now_ms() - round(lag.amount * 1000)
        oldest_ms = self._world.oldest_order_ms()
        page = listing.page(seller, query, oldest_ms, as_of_ms)
        if self._faults.strikes("list_slip", seller=seller.id):
            page = self._slipped(seller, page, listing.page(seller, query.longer(), oldest_ms, as_of_ms))
        if lag is not None:
            self._faults.note("list_lag_seconds")
        rows, total = self._falsified(seller, page)
        # A past order shows the list's delay only once something has happened to it in this run.
        bodies = [self._body(seller, listing.row_order(seller, row), as_of_ms) for row in rows]
        body = b'{"checkoutForms":[%b],"count":%d,"totalCount":%d}' % (b",".join(bodies), len(bodies), total)
        return Answer(200, body, API_JSON)

    def _slipped(self, seller: Seller, page: Page, longer: Page) -> Page:
        """A row is left out, and the page is filled up behind it: nothing but the next page's count tells (#3985)."""
        if not page.rows or len(longer.rows) == len(page.rows):
            return page
        rows = list(longer.rows)
        left_out = rows.pop(int(self._faults.rolls("list_slip").fraction() * len(page.rows)))
        seller.hidden.add((left_out.number, left_out.live))
        return Page(rows, page.total)

    def _falsified(self, seller: Seller, page: Page) -> tuple[list[Row], int]:
        """What list_empty, list_repeat, list_skip and total_count_lies make of a page (#3740, #3985, #12322)."""
        faults, rows, total = self._faults, list(page.rows), page.total
        if faults.strikes("list_empty", seller=seller.id):
            return [], 0
        if rows and faults.strikes("list_repeat", seller=seller.id):
            place = int(faults.rolls("list_repeat").fraction() * len(rows))
            rows = [*rows[: place + 1], *rows[place : len(rows) - 1]] if len(rows) > 1 else rows * 2
        if rows and faults.strikes("list_skip", seller=seller.id):
            del rows[int(faults.rolls("list_skip").fraction() * len(rows))]
        if rows != page.rows:
            seller.hidden.update((row.number, row.live) for row in set(page.rows).difference(rows))
        lies = faults.strikes("total_count_lies", seller=seller.id)
        if lies is not None:
            total = max(0, total + _lie(faults, lies))
        return rows, total

    def _events(self, seller: Seller, request: Request) -> Answer:
        parameters = request.parameters()
        cursor = _whole(parameters.get("from", "0"), 0, _LARGEST_CURSOR)
        if cursor is None:
            return errors.api_error(422, "VALIDATION_ERROR", "must be a non-negative number", "getOrderEvents.from")
        limit = _whole(parameters.get("limit", str(_USUAL_EVENTS)), 1, _MOST_EVENTS)
        if limit is None:
            text = f"must be between 1 and {_MOST_EVENTS}"
            return errors.api_error(422, "VALIDATION_ERROR", text, "getOrderEvents.limit")
        # Comma-joined or repeated (#3875); `type[]` is another name and so ignored.
        types = {one for name, value in request.all_parameters() if name == "type" for one in value.split(",") if one}
        # Any number will do; what is older than 60 days is passed over in silence.
        start = max(cursor, self._world.oldest_event_us() - 1)
        entries = seller.journal.after(start, types.__contains__ if types else None)
        page = list(islice(entries, limit))
        if self._settings.note_served:
            new = (event_id for event_id, _ in page if event_id > self._world.epoch_ms * 1000)
            self._stats.note_served(seller.id, new, self._world.now_us())
        bodies = [seller.event_body(event_id, entry) for event_id, entry in page]
        return Answer(200, b'{"events":[%b]}' % b",".join(bodies), API_JSON)

    def _event_stats(self, seller: Seller) -> Answer:
        latest = seller.journal.latest()
        if self._faults.strikes("event_stats_null", "event_stats", seller.id):
            latest = None
        if latest is None or latest[0] < self._world.oldest_event_us():
            return Answer(200, b'{"latestEvent":null}', API_JSON)
        event_id, entry = latest
        occurred_ms = seller.order(entry.order, entry.live).steps[entry.place][1]
        event = {"id": str(event_id), "occurredAt": iso(occurred_ms)}
        return Answer(200, msgspec.json.encode({"latestEvent": event}), API_JSON)


def _accepts(accept: str) -> bool:
    return any(part.partition(";")[0].strip() == _MEDIA_TYPE for part in accept.split(","))


def _whole(text: str, least: int, most: int) -> int | None:
    """The number, or None if it is none or out of range."""
    if not (text.isascii() and text.isdigit() and len(text) < 25):
        return None
    number = int(text)
    return number if least <= number <= most else None


def _lie(faults: Faults, lies: Fault) -> int:
    most = int(lies.amount)
    return int(faults.rolls("total_count_lies").fraction() * (2 * most + 1)) - most


def _me(seller: Seller) -> Answer:
    shop = seller.shop
    body = {
        "id": seller.id,
        "login": shop.login,
        "firstName": shop.first_name,
        "lastName": shop.last_name,
        "email": f"{shop.login}@example.com",
        "baseMarketplace": {"id": "allegro-pl"},
        "company": {"name": f"{shop.last_name} Handel", "taxId": f"52{seller.id}"},
        "features": ["one"],
    }
    return Answer(200, msgspec.json.encode(body), API_JSON)
