"""Who buys and what is sold: made-up people and goods, in Polish, all derived and pre-encoded once.

Buyers belong to Allegro, not to a seller, so all sellers share them.
"""

from dataclasses import dataclass
from functools import lru_cache
from typing import Final

from simulator.dice import Dice
from simulator.template import TEXT, Template, encode

BUYERS = 4096
OFFERS = 40

_FIRST = (
    "Łucja", "Żaneta", "Świętosław", "Małgorzata", "Zdzisław", "Grażyna", "Józef", "Agnieszka", "Bożena", "Paweł",
    "Krzysztof", "Elżbieta", "Mirosław", "Anna", "Wacław", "Ćwiek",
)  # fmt: skip
_LAST = (
    "Wójcik", "Gałązka", "Brzęczyszczykiewicz", "Kowalczyk", "Śliwa", "Żuraw", "Piątek", "Źrebiec", "Dąbek", "Nowak",
    "Sęk", "Łoś", "Ćma", "Pająk", "O’Reilly", "Müller",
)  # fmt: skip
_STREETS = ("Kościuszki", "Źródlana", "Święty Marcin", "Wąska", "Żwirki i Wigury", "3 Maja", "Łąkowa", "Długa")
_CITIES = (
    ("Łódź", "90-001"), ("Poznań", "60-101"), ("Kraków", "30-001"), ("Wrocław", "50-002"), ("Gdańsk", "80-003"),
    ("Świętochłowice", "41-600"), ("Żyrardów", "96-300"), ("Warszawa", "00-950"),
)  # fmt: skip
_PRODUCTS = (
    ("Kubek ceramiczny z uszkiem 330 ml", 2499), ("Żarówka LED E27 ciepła", 1199), ("Młynek do kawy żarnowy", 18900),
    ("Książka „Pan Tadeusz” – twarda oprawa", 3990), ("Rękawice robocze rozm. 9", 799), ("Głośnik Bluetooth", 12950),
    ("Łańcuch rowerowy 9-rzędowy", 5600), ("Pościel bawełniana 160×200", 13999), ("Śruba M8×40, 100 szt.", 2150),
    ("Krem do rąk z masłem shea", 1849), ("Zestaw klocków 1 200 el.", 24990), ("Czajnik 1,7 l stal/„inox”", 9900),
    ("Karma dla kota 4 kg – łosoś", 7690), ("Etui ½ przezroczyste ☕", 1590), ("Wiertarka udarowa 800 W", 31900),
    ("Herbata jaśminowa 茶 100 g", 2290),
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class DeliveryMethod:
    id: str
    name: str
    cents: int
    to_point: bool
    cash: bool


ONLINE_METHODS: Final = (
    DeliveryMethod("2488f7b7-5d1c-4d65-b85c-4cbcf253fd93", "Allegro Paczkomaty InPost", 1095, True, False),
    DeliveryMethod("c3066682-97a3-42fe-9eb5-3beeccabed02", "Allegro miniKurier24 InPost", 1499, False, False),
    DeliveryMethod("98f86f81-0018-41c5-ac83-073a56fc7021", "Allegro Przesyłka polecona ekonomiczna", 599, False, False),
    DeliveryMethod("1fa56f79-4b6a-4821-a6f2-ca9c16d5c925", "Allegro One Box, DPD", 849, True, False),
)
CASH_METHODS: Final = (
    DeliveryMethod("8d1dd3f5-7a17-4b3e-8b3a-2d2d5ab5e6a1", "Kurier pobranie", 1999, False, True),
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Buyer:
    """One person; the parts that never change are encoded already."""

    id: str
    login: str
    form: bytes
    event: bytes
    delivery_address: bytes
    modified_address: Template
    last_name: str


@dataclass(frozen=True, slots=True)
class Goods:
    """A number of pieces of one offer at one price: line items of orders and of events, but for id and time."""

    cents: int
    order_line: Template
    event_line: Template


@lru_cache(maxsize=BUYERS)
def buyer(seed: int, number: int) -> Buyer:
    """The numberth of Allegro's buyers. E-mail is a relay, the login often `Client:<id>` (section 5)."""
    roll = Dice(seed, "buyer").roll(number)
    id_ = str(44_000_000 + number)
    login = f"Client:{id_}" if roll[0] < 160 else f"kupujący_{number}"
    email = f"{roll[1:6].hex()}+{roll[6:10].hex()}@allegromail.pl"
    guest = roll[10] < 16
    first, last = _FIRST[roll[11] % len(_FIRST)], _LAST[roll[12] % len(_LAST)]
    street = f"{_STREETS[roll[13] % len(_STREETS)]} {1 + roll[14] % 120}/{1 + roll[15] % 40}"
    city, code = _CITIES[roll[16] % len(_CITIES)]
    phone = f"+48 5{int.from_bytes(roll[17:20], 'little') % 100_000_000:08}"
    company = f"{last} i Synowie Sp. z o.o." if roll[20] < 20 else None
    preferences = {"language": "pl-PL" if roll[21] < 240 else "uk-UA"}
    delivery_address: dict[str, str | None] = {
        "firstName": first,
        "lastName": last,
        "street": street,
        "city": city,
        "zipCode": code,
        "countryCode": "PL",
        "companyName": company,
        "phoneNumber": phone,
        "modifiedAt": None,
    }
    return Buyer(
        id=id_,
        login=login,
        form=encode(
            {
                "id": id_,
                "email": email,
                "login": login,
                "firstName": first,
                "lastName": last,
                "companyName": company,
                "guest": guest,
                "personalIdentity": None,
                "phoneNumber": phone,
                "preferences": preferences,
                "address": {"street": street, "city": city, "postCode": code, "countryCode": "PL"},
            }
        ),
        event=encode({"id": id_, "email": email, "guest": guest, "login": login, "preferences": preferences}),
        delivery_address=encode(delivery_address),
        modified_address=Template({**delivery_address, "street": "Zmieniona 7", "modifiedAt": TEXT}),
        last_name=last,
    )


def amount(cents: int) -> str:
    """Amounts are strings."""
    return f"{cents // 100}.{cents % 100:02}"


def money(cents: int) -> dict[str, str]:
    return {"amount": amount(cents), "currency": "PLN"}


class Offers:
    """Everything that one seller sells."""

    def __init__(self, seed: int, seller: int) -> None:
        self._dice = Dice(seed, "offers", seller)
        self._first = seller * OFFERS
        self._goods: dict[tuple[int, int, int], Goods] = {}

    def goods(self, offer: int, quantity: int, discount_percent: int) -> Goods:
        """So many pieces; there are few combinations, so each is encoded once."""
        key = (offer % OFFERS, quantity, discount_percent)
        found = self._goods.get(key)
        if found is None:
            found = self._goods[key] = _goods(self._dice.roll(key[0]), self._first + key[0], quantity, discount_percent)
        return found


def _goods(roll: bytes, number: int, quantity: int, discount_percent: int) -> Goods:
    name, full_cents = _PRODUCTS[roll[0] % len(_PRODUCTS)]
    full_cents += roll[5] % 90
    cents = full_cents * (100 - discount_percent) // 100
    offer = {
        "id": str(7_700_000_000 + number),
        "name": f"{name} #{roll[2]}",
        "external": {"id": f"SKU-{number}"} if roll[3] < 200 else None,
    }
    product_set = {"products": [{"id": _product_uuid(roll), "quantity": 1}]} if roll[4] < 60 else None
    return Goods(
        cents=cents * quantity,
        order_line=Template(
            {
                "id": TEXT,
                "offer": {**offer, "productSet": product_set, "hsNumber": None},
                "quantity": quantity,
                "originalPrice": money(full_cents),
                "price": money(cents),
                "reconciliation": None,
                "selectedAdditionalServices": [],
                "vouchers": [],
                "tax": None,
                "boughtAt": TEXT,
                "discounts": None,
                "deposit": None,
                "serialNumbers": {"expected": False, "entries": []},
            }
        ),
        event_line=Template(
            {
                "offer": offer,
                "price": money(cents),
                "id": TEXT,
                "quantity": quantity,
                "originalPrice": money(full_cents),
                "boughtAt": TEXT,
            }
        ),
    )


def _product_uuid(roll: bytes) -> str:
    digits = roll[8:24].hex()
    return f"{digits[:8]}-{digits[8:12]}-4{digits[13:16]}-8{digits[17:20]}-{digits[20:]}"


@dataclass(frozen=True, slots=True)
class Shop:
    """The person behind a seller account."""

    login: str
    first_name: str
    last_name: str


def shop(seed: int, seller: int) -> Shop:
    roll = Dice(seed, "shop").roll(seller)
    return Shop(
        login=f"sklep-{('bursztyn', 'sowa', 'dąb', 'latarnia', 'żubr', 'kometa')[roll[0] % 6]}-{seller + 1}",
        first_name=_FIRST[roll[1] % len(_FIRST)],
        last_name=_LAST[roll[2] % len(_LAST)],
    )
