"""The truth, to compare a copy with: what every order is now and which events were ever visible. One JSON line each.

Pieces of some hundred lines, made while they are sent, so a seller with a million orders needs no memory.
"""

import base64
from collections.abc import Iterator, Sequence
from typing import Any, Final

import msgspec

from simulator import timeline, toxic
from simulator.clock import iso
from simulator.faults import Faults
from simulator.orders import Facts
from simulator.world import Order, Seller, World

_LINES: Final = 100


class Ledger:
    def __init__(self, world: World, faults: Faults) -> None:
        self._world = world
        self._faults = faults

    def orders(self, sellers: Sequence[Seller]) -> Iterator[bytes]:
        """Every order there ever was, the past ones first."""
        for seller in sellers:
            keys = [(number, True) for number in seller.live]
            for start in range(0, seller.history.count, _LINES):
                end = min(start + _LINES, seller.history.count)
                yield self._order_lines(seller, [(number, False) for number in range(start, end)])
            for start in range(0, len(keys), _LINES):
                yield self._order_lines(seller, keys[start : start + _LINES])

    def events(self, sellers: Sequence[Seller]) -> Iterator[bytes]:
        """Every event that was ever visible since the simulation began, in the order of ids."""
        for seller in sellers:
            lines: list[bytes] = []
            for event_id, entry in seller.journal.after(0):
                body = seller.event_body(event_id, entry)
                order = seller.order(entry.order, entry.live)
                kind, at_ms = order.steps[entry.place]
                lines.append(
                    _line(
                        {
                            "seller_id": seller.id,
                            "event_id": str(event_id),
                            "type": timeline.event_type(kind),
                            "occurred_at": iso(at_ms),
                            "order_id": seller.form_id(order),
                            "event": msgspec.Raw(body),
                            "visible_since": iso(event_id // 1000),
                            "expired": event_id < self._world.oldest_event_us(),
                        }
                    )
                )
                if len(lines) == _LINES:
                    yield b"".join(lines)
                    lines = []
            yield b"".join(lines)

    def summary(self, sellers: Sequence[Seller]) -> dict[str, Any]:
        """Counts: what Allegro lists now, and the events that its journal holds."""
        each = [self._summary_of(seller) for seller in sellers]
        totals = {name: sum(one[name] for one in each) for name in ("orders", "events", "merged", "aged_out")}
        return {"sellers": len(sellers), **totals, "by_seller": each}

    def _summary_of(self, seller: Seller) -> dict[str, Any]:
        first = seller.history.first_at_or_after(self._world.oldest_order_ms())
        merged = sum(order.gone_ms is not None for order in (*seller.live.values(), *seller.changed.values()))
        old_live = sum(bought_ms < self._world.oldest_order_ms() for bought_ms, _ in seller.by_time)
        gone_and_kept = sum(number >= first for number in seller.gone)
        return {
            "seller_id": seller.id,
            "login": seller.shop.login,
            "connected": seller.connected,
            "orders": seller.history.count - first - gone_and_kept + len(seller.by_time) - old_live,
            "events": seller.journal.count_since(self._world.oldest_event_us()),
            "merged": merged,
            "aged_out": first + old_live,
        }

    def _order_lines(self, seller: Seller, keys: Sequence[tuple[int, bool]]) -> bytes:
        return b"".join([self._order_line(seller, seller.order(number, live)) for number, live in keys])

    def _order_line(self, seller: Seller, order: Order) -> bytes:
        facts = seller.facts(order)
        order_id = facts.id.decode()
        body = seller.body(order)
        line: dict[str, Any] = {
            "seller_id": seller.id,
            "order_id": order_id,
            "state": self._state(order),
            "successor": seller.form_id(order.successor) if order.successor is not None else None,
            "line_item_ids": _line_ids(facts),
            "bought_at": iso(order.form.bought_ms),
            "announced": seller.announced(order),
            "last_event_id": str(order.told_us) if order.told_us else None,
            "hidden": (order.form.number, order.form.live) in seller.hidden,
        }
        poison = toxic.kind_of(self._faults, order_id)
        if poison is not None:
            body = toxic.poison(poison, body, self._faults.get("toxic"))
            line["toxic"] = poison
        if poison in toxic.UNREADABLE:
            line |= {"order": None, "order_base64": base64.b64encode(body).decode()}
        elif line["state"] == "listed":
            line["order"] = msgspec.Raw(body)
        else:
            line |= {"order": None, "last_order": msgspec.Raw(body)}
        return _line(line)

    def _state(self, order: Order) -> str:
        if order.gone_ms is not None:
            return "merged"
        return "aged_out" if order.form.bought_ms < self._world.oldest_order_ms() else "listed"


def _line_ids(facts: Facts) -> list[str]:
    return [line.id.decode() for line in facts.lines]


def _line(document: dict[str, Any]) -> bytes:
    return msgspec.json.encode(document) + b"\n"
