"""What goes wrong on purpose. Off by default; which calls are hit follows from the seed, so a run can be repeated.

A fault is a name with a rule: `{"http_5xx": {"rate": 0.05, "endpoints": ["detail"], "count": 10}}`. A number stands
for a rate, `true` for always. `catalogue` says what each is for, `simulator/README.md` shows examples.
"""

from typing import Any, Final, Literal

import msgspec

from simulator.dice import Dice, Sequence
from simulator.limits import ENDPOINTS, Endpoint

Name = Literal[
    "journal_missing",
    "journal_duplicate",
    "journal_late",
    "journal_shuffle",
    "event_stats_null",
    "list_lag_seconds",
    "list_repeat",
    "list_skip",
    "total_count_lies",
    "merges",
    "http_429",
    "http_5xx",
    "timeout",
    "slow_body",
    "cut_connection",
    "malformed_json",
    "captcha_403",
    "refresh_answer_lost",
    "invalid_grant_once",
    "token_429",
    "unlink",
    "maintenance",
    "toxic",
]
API: Final[tuple[Endpoint, ...]] = ("events", "event_stats", "list", "detail", "me")
AUTH: Final[tuple[Endpoint, ...]] = ("device", "token")

# Name: (the endpoints it hits unless told otherwise, what it does, where it was seen).
CATALOGUE: Final[dict[Name, tuple[tuple[Endpoint, ...], str]]] = {
    "journal_missing": ((), "an event is never written to the journal (#8498, #8623)"),
    "journal_duplicate": ((), "an event is written again, same time, higher id (#4870, #10716)"),
    "journal_late": ((), "an event is written `seconds` later, with the id of that time (#4872: until evening)"),
    "journal_shuffle": ((), "an event is written up to `seconds` later, so that ids and times disagree (#2700)"),
    "event_stats_null": (("event_stats",), "the journal says that it has no latest event (#8496)"),
    "list_lag_seconds": (("list",), "lists show what was `seconds` ago (section 4)"),
    "list_repeat": (("list",), "a page shows a row twice, so that another falls off its end"),
    "list_skip": (("list",), "a page leaves a row out (#3067)"),
    "total_count_lies": (("list",), "totalCount is wrong (#3740)"),
    "merges": ((), "a new order is one of several of a buyer, which are merged before payment (#13184)"),
    "http_429": (API, "429, with `retry_after` seconds if given"),
    "http_5xx": (API, "`status` 500, 502, 503 or 504 with a `body` json, html or text; both at random if not given"),
    "timeout": ((*API, *AUTH), "nothing is sent for `seconds`, then the connection is closed"),
    "slow_body": (API, "the body takes `seconds`"),
    "cut_connection": (API, "the connection is reset in the middle of the body"),
    "malformed_json": (API, "the body breaks off, though Content-Length fits"),
    "captcha_403": (AUTH, "bot protection, `body` json or html (#13093, #12463)"),
    "refresh_answer_lost": (("token",), "the refresh happens and its answer is lost (#4136)"),
    "invalid_grant_once": (("token",), "a good refresh token is refused, the next try succeeds (#9592, #3050)"),
    "token_429": (("token",), "too many tokens for this user (#8321)"),
    "unlink": ((), "`sellers` un-link the application; `mode` refresh_fails or useless_tokens (#13133, #1549)"),
    "maintenance": (API, "announced work: 503 with HTML (#9584)"),
    "toxic": ((), "an order carries what storage chokes on: `kinds` nul, surrogate, number, deep, long, keys"),
}
NAMES: Final = tuple(CATALOGUE)

STATUSES_5XX: Final = (500, 502, 503, 504)
TOXIC_KINDS: Final = ("nul", "surrogate", "number", "deep", "long", "keys")


