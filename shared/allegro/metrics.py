"""What calls to Allegro tell Prometheus; labels come from small closed sets."""

from functools import cache

from prometheus_client import Counter, Gauge, Histogram

requests = Counter(
    "orders_backup_allegro_requests_total",
    "Requests to Allegro by endpoint and outcome (a status class, or the kind of failure).",
    ["endpoint", "outcome"],
)
request_seconds = Histogram(
    "orders_backup_allegro_request_seconds",
    "Time from sending a request to having its whole answer.",
    ["endpoint"],
    buckets=(0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30),
)
limit_wait_seconds = Histogram(
    "orders_backup_allegro_limit_wait_seconds",
    "Time a request waited for its limits; high values mean that the allowance is used up.",
    ["endpoint"],
    buckets=(0.001, 0.01, 0.1, 0.5, 1, 5, 15, 60, 300),
)
refreshes = Counter("orders_backup_token_refreshes_total", "Refreshes of token pairs by outcome.", ["outcome"])
blocked_until = Gauge(
    "orders_backup_allegro_blocked_until_seconds",
    "Unix time until which Allegro blocked the client id; in the past: not blocked.",
)
outage = Gauge(
    "orders_backup_allegro_outage",
    "1 while this process pauses its calls, because those of most sellers failed; one of several is not enough.",
)
blocks = Counter("orders_backup_allegro_429_total", "Answers 429: our own pacing should leave none.")
permits = Counter(
    "orders_backup_allegro_permits_total",
    "Requests allowed by the limits, by kind of traffic: what is used of the client id's allowance.",
    ["traffic"],
)
allowance = Gauge(
    "orders_backup_allegro_allowance_requests_per_second",
    "What the client id may ask for, all sellers and processes together (ALLEGRO_CLIENT_LIMIT_PER_MINUTE); the rate of"
    " orders_backup_allegro_permits_total of all processes over this is the used share.",
)
remaining = Gauge(
    "orders_backup_allegro_remaining_requests",
    "The last X-RateLimit-Remaining, where Allegro sends it (it seldom does).",
)


@cache
def request_count(endpoint: str, outcome: str) -> Counter:
    """Of these labels; remembered, since finding it costs more than counting, and every request counts."""
    return requests.labels(endpoint, outcome)


@cache
def request_time(endpoint: str) -> Histogram:
    return request_seconds.labels(endpoint)


@cache
def limit_wait(endpoint: str) -> Histogram:
    return limit_wait_seconds.labels(endpoint)


@cache
def permit_count(traffic: str) -> Counter:
    return permits.labels(traffic)
