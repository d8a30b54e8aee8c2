"""The control endpoints under `/_sim/`: consent, live activity, faults, the ledger. JSON, without a password."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final, TypeVar

import msgspec

from simulator import timeline
from simulator.auth import Consents
from simulator.clock import iso, parse_iso
from simulator.faults import Faults, UnknownFaultError
from simulator.ledger import Ledger
from simulator.live import Live
from simulator.oauth import OAuth
from simulator.stats import Stats
from simulator.wire import Answer, Request
from simulator.world import Order, Seller, World, can_merge

PREFIX: Final = "/_sim/"
_MOST_ORDERS_AT_ONCE: Final = 1_000_000

Body = TypeVar("Body")


class ControlError(Exception):
    """A request that makes no sense, in words."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.message = message


class ConsentBody(msgspec.Struct, forbid_unknown_fields=True):
    user_code: str | None = None  # without: the one that was asked for last
    seller_id: str | None = None
    decision: str = "allow"


class LiveBody(msgspec.Struct, forbid_unknown_fields=True):
    orders: int
    rate: float = 1.0
    events_per_order: int | None = None
    sellers: list[str] | None = None
    step_seconds: float | None = None
    history: float | None = None


class OrdersBody(msgspec.Struct, forbid_unknown_fields=True):
    """`steps`: how many steps each takes at once; `bought_at`: all at that time; `buyer`: all by that one."""

    seller_id: str
    count: int = 1
    steps: int = 0
    bought_at: str | None = None
    buyer: int | None = None


class FulfillmentBody(msgspec.Struct, forbid_unknown_fields=True):
    status: str


class MergeBody(msgspec.Struct, forbid_unknown_fields=True):
    seller_id: str
    order_ids: list[str]


class SellerBody(msgspec.Struct, forbid_unknown_fields=True):
    """`refresh`: "fails", or "works" and gives tokens that are useless."""

    seller_id: str | None = None
    refresh: str = "fails"


