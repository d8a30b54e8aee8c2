"""Who is refused, and for how long (section 6 of what is known about the service)."""

from simulator.limits import Bucket, ClientLimit, Limits

MINUTE = 60.0


def test_a_client_over_its_limit_is_blocked_for_a_minute() -> None:
    limit = ClientLimit(5, MINUTE)

    assert [limit.wait_seconds(100.0) for _ in range(6)] == [0, 0, 0, 0, 0, MINUTE]
    assert limit.wait_seconds(160.1) == 0


def test_requests_during_the_block_prolong_it() -> None:
    limit = ClientLimit(1, MINUTE)
    limit.wait_seconds(100.0)

    for now in (101.0, 140.0, 180.0, 220.0):
        assert limit.wait_seconds(now) == MINUTE

    assert limit.wait_seconds(280.1) == 0


def test_the_minute_of_the_client_slides() -> None:
    limit = ClientLimit(60, MINUTE)

    waits = [limit.wait_seconds(1000.0 + second * 1.02) for second in range(200)]

    assert waits == [0] * 200


def test_a_burst_over_the_edge_of_a_minute_is_seen() -> None:
    limit = ClientLimit(60, MINUTE)
    before = [limit.wait_seconds(1019.0) for _ in range(40)]

    after = [limit.wait_seconds(1021.0) for _ in range(40)]

    assert not any(before)
    assert any(after)


def test_a_bucket_takes_a_minutes_requests_at_once_and_then_leaks() -> None:
    bucket = Bucket(60, MINUTE)

    assert not any(bucket.wait_seconds(100.0) for _ in range(60))
    assert 0 < bucket.wait_seconds(100.0) <= 1.0
    assert bucket.wait_seconds(101.1) == 0
    assert bucket.remaining == 0


def test_a_refused_request_does_not_fill_the_bucket() -> None:
    bucket = Bucket(2, MINUTE)

    for _ in range(100):
        bucket.wait_seconds(100.0)

    assert bucket.wait_seconds(130.1) == 0


def test_zero_means_no_limit() -> None:
    limits = Limits(0, {"events": 0}, MINUTE)

    assert not any(limits.client("app").wait_seconds(1.0) for _ in range(1000))
    assert limits.client("app").remaining is None
    assert limits.bucket("events", "seller") is None


def test_sellers_share_the_clients_limit_and_have_buckets_of_their_own() -> None:
    limits = Limits(2, {"events": 1}, MINUTE)

    assert limits.client("app") is limits.client("app")
    assert limits.client("app") is not limits.client("another")
    assert limits.bucket("events", "one") is not limits.bucket("events", "two")
