"""What an order says: its facts, derived from dice, and the bodies of the order and of its events. Pure.

Shapes and key order are those of the sandbox in October 2026. A few orders carry fields that nobody knows yet and
numbers that a careless reader changes, since Allegro keeps adding fields (#13930, #11428) and amounts must survive.
"""

from collections.abc import Sequence
from functools import lru_cache
from typing import Final, NamedTuple

from simulator import catalogue, timeline
from simulator.catalogue import Buyer, DeliveryMethod, Goods, money
from simulator.clock import DAY_MS, iso, iso_bytes
from simulator.dice import Dice
from simulator.identity import Ids, seller_id
from simulator.template import HOLE, TEXT, Template, encode
from simulator.timeline import State, Step, Story

_ORDER: Final = Template(
    {
        "id": TEXT,
        "messageToSeller": HOLE,
        "buyer": HOLE,
        "payment": {
            "id": TEXT,
            "type": TEXT,
            "provider": HOLE,
            "finishedAt": HOLE,
            "paidAmount": HOLE,
            "reconciliation": None,
            "features": [],
        },
        "status": TEXT,
        "fulfillment": {
            "status": TEXT,
            "shipmentSummary": {"lineItemsSent": TEXT},
            "provider": {"id": "SELLER"},
        },
        "delivery": {
            "address": HOLE,
            "method": HOLE,
            "pickupPoint": HOLE,
            "cost": {"amount": TEXT, "currency": "PLN"},
            "smart": HOLE,
            "time": HOLE,
            "calculatedNumberOfPackages": 1,
            "cancellation": None,
        },
        "invoice": HOLE,
        "lineItems": [HOLE],
        "surcharges": [HOLE],
        "codBookedPayments": [],
        "note": HOLE,
        "marketplace": {"id": "allegro-pl"},
        "summary": {"totalToPay": HOLE},
        "updatedAt": TEXT,
        "revision": TEXT,
    }
)
_EVENT: Final = Template(
    {
        "id": TEXT,
        "order": {
            "seller": {"id": TEXT},
            "buyer": HOLE,
            "lineItems": [HOLE],
            "checkoutForm": {"id": TEXT, "revision": TEXT},
            "marketplace": {"id": "allegro-pl"},
        },
        "type": TEXT,
        "occurredAt": TEXT,
    }
)
_SURCHARGE: Final = Template(
    {
        "id": TEXT,
        "type": "ONLINE",
        "provider": "PAYU",
        "finishedAt": TEXT,
        "paidAmount": HOLE,
        "reconciliation": None,
        "features": [],
    }
)
_MONEY: Final = Template(money(0) | {"amount": TEXT})
_NO_TIMES: Final = encode({"from": None, "to": None, "guaranteed": None, "dispatch": None})
_NO_INVOICE: Final = encode({"required": False, "address": None, "dueDate": None, "features": None})
_METHODS: Final = {
    method.id: encode({"id": method.id, "name": method.name})
    for method in (*catalogue.ONLINE_METHODS, *catalogue.CASH_METHODS)
}
_PICKUP_POINT: Final = encode(
    {
        "id": "POZ08A",
        "name": "Paczkomat POZ08A",
        "address": {"street": "Święty Marcin 24", "zipCode": "61-805", "city": "Poznań", "countryCode": "PL"},
    }
)
_MESSAGES: Final = tuple(
    encode(text)
    for text in (
        "Proszę o szybką wysyłkę :)",
        'Na paczce dopisać "ostrożnie – szkło"\nDziękuję!',
        "Prezent 🎁, bez faktury w środku \\o/",
        "Zażółć gęślą jaźń\t(test)",
    )
)
_NOTE: Final = encode({"text": "Stały klient"})
# 1.10, 1e2, 2^53 + 1 and escapes are what a reader loses that goes through floats or its own encoder.
_FUTURE_FIELD: Final = (
    ',"futureField":{"score":0.1,"ratio":1.10,"big":9007199254740993,"exponent":1e2,"minus":-0.5,'
    '"escaped":"\\u017c\\/\\ud83d\\ude80","empty":{},"none":null,"list":[[],[1,[2,{"głęboko":true}]]]}}'
).encode()


