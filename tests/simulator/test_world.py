"""What happens while it runs, with a clock that is moved by hand; and what a restart brings back."""

import json
from pathlib import Path
from typing import Any

import pytest

from simulator import timeline
from simulator.clock import ManualClock
from simulator.faults import Faults
from simulator.ledger import Ledger
from simulator.live import Live
from simulator.oauth import OAuth
from simulator.settings import Settings
from simulator.store import StateFileError, Store
from simulator.world import Seller, World

EPOCH_MS = 1_791_670_000_000


class Run:
    """A world whose time is in our hands."""

    def __init__(self, path: Path | None = None, **settings: Any) -> None:
        self.settings = Settings(**{"sellers": 2, "history_orders": 50, "journal_jitter": 0.0, **settings})
        self.clock = ManualClock(EPOCH_MS * 1000)
        self.faults = Faults(self.settings.seed)
        self.world = World(self.settings, self.clock, self.faults, EPOCH_MS)
        self.oauth = OAuth(self.settings, self.clock.now_us)
        self.live = Live(self.world, self.settings)
        if path is not None:
            self.store = Store(path)
            self.store.epoch_ms(self.settings, EPOCH_MS)
            self.store.attach(self.world, self.oauth)

    def pass_time(self, seconds: float, step: float = 0.05) -> None:
        for _ in range(round(seconds / step)):
            self.clock.advance(step)
            self.world.tick()

    def new_events(self, seller: Seller) -> list[dict[str, Any]]:
        return [
            json.loads(seller.event_body(event_id, entry)) for event_id, entry in seller.journal.after(EPOCH_MS * 1000)
        ]

    def truth(self) -> list[bytes]:
        ledger = Ledger(self.world, self.faults)
        return [*ledger.orders(self.world.sellers), *ledger.events(self.world.sellers)]


def types(events: list[dict[str, Any]]) -> list[str]:
    return [event["type"] for event in events]


def test_an_event_is_visible_when_the_journal_is_written_and_not_before() -> None:
    run = Run(journal_delay=12.0)
    seller = run.world.sellers[0]
    run.world.buy(seller, run.world.now_us())

    run.pass_time(11.9)
    assert run.new_events(seller) == []
    run.pass_time(0.2)

    (event,) = run.new_events(seller)
    assert int(event["id"]) == EPOCH_MS * 1000 + 12_000_000
    assert run.world.writes_to_come == 0


def test_live_orders_go_through_their_lives_and_end() -> None:
    run = Run()
    run.live.start(200, 20.0, sellers=run.world.sellers)

    run.pass_time(9.9)
    assert 195 <= run.live.orders_created <= 200
    run.pass_time(30)

    described = run.live.describe()
    assert (described["active"], described["orders_created"], described["remaining"]) == (False, 200, 0)
    events = [event for seller in run.world.sellers for event in run.new_events(seller)]
    assert described["events_written"] == len(events) > 600
    assert {"BOUGHT", "FILLED_IN", "READY_FOR_PROCESSING", "FULFILLMENT_STATUS_CHANGED"} <= set(types(events))
    assert all(len(seller.live) == 100 for seller in run.world.sellers)


def test_sellers_also_work_on_orders_of_the_past() -> None:
    run = Run(history_days=2.0)
    run.live.start(100, 50.0, sellers=run.world.sellers, history=1.0)

    run.pass_time(20)

    assert any(seller.changed for seller in run.world.sellers)
    for seller in run.world.sellers:
        for number, order in seller.changed.items():
            before = timeline.state_of(
                seller.history.steps(order.form, seller.shelf.roll(order.form)),
                timeline.story(seller.shelf.roll(order.form)),
            )
            assert seller.state(seller.order(number, False)).updated_ms == before.updated_ms


def test_events_per_order_are_limited() -> None:
    run = Run()
    run.live.start(20, 100.0, events_per_order=2, sellers=run.world.sellers[:1], history=0.0)

    run.pass_time(10)

    assert all(len(order.steps) <= 2 for order in run.world.sellers[0].live.values())
    assert not run.live.describe()["active"]


def test_without_connected_sellers_live_orders_wait() -> None:
    run = Run()
    run.live.start(3, 10.0)
    run.pass_time(2)
    assert run.live.orders_created == 0

    run.world.connect(run.world.sellers[1])
    run.pass_time(5)

    assert run.live.orders_created == 3
    assert len(run.world.sellers[1].live) == 3


