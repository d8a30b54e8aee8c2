"""The authorisation server: device flow and rotating tokens as allegro-api.md, sections 1 and 2, describe them."""

import base64
import json
from typing import Any

import pytest

from simulator.clock import ManualClock
from simulator.oauth import AuthorizationServer, OAuthError, TokenPair
from simulator.settings import Settings

NOW_US = 1_791_670_000_000_000
CLIENT = "app"


def a_server(clock: ManualClock | None = None, **settings: Any) -> AuthorizationServer:
    return AuthorizationServer(Settings(**settings), clock or ManualClock(NOW_US), "https://allegro.example")


def consented(server: AuthorizationServer, seller: int = 0) -> TokenPair:
    code = server.start_device_flow(CLIENT, None)
    server.decide(code.user_code, "accept", seller)
    return server.poll(CLIENT, code.device_code)


def claims(token: str) -> dict[str, Any]:
    payload = token.split(".")[1]
    document: dict[str, Any] = json.loads(base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4)))
    return document


def refusal(error: pytest.ExceptionInfo[OAuthError]) -> tuple[int, str, str]:
    return error.value.status, error.value.error, error.value.description


def test_a_device_code_yields_tokens_once() -> None:
    server = a_server()
    code = server.start_device_flow(CLIENT, None)

    with pytest.raises(OAuthError) as pending:
        server.poll(CLIENT, code.device_code)
    assert server.decide(code.user_code, "accept", 2) == 2
    pair = server.poll(CLIENT, code.device_code)
    with pytest.raises(OAuthError) as used:
        server.poll(CLIENT, code.device_code)

    assert refusal(pending) == (400, "authorization_pending", "User has not authorized the device code yet.")
    assert refusal(used) == (400, "invalid_request", "Invalid device code")
    assert claims(pair.access_token)["user_name"] == "110000003"
    assert len(code.device_code) == 32
    assert code.user_code.isalnum()


@pytest.mark.parametrize("code", ["", "unknown", "x" * 32])
def test_an_unknown_device_code_is_invalid(code: str) -> None:
    with pytest.raises(OAuthError) as error:
        a_server().poll(CLIENT, code)

    assert refusal(error) == (400, "invalid_request", "Invalid device code")


def test_an_expired_device_code_is_invalid() -> None:
    clock = ManualClock(NOW_US)
    server = a_server(clock, device_lifetime=10.0)
    code = server.start_device_flow(CLIENT, None)
    clock.advance(10)

    with pytest.raises(OAuthError) as error:
        server.poll(CLIENT, code.device_code)

    assert refusal(error) == (400, "invalid_request", "Invalid device code")
    assert server.decide(code.user_code, "accept") is None


def test_who_polls_too_fast_is_told_to_slow_down() -> None:
    clock = ManualClock(NOW_US)
    server = a_server(clock, device_interval=5.0)
    code = server.start_device_flow(CLIENT, None)
    answers = []

    for seconds in (0.0, 5.0, 1.0, 5.0):
        clock.advance(seconds)
        with pytest.raises(OAuthError) as error:
            server.poll(CLIENT, code.device_code)
        answers.append(error.value.error)

    assert answers == ["authorization_pending", "authorization_pending", "slow_down", "authorization_pending"]


def test_a_denied_device_code_stays_denied() -> None:
    server = a_server()
    code = server.start_device_flow(CLIENT, None)
    server.decide(code.user_code, "deny")

    for _ in range(2):
        with pytest.raises(OAuthError) as error:
            server.poll(CLIENT, code.device_code)
        assert (error.value.status, error.value.error) == (400, "access_denied")


def test_sellers_consent_in_turn() -> None:
    server = a_server(sellers=2)
    codes = [server.start_device_flow(CLIENT, None) for _ in range(3)]

    assert [server.decide(code.user_code, "accept") for code in codes] == [0, 1, 0]


def test_a_spent_refresh_token_works_for_the_grace_only() -> None:
    clock = ManualClock(NOW_US)
    server = a_server(clock, refresh_grace=60.0)
    first = consented(server)
    second = server.refresh(CLIENT, first.refresh_token)
    clock.advance(59.9)
    again = server.refresh(CLIENT, first.refresh_token)
    clock.advance(0.1)

    with pytest.raises(OAuthError) as error:
        server.refresh(CLIENT, first.refresh_token)

    assert refusal(error) == (400, "invalid_grant", f"Invalid refresh token: {first.refresh_token}")
    assert len({first.refresh_token, second.refresh_token, again.refresh_token}) == 3
    assert len({first.access_token, second.access_token, again.access_token}) == 3
    for pair in (second, again):
        assert server.refresh(CLIENT, pair.refresh_token).access_token != pair.access_token


