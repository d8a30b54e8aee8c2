"""The shapes of Allegro's answers, in the project's own words: names and types of the sandbox of October 2026.

`None` in a type means that Allegro sends null there. Every name is always present; only names under `MORE` may come
beside them, since Allegro adds fields without notice.
"""

from typing import Any, Final

MORE: Final = frozenset({"futureField", "toxic"})


def _object(**members: Any) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": members | dict.fromkeys(MORE, True),
        "required": list(members),
        "additionalProperties": False,
    }


def _or_null(schema: dict[str, Any]) -> dict[str, Any]:
    return {"anyOf": [schema, {"type": "null"}]}


def _list(schema: Any) -> dict[str, Any]:
    return {"type": "array", "items": schema}


TEXT: Final = {"type": "string"}
TEXT_OR_NULL: Final = {"type": ["string", "null"]}
NULL: Final = {"type": "null"}
TRUTH: Final = {"type": "boolean"}
NUMBER: Final = {"type": "integer"}
DIGITS: Final = {"type": "string", "pattern": "^[0-9]+$"}
UUID1: Final = {"type": "string", "pattern": "^[0-9a-f]{8}-[0-9a-f]{4}-1[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}$"}
UUID: Final = {"type": "string", "pattern": "^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$"}
TIME: Final = {"type": "string", "pattern": r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d{3})?Z$"}
TIME_OR_NULL: Final = _or_null(TIME)
REVISION: Final = {"type": "string", "pattern": "^[0-9a-f]{8}$"}
MONEY: Final = _object(amount={"type": "string", "pattern": r"^\d+\.\d\d$"}, currency={"enum": ["PLN"]})
FULFILLMENT_STATUSES: Final = (
    "NEW", "PROCESSING", "READY_FOR_SHIPMENT", "READY_FOR_PICKUP", "SENT", "PICKED_UP", "CANCELLED", "SUSPENDED",
    "RETURNED",
)  # fmt: skip
EVENT_TYPES: Final = (
    "BOUGHT", "FILLED_IN", "READY_FOR_PROCESSING", "BUYER_CANCELLED", "FULFILLMENT_STATUS_CHANGED", "AUTO_CANCELLED",
    "BUYER_MODIFIED",
)  # fmt: skip

_OFFER: Final = {"id": DIGITS, "name": TEXT, "external": _or_null(_object(id=TEXT))}
_PREFERENCES: Final = _object(language=TEXT)
_DISPATCH: Final = _object(**{"from": TIME, "to": TIME})

EVENT: Final = _object(
    id={"type": "string", "pattern": "^[0-9]{16}$"},
    order=_object(
        seller=_object(id=DIGITS),
        buyer=_object(id=DIGITS, email=TEXT, guest=TRUTH, login=TEXT, preferences=_PREFERENCES),
        lineItems=_list(
            _object(offer=_object(**_OFFER), price=MONEY, id=UUID1, quantity=NUMBER, originalPrice=MONEY, boughtAt=TIME)
        ),
        checkoutForm=_object(id=UUID1, revision=REVISION),
        marketplace=_object(id=TEXT),
    ),
    type={"enum": list(EVENT_TYPES)},
    occurredAt=TIME,
)
EVENTS: Final = _object(events=_list(EVENT))
EVENT_STATS: Final = _object(latestEvent=_or_null(_object(id=DIGITS, occurredAt=TIME)))

_LINE_ITEM: Final = _object(
    id=UUID1,
    offer=_object(**_OFFER, productSet=_or_null({"type": "object"}), hsNumber=NULL),
    quantity=NUMBER,
    originalPrice=MONEY,
    price=MONEY,
    reconciliation=NULL,
    selectedAdditionalServices=_list(True),
    vouchers=_list(True),
    tax=NULL,
    boughtAt=TIME,
    discounts=NULL,
    deposit=NULL,
    serialNumbers=_object(expected=TRUTH, entries=_list(True)),
)
_PAYMENT: Final = _object(
    id=UUID,
    type=TEXT,
    provider=TEXT_OR_NULL,
    finishedAt=TIME_OR_NULL,
    paidAmount=_or_null(MONEY),
    reconciliation=NULL,
    features=_list(True),
)
ORDER: Final = _object(
    id=UUID1,
    messageToSeller=TEXT_OR_NULL,
    buyer=_object(
        id=DIGITS,
        email=TEXT,
        login=TEXT,
        firstName=TEXT,
        lastName=TEXT,
        companyName=TEXT_OR_NULL,
        guest=TRUTH,
        personalIdentity=TEXT_OR_NULL,
        phoneNumber=TEXT_OR_NULL,
        preferences=_PREFERENCES,
        address=_object(street=TEXT, city=TEXT, postCode=TEXT, countryCode=TEXT),
    ),
    payment=_PAYMENT,
    status={"enum": ["BOUGHT", "FILLED_IN", "READY_FOR_PROCESSING", "CANCELLED"]},
    fulfillment=_object(
        status={"enum": list(FULFILLMENT_STATUSES)},
        shipmentSummary=_object(lineItemsSent={"enum": ["NONE", "SOME", "ALL"]}),
        provider=_object(id={"enum": ["SELLER", "ALLEGRO"]}),
    ),
    delivery=_object(
        address=_or_null(
            _object(
                firstName=TEXT,
                lastName=TEXT,
                street=TEXT,
                city=TEXT,
                zipCode=TEXT,
                countryCode=TEXT,
                companyName=TEXT_OR_NULL,
                phoneNumber=TEXT_OR_NULL,
                modifiedAt=TIME_OR_NULL,
            )
        ),
        method=_object(id=UUID, name=TEXT),
        pickupPoint=_or_null({"type": "object"}),
        cost=MONEY,
        smart=TRUTH,
        time=_object(**{"from": TIME_OR_NULL, "to": TIME_OR_NULL, "guaranteed": NULL, "dispatch": _or_null(_DISPATCH)}),
        calculatedNumberOfPackages=NUMBER,
        cancellation=NULL,
    ),
    invoice=_object(required=TRUTH, address=_or_null({"type": "object"}), dueDate=NULL, features=True),
    lineItems=_list(_LINE_ITEM),
    surcharges=_list(_PAYMENT),
    codBookedPayments=_list(True),
    note=_or_null(_object(text=TEXT)),
    marketplace=_object(id=TEXT),
    summary=_object(totalToPay=MONEY),
    updatedAt=TIME,
    revision=REVISION,
)
ORDERS: Final = _object(checkoutForms=_list(ORDER), count=NUMBER, totalCount=NUMBER)

DEVICE: Final = _object(
    user_code=TEXT,
    device_code=TEXT,
    interval=NUMBER,
    verification_uri_complete=TEXT,
    verification_uri=TEXT,
    expires_in=NUMBER,
)
OAUTH_ERROR: Final = _object(error=TEXT, error_description=TEXT)
ERRORS: Final = {
    "type": "object",
    "required": ["errors"],
    "properties": {
        "errors": {
            "type": "array",
            "minItems": 1,
            "items": {
                "type": "object",
                "required": ["code", "message", "details", "path", "userMessage"],
                "properties": {"code": TEXT, "message": TEXT, "path": TEXT_OR_NULL, "userMessage": TEXT_OR_NULL},
            },
        }
    },
}