class Rule(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """Whom a fault hits, how often, and how."""

    rate: float = 1.0
    # At most so often; None: without end.
    count: int | None = None
    endpoints: tuple[Endpoint, ...] = ()
    # Numeric seller ids; none: all.
    sellers: tuple[str, ...] = ()
    # In seconds; which seconds, `CATALOGUE` tells.
    amount: float = msgspec.field(default=5.0, name="seconds")
    status: Literal[500, 502, 503, 504] | None = None
    body: Literal["json", "html", "text"] | None = None
    retry_after: int | None = None
    mode: Literal["refresh_fails", "useless_tokens"] = "useless_tokens"
    kinds: tuple[Literal["nul", "surrogate", "number", "deep", "long", "keys"], ...] = ()


class Faults:
    """The rules in force."""

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self._rules: dict[Name, Rule] = {}
        self._left: dict[Name, int] = {}
        self._dice: dict[Name, Sequence] = {}
        self._keyed = {name: Dice(seed, "fault by key", name) for name in NAMES}
        self.happened: dict[str, int] = {}

    def __bool__(self) -> bool:
        return bool(self._rules)

    def change(self, document: object, *, keep: bool) -> None:
        """New rules, beside those in force if `keep`; null, false and 0 take a fault away. Raises ValueError.

        The dice of a fault begin anew with its rule: equal rules and equal calls give equal faults.
        """
        if not isinstance(document, dict):
            raise ValueError("the faults have to be an object")
        rules = {_name(name): _rule(name, value) for name, value in document.items()}
        if not keep:
            self._rules, self._left = {}, {}
        for name, rule in rules.items():
            self._rules.pop(name, None)
            self._left.pop(name, None)
            if rule is None:
                continue
            self._rules[name] = rule
            self._dice[name] = Sequence(Dice(self._seed, "fault", name))
            if rule.count is not None:
                self._left[name] = rule.count

    def clear(self) -> None:
        self._rules, self._left = {}, {}

    def document(self) -> dict[str, Any]:
        """The rules in force, as they can be given to `change`."""
        return {name: msgspec.to_builtins(rule) for name, rule in self._rules.items()}

    def rule(self, name: Name) -> Rule | None:
        """The rule of a fault, whatever its rate."""
        return self._rules.get(name)

    def strikes(self, name: Name, endpoint: Endpoint | None = None, seller: str | None = None) -> Rule | None:
        """Whether this fault happens to this call; its rule if so. Each call rolls the fault's dice once."""
        rule = self._rules.get(name)
        if rule is None or not _concerns(rule, name, endpoint, seller) or self._left.get(name) == 0:
            return None
        if not self._dice[name].happens(rule.rate):
            return None
        return self._note(name, rule)

    def strikes_key(self, name: Name, key: int, seller: str | None = None) -> Rule | None:
        """As `strikes`, but the same key is always hit or always spared, whenever and however often it is asked for."""
        rule = self._rules.get(name)
        if rule is None or not _concerns(rule, name, None, seller) or self._keyed[name].fraction(key) >= rule.rate:
            return None
        return rule

    def pick(self, name: Name, number: int) -> int:
        """One of `number` variants, when the rule leaves it open."""
        return int(self._dice[name].fraction() * number)

    def _note(self, name: Name, rule: Rule) -> Rule:
        if name in self._left:
            self._left[name] -= 1
        self.happened[name] = self.happened.get(name, 0) + 1
        return rule


def _concerns(rule: Rule, name: Name, endpoint: Endpoint | None, seller: str | None) -> bool:
    if endpoint is not None and endpoint not in (rule.endpoints or CATALOGUE[name][0]):
        return False
    return not rule.sellers or seller in rule.sellers


def _name(name: object) -> Name:
    for known in NAMES:
        if known == name:
            return known
    raise ValueError(f"no fault is called {name!r}; there are {', '.join(NAMES)}")


def _rule(name: str, value: object) -> Rule | None:
    if value is None or value is False:
        return None
    if value is True:
        return Rule()
    if isinstance(value, int | float):
        if value == 0:
            return None
        # This one is a time, as its name says.
        value = {"seconds": value} if name == "list_lag_seconds" else {"rate": value}
    try:
        rule = msgspec.convert(value, Rule)
    except msgspec.ValidationError as error:
        raise ValueError(f"{name}: {error}") from None
    if not 0 <= rule.rate <= 1:
        raise ValueError(f"{name}: rate has to be between 0 and 1")
    if not set(rule.endpoints) <= set(ENDPOINTS):
        raise ValueError(f"{name}: endpoints are {', '.join(ENDPOINTS)}")
    return rule


# -- bodies ------------------------------------------------------------------------------------------------------


def server_error_body(kind: Literal["json", "html", "text"], status: int) -> tuple[str, bytes]:
    """Content type and body of a 5xx: JSON (#11045), a proxy's page (#1806) or plain text (#3622)."""
    if kind == "html":
        page = f"<html>\r\n<head><title>{status}</title></head>\r\n<body><h1>{status}</h1></body>\r\n</html>\r\n"
        return "text/html", page.encode()
    if kind == "text":
        return "text/plain", b"upstream request timeout"
    timed_out = status == 504
    return "application/json", msgspec.json.encode(
        {
            "errors": [
                {
                    "code": "ServiceTimeoutException" if timed_out else "INTERNAL_SERVER_ERROR",
                    "message": "An error occurred",
                    "details": None,
                    "path": None,
                    "userMessage": "Query response time exceeded. Try again."
                    if timed_out
                    else "Internal server error. Please try again in a few minutes.",
                    "metadata": {},
                }
            ]
        }
    )


def captcha_body(kind: Literal["json", "html", "text"]) -> tuple[str, bytes]:
    """Content type and body of bot protection's 403."""
    if kind == "json":
        return "application/json", b'{"url":"https://geo.captcha-delivery.com/captcha/?initialCid=simulated"}'
    return "text/html", (
        b"<html><head><title>allegro.pl</title></head><body><script>var dd={'host':'geo.captcha-delivery.com'}"
        b"</script></body></html>"
    )


MAINTENANCE_BODY: Final = (
    "<html><head><title>Prace serwisowe</title></head><body>Trwają prace serwisowe.</body></html>".encode()
)


def poison(body: bytes, kind: str, order_id: str) -> bytes:
    """An order with one more member that is hard to store, though legal JSON (surrogates: legal by the letter)."""
    member = {
        "nul": '"toxic":"before\\u0000after"',
        "surrogate": '"toxic":"lone \\ud83d surrogate"',
        "number": '"toxic":[1e400,-0.0,123456789012345678901234567890.000000000000000000001]',
        "deep": '"toxic":' + "[" * 600 + "]" * 600,
        "long": f'"toxic":"{order_id * 8000}"',
        "keys": '"toxic":{"":1," ":2,"a":1,"a":2,"\\u0000":3}',
    }[kind]
    return body[:-1] + b"," + member.encode() + b"}"