class Line(NamedTuple):
    """One line item; it keeps its id for ever, also when its form is merged into another (#13184)."""

    id: bytes
    goods: Goods
    bought_ms: int


class Form(NamedTuple):
    """Which order: all that is needed to derive the rest.

    `buyer` and `lines` are given only where they do not follow from the dice: in orders of one buyer that are to be
    merged, and in the order that came out of a merge.
    """

    number: int
    live: bool
    bought_ms: int
    buyer: int | None = None
    lines: tuple[Line, ...] | None = None


class Facts(NamedTuple):
    """What never changes about an order."""

    id: bytes
    form: Form
    ids: Ids
    roll: bytes
    story: Story
    buyer: Buyer
    lines: tuple[Line, ...]
    method: DeliveryMethod


class Shelf:
    """One seller's dice and goods: derives the facts of any order of this seller."""

    def __init__(self, seed: int, seller: int, future_fields: float = 0.0) -> None:
        self.seed = seed
        self.seller = seller
        self.seller_id = seller_id(seller)
        self._future_below = round(future_fields * 256)
        self._history = Dice(seed, "order", seller)
        self._live = Dice(seed, "live order", seller)
        self._offers = catalogue.Offers(seed, seller)

    def roll(self, form: Form) -> bytes:
        return (self._live if form.live else self._history).roll(form.number)

    def ids(self, form: Form) -> Ids:
        return Ids(self.seller, form.number, form.live, form.bought_ms)

    def buyer_number(self, form: Form) -> int:
        if form.buyer is not None:
            return form.buyer
        return int.from_bytes(self.roll(form)[16:18], "little") % catalogue.BUYERS

    def facts(self, form: Form) -> Facts:
        roll = self.roll(form)
        told = timeline.story(roll)
        ids = self.ids(form)
        buyer = (roll[16] | roll[17] << 8) % catalogue.BUYERS if form.buyer is None else form.buyer
        methods = catalogue.CASH_METHODS if told.cash else catalogue.ONLINE_METHODS
        return Facts(
            ids.form(),
            form,
            ids,
            roll,
            told,
            catalogue.buyer(self.seed, buyer),
            self._lines(form, roll, ids) if form.lines is None else form.lines,
            methods[roll[18] % len(methods)],
        )

    def _lines(self, form: Form, roll: bytes, ids: Ids) -> tuple[Line, ...]:
        """One to four lines; the newest gives the form its time, others may be up to half an hour older (#1109)."""
        count = 1 if roll[19] < 160 else 2 if roll[19] < 220 else 3 if roll[19] < 245 else 4
        discount = roll[23] % 3 * 5
        lines = []
        for number in range(count):
            earlier_ms = roll[21 + number] * 7000 if number and roll[21] < 128 else 0
            bought_ms = form.bought_ms - earlier_ms
            goods = self._offers.goods(roll[20] + number * 7, 1 + roll[22 + number] % 3, discount)
            lines.append(Line(ids.line(bought_ms, number), goods, bought_ms))
        return tuple(lines)

    def order_body(self, facts: Facts, state: State) -> bytes:
        """The order as both `/order/checkout-forms/{id}` and the list show it (#660)."""
        form, roll, method = facts.form, facts.roll, facts.method
        cash, ready, paid_ms = facts.story.cash, state.ready_ms is not None, state.paid_ms
        smart = roll[24] < 80
        delivery_cents = 0 if smart else method.cents
        total = _money(sum([line.goods.cents for line in facts.lines]) + delivery_cents)
        body = _ORDER.fill(
            facts.id,
            _MESSAGES[roll[25] % 4] if roll[25] < 32 else b"null",
            facts.buyer.form,
            facts.ids.payment(),
            b"CASH_ON_DELIVERY" if cash else b"EXTENDED_TERM" if facts.story.extended_term else b"ONLINE",
            # Cash: finished at the purchase, nothing paid, no provider (sandbox 2026).
            b"null" if cash else b'"EPT"' if facts.story.extended_term else b'"P24"' if roll[28] < 64 else b'"PAYU"',
            b"null" if paid_ms is None else b'"%b"' % iso_bytes(paid_ms),
            b"null" if paid_ms is None or cash else total,
            state.status.encode(),
            state.fulfillment.encode(),
            b"ALL" if state.fulfillment in _AFTER_SENDING else b"NONE",
            # The address comes with READY_FOR_PROCESSING, not before (#2668).
            _delivery_address(facts.buyer, state) if ready else b"null",
            _METHODS[method.id],
            _PICKUP_POINT if ready and method.to_point else b"null",
            _amount(delivery_cents),
            b"true" if smart else b"false",
            _NO_TIMES if state.ready_ms is None else _times(state.ready_ms // DAY_MS),
            _invoice(facts.buyer) if roll[26] < 32 else _NO_INVOICE,
            b",".join([line.goods.order_line.fill(line.id, iso_bytes(line.bought_ms)) for line in facts.lines]),
            b",".join([_surcharge(facts, at_ms) for at_ms in state.surcharged_ms]),
            _NOTE if roll[27] < 8 else b"null",
            total,
            iso_bytes(state.updated_ms or form.bought_ms),
            timeline.revision(roll, state.changes),
        )
        return body[:-1] + _FUTURE_FIELD if roll[30] < self._future_below else body

    def event_body(self, facts: Facts, steps: Sequence[Step], event_id: int) -> bytes:
        """The journal's entry for the last of these steps."""
        kind, at_ms = steps[-1]
        state = timeline.state_of(steps, facts.story)
        return _EVENT.fill(
            b"%d" % event_id,
            self.seller_id.encode(),
            facts.buyer.event,
            b",".join([line.goods.event_line.fill(line.id, iso_bytes(line.bought_ms)) for line in facts.lines]),
            facts.id,
            timeline.revision(facts.roll, state.changes),
            timeline.event_type(kind).encode(),
            iso_bytes(at_ms),
        )


_AFTER_SENDING: Final = frozenset({"SENT", "PICKED_UP", "RETURNED"})


def _delivery_address(buyer: Buyer, state: State) -> bytes:
    if state.modified_ms is None:
        return buyer.delivery_address
    return buyer.modified_address.fill(iso_bytes(state.modified_ms))


def _money(cents: int) -> bytes:
    return _MONEY.fill(_amount(cents))


def _amount(cents: int) -> bytes:
    return b"%d.%02d" % divmod(cents, 100)


def _surcharge(facts: Facts, at_ms: int) -> bytes:
    return _SURCHARGE.fill(facts.ids.surcharge(at_ms), iso_bytes(at_ms), _money(500 + facts.roll[29]))


@lru_cache(maxsize=1024)
def _times(ready_day: int) -> bytes:
    """When it is to be sent and to arrive: known with READY_FOR_PROCESSING, bounded by midnights in Poland."""
    evening_ms = ready_day * DAY_MS + 22 * 3_600_000
    return encode(
        {
            "from": iso(evening_ms + 3 * DAY_MS),
            "to": iso(evening_ms + 5 * DAY_MS - 1),
            "guaranteed": None,
            "dispatch": {"from": iso(evening_ms), "to": iso(evening_ms + DAY_MS - 1)},
        }
    )


@lru_cache(maxsize=catalogue.BUYERS)
def _invoice(buyer: Buyer) -> bytes:
    tax_id = f"52{buyer.id}"
    return encode(
        {
            "required": True,
            "address": {
                "street": "Źródlana 1",
                "city": "Łódź",
                "zipCode": "90-001",
                "countryCode": "PL",
                "company": {
                    "name": f"Zakład „{buyer.last_name}”",
                    "ids": [{"type": "PL_NIP", "value": tax_id}],
                    "vatPayerStatus": "ACTIVE",
                    "taxId": tax_id,
                },
                "naturalPerson": None,
            },
            "dueDate": None,
            "features": None,
        }
    )