def test_merging_pairs_while_live() -> None:
    run = Run()
    run.faults.replace({"merges": 1.0})
    run.live.start(20, 10.0, sellers=run.world.sellers[:1], history=0.0)

    run.pass_time(30)

    seller = run.world.sellers[0]
    merged = [order for order in seller.live.values() if order.gone_ms is not None]
    assert len(merged) == 20
    assert len(seller.by_time) == 10
    for order in merged:
        assert order.successor is not None
        lines = {line.id for line in seller.shelf.facts(order.form).lines}
        assert lines < {line.id for line in seller.shelf.facts(order.successor.form).lines}
        assert seller.shelf.buyer_number(order.form) == seller.shelf.buyer_number(order.successor.form)


@pytest.mark.parametrize(
    ("fault", "expected"),
    [
        ({"journal_missing": True}, []),
        ({"journal_duplicate": {"amount": 2}}, [0.2, 2.2]),
        ({"journal_late": {"amount": 7}}, [7.2]),
        ({}, [0.2]),
    ],
)
def test_the_journal_misses_repeats_and_delays(fault: dict[str, object], expected: list[float]) -> None:
    run = Run()
    run.faults.replace(fault)
    seller = run.world.sellers[0]
    run.world.buy(seller, run.world.now_us())

    run.pass_time(20)

    events = run.new_events(seller)
    assert [(int(event["id"]) - EPOCH_MS * 1000) / 1e6 for event in events] == expected
    assert len({(event["occurredAt"], event["order"]["checkoutForm"]["revision"]) for event in events}) <= 1
    lines = b"".join(Ledger(run.world, run.faults).events([seller])).splitlines()
    assert len([line for line in lines if int(json.loads(line)["event_id"]) > EPOCH_MS * 1000]) == len(expected)


def test_a_shuffled_journal_still_has_rising_ids() -> None:
    run = Run()
    run.faults.replace({"journal_shuffle": {"amount": 5}})
    seller = run.world.sellers[0]
    for _ in range(100):
        run.world.buy(seller, run.world.now_us())
        run.pass_time(0.05)
    run.pass_time(10)

    events = run.new_events(seller)
    ids = [int(event["id"]) for event in events]
    times = [event["occurredAt"] for event in events]
    assert ids == sorted(set(ids))
    assert times != sorted(times)


def test_a_restart_brings_the_same_world_back(tmp_path: Path) -> None:
    path = tmp_path / "state"
    first = Run(path)
    first.world.connect(first.world.sellers[0])
    first.faults.replace({"merges": 0.3, "journal_missing": 0.1})
    first.live.start(60, 20.0, history=1.0)
    first.pass_time(30)
    before = first.truth()
    first.store.close()

    again = Run(path)
    again.pass_time(5)

    again.faults.replace(first.faults.describe())
    assert again.truth() == before
    assert [seller.connected for seller in again.world.sellers] == [True, False]
    again.store.close()


def test_events_that_a_kill_kept_from_the_journal_are_written_after_it(tmp_path: Path) -> None:
    path = tmp_path / "state"
    first = Run(path, journal_delay=60.0)
    first.world.buy(first.world.sellers[0], first.world.now_us())
    first.store.close()
    with path.open("ab") as file:
        file.write(b'["wrote",0,0,tr')

    again = Run(path, journal_delay=60.0)
    again.pass_time(1)

    assert types(again.new_events(again.world.sellers[0])) == ["BOUGHT"]
    again.store.close()


def test_tokens_and_codes_survive_a_restart(tmp_path: Path) -> None:
    path = tmp_path / "state"
    first = Run(path)
    waiting = first.oauth.start_device("app")
    device = first.oauth.start_device("app")
    first.oauth.decide(device.user_code, "allow", 1)
    pair = first.oauth.poll("app", device.device_code)
    spent = first.oauth.refresh("app", pair.refresh)
    first.store.close()

    again = Run(path)
    again.clock.advance(61)

    assert not isinstance(again.oauth.owner(spent.access), str)
    assert again.oauth.refresh("app", spent.refresh).refresh not in (spent.refresh, pair.refresh)
    assert [one.user_code for one in again.oauth.pending()] == [waiting.user_code]
    assert again.oauth.seller_of_refresh(pair.refresh) == 1
    again.store.close()


def test_a_file_of_another_world_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "state"
    Run(path).store.close()

    with pytest.raises(StateFileError):
        Run(path, seed=2)