def test_access_tokens_expire_and_say_so() -> None:
    clock = ManualClock(NOW_US)
    server = a_server(clock, token_lifetime=100.0)
    pair = consented(server)
    assert server.check_bearer(f"Bearer {pair.access_token}").seller == 0
    clock.advance(100)

    with pytest.raises(OAuthError) as error:
        server.check_bearer(f"Bearer {pair.access_token}")

    assert refusal(error) == (401, "invalid_token", f"Access token expired: {pair.access_token}")
    assert pair.expires_in == 100
    assert claims(pair.access_token)["exp"] == NOW_US // 1_000_000 + 100


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        ("Bearer garbage", ("invalid_token", "Cannot convert access token to JSON")),
        ("Bearer a.b.c", ("invalid_token", "Cannot convert access token to JSON")),
        (None, ("unauthorized", "Full authentication is required to access this resource")),
        ("Basic YTpi", ("unauthorized", "Full authentication is required to access this resource")),
    ],
)
def test_no_token_of_ours(header: str | None, expected: tuple[str, str]) -> None:
    with pytest.raises(OAuthError) as error:
        a_server().check_bearer(header)

    assert refusal(error) == (401, *expected)


def test_revoking_ends_refresh_and_access() -> None:
    server = a_server()
    pair = consented(server)
    server.revoke(0)

    with pytest.raises(OAuthError) as refresh:
        server.refresh(CLIENT, pair.refresh_token)
    with pytest.raises(OAuthError) as access:
        server.check_bearer(f"Bearer {pair.access_token}")

    assert refresh.value.error == "invalid_grant"
    assert access.value.error == "invalid_token"


def test_an_unlinked_seller_gets_useless_tokens() -> None:
    server = a_server()
    pair = consented(server)
    server.unlink(0, "useless_tokens")

    fresh = server.refresh(CLIENT, pair.refresh_token)

    with pytest.raises(OAuthError) as error:
        server.check_bearer(f"Bearer {fresh.access_token}")
    assert error.value.status == 401


def test_an_unlinked_seller_cannot_refresh() -> None:
    server = a_server()
    pair = consented(server)
    server.unlink(0, "refresh_fails")

    with pytest.raises(OAuthError) as error:
        server.refresh(CLIENT, pair.refresh_token)

    assert error.value.error == "invalid_grant"


def test_expiring_access_tokens_leaves_refresh_tokens() -> None:
    server = a_server()
    pair = consented(server)
    server.expire_access_tokens()

    with pytest.raises(OAuthError):
        server.check_bearer(f"Bearer {pair.access_token}")
    fresh = server.refresh(CLIENT, pair.refresh_token)

    assert server.check_bearer(f"Bearer {fresh.access_token}").seller == 0


def test_the_21st_session_ends_the_oldest() -> None:
    server = a_server()
    pairs = [consented(server) for _ in range(21)]

    with pytest.raises(OAuthError):
        server.check_bearer(f"Bearer {pairs[0].access_token}")
    for pair in pairs[1:]:
        server.check_bearer(f"Bearer {pair.access_token}")


def test_long_tokens_are_longer_than_a_kilobyte() -> None:
    assert len(consented(a_server(long_tokens=True)).access_token) > 1024


@pytest.mark.parametrize("header", [None, "Basic", "Basic !!", "Basic YTpi", "Bearer YXBwOnNlY3JldA=="])
def test_a_wrong_client_is_refused(header: str | None) -> None:
    server = a_server(client=("app:secret",))

    with pytest.raises(OAuthError) as error:
        server.check_client(header)

    assert refusal(error) == (401, "invalid_client", "Client authentication failed")
    assert server.check_client("Basic YXBwOnNlY3JldA==") == "app"


def test_tokens_and_codes_survive_a_restart() -> None:
    clock = ManualClock(NOW_US)
    server = a_server(clock)
    pair = consented(server)
    waiting = server.start_device_flow(CLIENT, None)
    dumped = json.loads(json.dumps(server.dump()))

    restarted = a_server(clock)
    restarted.load(dumped)

    assert restarted.check_bearer(f"Bearer {pair.access_token}").seller == 0
    assert restarted.decide(waiting.user_code, "accept", 1) == 1
    assert restarted.refresh(CLIENT, pair.refresh_token).refresh_token != pair.refresh_token