class Control:
    def __init__(
        self,
        world: World,
        oauth: OAuth,
        faults: Faults,
        stats: Stats,
        consents: Consents,
        live: Live,
    ) -> None:
        self._world = world
        self._oauth = oauth
        self._faults = faults
        self._stats = stats
        self._consents = consents
        self._live = live
        self._ledger = Ledger(world, faults)
        self._routes: dict[tuple[str, str], Callable[[Request], Answer]] = {
            ("GET", "health"): self._get_health,
            ("GET", "device-codes"): self._get_device_codes,
            ("POST", "consent"): self._post_consent,
            ("GET", "sellers"): self._get_sellers,
            ("GET", "faults"): self._get_faults,
            ("PUT", "faults"): self._put_faults,
            ("PATCH", "faults"): self._patch_faults,
            ("DELETE", "faults"): self._delete_faults,
            ("GET", "stats"): self._get_stats,
            ("POST", "stats/reset"): self._post_stats_reset,
            ("GET", "served"): self._get_served,
            ("GET", "live"): self._get_live,
            ("POST", "live"): self._post_live,
            ("POST", "live/stop"): self._post_live_stop,
            ("POST", "orders"): self._post_orders,
            ("POST", "merge"): self._post_merge,
            ("POST", "tokens/expire"): self._post_tokens_expire,
            ("POST", "tokens/revoke"): self._post_tokens_revoke,
            ("GET", "ledger/orders"): self._get_ledger_orders,
            ("GET", "ledger/events"): self._get_ledger_events,
            ("GET", "ledger/summary"): self._get_ledger_summary,
        }

    def answer(self, request: Request) -> Answer:
        name = request.path.removeprefix(PREFIX).rstrip("/")
        try:
            route = self._routes.get((request.method, name))
            if route is not None:
                return route(request)
            return self._order_route(request, name.split("/"))
        except (ControlError, UnknownFaultError) as error:
            status = error.status if isinstance(error, ControlError) else 422
            return _json({"error": str(error)}, status)

    def _order_route(self, request: Request, parts: Sequence[str]) -> Answer:
        """`orders/{id}/advance` and `orders/{id}/fulfillment`."""
        if request.method != "POST" or len(parts) != 3 or parts[0] != "orders":
            raise ControlError(404, f"no such control endpoint: {request.method} {request.path}")
        seller, order = self._order(parts[1])
        if parts[2] == "advance":
            return self._advance(seller, order)
        if parts[2] == "fulfillment":
            return self._fulfill(seller, order, _read(request, FulfillmentBody).status)
        raise ControlError(404, f"no such control endpoint: {request.path}")

    def _get_health(self, _request: Request) -> Answer:
        return _json({"status": "ok", "now": iso(self._world.now_ms()), "epoch": iso(self._world.epoch_ms)})

    # Consent and tokens

    def _get_device_codes(self, _request: Request) -> Answer:
        codes = [
            {"user_code": one.user_code, "client_id": one.client_id, "started_at": iso(one.started_us // 1000)}
            for one in self._oauth.pending()
        ]
        return _json({"device_codes": codes})

    def _post_consent(self, request: Request) -> Answer:
        body = _read(request, ConsentBody)
        if body.decision not in ("allow", "deny"):
            raise ControlError(422, "decision must be allow or deny")
        seller = None if body.seller_id is None else self._seller(body.seller_id)
        waiting = self._oauth.pending()
        user_code = waiting[-1].user_code if body.user_code is None and waiting else body.user_code or ""
        chosen = self._consents.decide(user_code, body.decision, seller)
        if chosen is None:
            raise ControlError(404, "nobody waits for this user code, or no seller is free")
        return _json({"seller_id": chosen.id, "login": chosen.shop.login, "decision": body.decision})

    def _get_sellers(self, _request: Request) -> Answer:
        return _json(
            {
                "sellers": [
                    {"seller_id": seller.id, "login": seller.shop.login, "connected": seller.connected}
                    for seller in self._world.sellers
                ]
            }
        )

    def _post_tokens_expire(self, request: Request) -> Answer:
        body = _read(request, SellerBody)
        seller = None if body.seller_id is None else self._seller(body.seller_id).number
        return _json({"expired": self._oauth.expire_access(seller)})

    def _post_tokens_revoke(self, request: Request) -> Answer:
        body = _read(request, SellerBody)
        if body.seller_id is None or body.refresh not in ("fails", "works"):
            raise ControlError(422, "seller_id is needed, and refresh must be fails or works")
        seller = self._seller(body.seller_id)
        return _json({"revoked": self._oauth.revoke(seller.number, refresh_works=body.refresh == "works")})

    # Faults and statistics

    def _get_faults(self, _request: Request) -> Answer:
        return _json(self._faults.describe())

    def _put_faults(self, request: Request) -> Answer:
        wanted = _read(request, dict[str, Any])
        self._faults.replace(wanted)
        return self._faults_changed(wanted)

    def _patch_faults(self, request: Request) -> Answer:
        wanted = _read(request, dict[str, Any])
        self._faults.merge(wanted)
        return self._faults_changed(wanted)

    def _delete_faults(self, _request: Request) -> Answer:
        self._faults.replace({})
        return _json({})

    def _faults_changed(self, wanted: dict[str, Any]) -> Answer:
        # This one does not lie in wait: it happens when it is switched on.
        if wanted.get("expire_all_tokens"):
            self._oauth.expire_access()
        return _json(self._faults.describe())

    def _get_stats(self, _request: Request) -> Answer:
        refreshes = {self._world.sellers[number].id: count for number, count in self._oauth.refreshes.items()}
        return _json(
            {
                **self._stats.describe(),
                "refreshes": refreshes,
                "tokens_issued": self._oauth.tokens_issued,
                "faults_struck": self._faults.struck,
            }
        )

    def _post_stats_reset(self, _request: Request) -> Answer:
        self._stats.reset()
        self._oauth.refreshes.clear()
        self._oauth.tokens_issued = 0
        self._faults.struck.clear()
        return _json({})

    def _get_served(self, _request: Request) -> Answer:
        """When each event was first served, in microseconds since 1970; only with `--note-served`."""
        return _json({"first_served": self._stats.first_served})

    # Orders

    def _get_live(self, _request: Request) -> Answer:
        return _json(self._live.describe())

    def _post_live(self, request: Request) -> Answer:
        body = _read(request, LiveBody)
        if body.orders < 0 or body.rate <= 0:
            raise ControlError(422, "orders must not be negative and rate must be positive")
        sellers = None if body.sellers is None else [self._seller(one) for one in body.sellers]
        self._live.start(
            body.orders,
            body.rate,
            events_per_order=body.events_per_order,
            sellers=sellers,
            step_seconds=body.step_seconds,
            history=body.history,
        )
        self._world.tick()
        return _json(self._live.describe())

    def _post_live_stop(self, _request: Request) -> Answer:
        self._live.stop()
        return _json(self._live.describe())

    def _post_orders(self, request: Request) -> Answer:
        body = _read(request, OrdersBody)
        if not 0 < body.count <= _MOST_ORDERS_AT_ONCE:
            raise ControlError(422, f"count must be between 1 and {_MOST_ORDERS_AT_ONCE}")
        seller = self._seller(body.seller_id)
        bought_ms = None if body.bought_at is None else _time(body.bought_at)
        orders = [self._make_order(seller, body, bought_ms) for _ in range(body.count)]
        self._world.tick()
        return _json({"order_ids": [seller.form_id(order) for order in orders]})

    def _make_order(self, seller: Seller, body: OrdersBody, bought_ms: int | None) -> Order:
        now_us = self._world.now_us()
        order = self._world.buy(seller, now_us, bought_ms, body.buyer)
        for _ in range(body.steps):
            kind = seller.next_kind(order)
            if kind is not None:
                self._world.step(seller, order, kind, now_us)
        return order

    def _post_merge(self, request: Request) -> Answer:
        body = _read(request, MergeBody)
        seller = self._seller(body.seller_id)
        orders = [self._order(order_id)[1] for order_id in dict.fromkeys(body.order_ids)]
        if not can_merge(seller, orders):
            raise ControlError(409, "only several unpaid orders that still exist can be merged")
        merged = self._world.merge(seller, orders, self._world.now_us())
        self._world.tick()
        return _json({"order_id": seller.form_id(merged)})

    def _advance(self, seller: Seller, order: Order) -> Answer:
        kind = seller.next_kind(order)
        if kind is None or order.gone_ms is not None:
            raise ControlError(409, "this order's life is over")
        return self._take_step(seller, order, kind)

    def _fulfill(self, seller: Seller, order: Order, status: str) -> Answer:
        if status not in timeline.FULFILLMENT:
            raise ControlError(422, f"status must be one of {', '.join(timeline.FULFILLMENT)}")
        if order.gone_ms is not None:
            raise ControlError(409, "this order was merged away")
        return self._take_step(seller, order, timeline.fulfillment_step(status))

    def _take_step(self, seller: Seller, order: Order, kind: int) -> Answer:
        self._world.step(seller, order, kind, self._world.now_us())
        self._world.tick()
        state = seller.state(seller.order(order.form.number, order.form.live))
        return _json({"type": timeline.event_type(kind), "status": state.status, "fulfillment": state.fulfillment})

    # The ledger

    def _get_ledger_orders(self, request: Request) -> Answer:
        return _ndjson(self._ledger.orders(self._sellers(request)))

    def _get_ledger_events(self, request: Request) -> Answer:
        return _ndjson(self._ledger.events(self._sellers(request)))

    def _get_ledger_summary(self, request: Request) -> Answer:
        return _json(self._ledger.summary(self._sellers(request)))

    def _sellers(self, request: Request) -> list[Seller]:
        """The seller that is asked for; all connected ones otherwise, or simply all with `all=true`."""
        parameters = request.parameters()
        if "seller_id" in parameters:
            return [self._seller(parameters["seller_id"])]
        return self._world.sellers if parameters.get("all") == "true" else self._world.connected()

    def _seller(self, seller_id: str) -> Seller:
        seller = self._world.seller(seller_id)
        if seller is None:
            raise ControlError(404, f"there is no seller {seller_id}")
        return seller

    def _order(self, order_id: str) -> tuple[Seller, Order]:
        seller = self._world.seller_of(order_id)
        order = None if seller is None else seller.find(order_id)
        if seller is None or order is None:
            raise ControlError(404, f"there is no order {order_id}")
        return seller, order


def _read(request: Request, kind: type[Body]) -> Body:
    try:
        return msgspec.json.decode(request.body or b"{}", type=kind)
    except msgspec.DecodeError as error:
        raise ControlError(422, str(error)) from None


def _time(text: str) -> int:
    try:
        return parse_iso(text)
    except ValueError as error:
        raise ControlError(422, str(error)) from None


def _json(document: object, status: int = 200) -> Answer:
    return Answer(status, msgspec.json.encode(document))


def _ndjson(pieces: Iterator[bytes]) -> Answer:
    return Answer(200, content_type=b"application/x-ndjson", stream=pieces)
