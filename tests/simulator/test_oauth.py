"""Tokens over long times, with a clock that is moved by hand (sections 1 and 2 of what is known about the service)."""

import base64
import json
from typing import Any

import pytest

from simulator.clock import ManualClock
from simulator.oauth import OAuth, OAuthError, Pair, Session
from simulator.settings import Settings

NOW_US = 1_791_670_000_000_000
DAY = 86_400.0


class Bench:
    """An authorisation server and its clock."""

    def __init__(self, **settings: Any) -> None:
        self.clock = ManualClock(NOW_US)
        self.oauth = OAuth(Settings(**settings), self.clock.now_us)

    def connect(self, seller: int = 0) -> Pair:
        device = self.oauth.start_device("app")
        self.oauth.decide(device.user_code, "allow", seller)
        return self.oauth.poll("app", device.device_code)

    def works(self, pair: Pair) -> bool:
        return isinstance(self.oauth.owner(pair.access), Session)

    def error_of_refresh(self, token: str, client: str = "app") -> str:
        with pytest.raises(OAuthError) as error:
            self.oauth.refresh(client, token)
        return error.value.error

    def error_of_poll(self, device_code: str, client: str = "app") -> str:
        with pytest.raises(OAuthError) as error:
            self.oauth.poll(client, device_code)
        return error.value.error


def test_an_access_token_lives_for_twelve_hours() -> None:
    bench = Bench()
    pair = bench.connect()

    bench.clock.advance(43198)
    assert bench.works(pair)
    bench.clock.advance(1)
    assert bench.oauth.owner(pair.access) == f"Access token expired: {pair.access}"


def test_tokens_carry_the_claims_of_allegro() -> None:
    payload = Bench(long_tokens=True).connect(3).access.split(".")[1]
    claims = json.loads(base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4)))

    assert claims["user_name"] == "110000004"
    assert claims["exp"] == NOW_US // 1_000_000 + 43199
    assert claims["client_id"] == "app"
    assert {"jti", "scope", "allegro_api"} <= set(claims)


def test_long_tokens_are_longer_than_a_kilobyte() -> None:
    assert len(Bench(long_tokens=True).connect().access) > 1024


def test_a_spent_refresh_token_works_for_the_grace_and_gives_new_pairs() -> None:
    bench = Bench()
    pair = bench.connect()

    pairs = [bench.oauth.refresh("app", pair.refresh)]
    bench.clock.advance(59.9)
    pairs.append(bench.oauth.refresh("app", pair.refresh))
    bench.clock.advance(0.2)

    assert bench.error_of_refresh(pair.refresh) == "invalid_grant"
    assert len({one.refresh for one in pairs} | {pair.refresh}) == 3
    assert all(bench.works(one) for one in (pair, *pairs))


def test_an_unused_refresh_token_lives_for_three_months_and_each_refresh_renews_it() -> None:
    bench = Bench()
    pair = bench.connect()

    bench.clock.advance(89 * DAY)
    renewed = bench.oauth.refresh("app", pair.refresh)
    bench.clock.advance(89 * DAY)
    last = bench.oauth.refresh("app", renewed.refresh)
    bench.clock.advance(91 * DAY)

    assert bench.error_of_refresh(last.refresh) == "invalid_grant"


def test_a_refresh_may_end_the_old_access_token() -> None:
    bench = Bench(old_access_dies=True)
    pair = bench.connect()

    new = bench.oauth.refresh("app", pair.refresh)

    assert not bench.works(pair)
    assert bench.works(new)


def test_another_clients_refresh_token_is_invalid() -> None:
    bench = Bench()

    assert bench.error_of_refresh(bench.connect().refresh, "another") == "invalid_grant"


def test_the_twenty_first_session_ends_the_oldest() -> None:
    bench = Bench()
    pairs = [bench.connect() for _ in range(21)]
    other = bench.connect(1)

    assert [bench.works(pair) for pair in pairs] == [False] + [True] * 20
    assert bench.works(other)
    assert bench.error_of_refresh(pairs[0].refresh) == "invalid_grant"


def test_unlinking_ends_refreshing_or_makes_it_useless() -> None:
    bench = Bench()
    fails, useless = bench.connect(0), bench.connect(1)

    bench.oauth.revoke(0, refresh_works=False)
    bench.oauth.revoke(1, refresh_works=True)

    assert not bench.works(fails)
    assert bench.error_of_refresh(fails.refresh) == "invalid_grant"
    assert not bench.works(useless)
    assert not bench.works(bench.oauth.refresh("app", useless.refresh))


def test_a_device_code_ends_after_an_hour() -> None:
    bench = Bench()
    device = bench.oauth.start_device("app")

    bench.clock.advance(3599)
    assert bench.error_of_poll(device.device_code) == "authorization_pending"
    bench.clock.advance(2)
    assert bench.error_of_poll(device.device_code) == "invalid_request"
    assert bench.oauth.decide(device.user_code, "allow", 0) is None
    assert bench.oauth.pending() == []


def test_polls_in_haste_are_slowed_down_and_those_in_time_are_not() -> None:
    bench = Bench()
    device = bench.oauth.start_device("app")

    errors = []
    for wait in (0, 5, 4, 5):
        bench.clock.advance(wait)
        errors.append(bench.error_of_poll(device.device_code))

    assert errors == ["authorization_pending", "authorization_pending", "slow_down", "authorization_pending"]


def test_another_clients_device_code_is_invalid() -> None:
    bench = Bench()

    assert bench.error_of_poll(bench.oauth.start_device("app").device_code, "another") == "invalid_request"


def test_a_seller_decides_once() -> None:
    bench = Bench()
    device = bench.oauth.start_device("app")

    assert bench.oauth.decide(device.user_code, "deny", 0) is not None
    assert bench.oauth.decide(device.user_code, "allow", 0) is None
    assert bench.error_of_poll(device.device_code) == "access_denied"
    bench.clock.advance(6)
    assert bench.error_of_poll(device.device_code) == "invalid_request"


def test_memory_does_not_grow_with_refreshes() -> None:
    bench = Bench(token_lifetime=10.0)
    pairs = [bench.connect(seller) for seller in range(3)]
    for _ in range(400):
        bench.clock.advance(100)
        pairs = [bench.oauth.refresh("app", pair.refresh) for pair in pairs]

    records: list[object] = []
    bench.oauth.listeners.append(records.append)
    bench.oauth.expire_access()

    assert len(records) < 30


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        ("Basic " + base64.b64encode(b"app:secret").decode(), "app"),
        ("basic " + base64.b64encode(b"app:secret").decode(), "app"),
        ("Basic " + base64.b64encode(b"app:wrong").decode(), None),
        ("Basic " + base64.b64encode(b"other:secret").decode(), None),
        ("Basic " + base64.b64encode(b"app").decode(), None),
        ("Basic %%%", None),
        ("Bearer token", None),
        ("", None),
    ],
)
def test_only_known_clients_are_accepted(header: str, expected: str | None) -> None:
    assert Bench(client=("app:secret",)).oauth.client(header) == expected
