"""Every setting: a flag, or an environment variable SIMULATOR_<FLAG>."""

import argparse
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, Final, Literal, get_args, get_type_hints


@dataclass(frozen=True)
class Settings:
    host: Annotated[str, "address to listen on; the control endpoints have no password"] = "127.0.0.1"
    port: Annotated[int, "0: any free port"] = 0
    seed: Annotated[int, "of everything that is derived"] = 1
    epoch: Annotated[str, "the end of the history, ISO 8601; the start of the process if not given"] = ""
    sellers: Annotated[int, "ready-made sellers"] = 3
    history_orders: Annotated[int, "orders of each seller's past"] = 200
    history_days: Annotated[float, "the days over which they are spread; Allegro keeps 365"] = 400.0
    future_fields: Annotated[float, "part of the orders that carry fields nobody knows yet"] = 0.03
    state_file: Annotated[Path | None, "consents, tokens and live orders survive a restart in this file"] = None

    client: Annotated[tuple[str, ...], "ID:SECRET that is accepted, repeatable; none: any"] = ()
    token_lifetime: Annotated[float, "seconds of an access token"] = 43199.0
    refresh_lifetime: Annotated[float, "seconds of a refresh token"] = 90 * 86400.0
    refresh_grace: Annotated[float, "seconds that a spent refresh token still works"] = 60.0
    long_tokens: Annotated[bool, "tokens with 25 scopes, longer than 1 kB"] = False
    old_access_dies: Annotated[bool, "a refresh ends the access token before it (#9045)"] = False
    session_limit: Annotated[int, "sessions of a seller; one more ends the oldest; 0: no limit"] = 20
    device_interval: Annotated[float, "seconds between polls of a device code"] = 5.0
    device_lifetime: Annotated[float, "seconds of a device code"] = 3600.0

    client_limit: Annotated[int, "requests a minute of a client id; 0: no limit"] = 9000
    events_limit: Annotated[int, "of the journal, a minute and seller; 0: no limit"] = 60
    list_limit: Annotated[int, "of the list, a minute and seller; 0: no limit"] = 100
    detail_limit: Annotated[int, "of single orders, a minute and seller; 0: no limit"] = 1000
    device_limit: Annotated[int, "starts of the device flow, a minute and client id; 0: no limit"] = 10
    time_scale: Annotated[float, "a limit's minute lasts 60 s divided by this"] = 1.0
    retry_after: Annotated[bool, "send Retry-After with 429; Allegro is not known to"] = False
    rate_headers: Annotated[bool, "send X-RateLimit-Remaining, as Allegro did until about 2020"] = False
    check_headers: Annotated[bool, "refuse a wrong Accept or User-Agent"] = True
    note_served: Annotated[bool, "remember when each new event was first served: /_sim/served"] = False
    latency_ms: Annotated[float, "before every answer of Allegro's endpoints"] = 0.0
    latency_jitter_ms: Annotated[float, "at most so much more"] = 0.0

    journal_delay: Annotated[float, "seconds from an event to its journal entry, at least; Allegro: 12"] = 0.2
    journal_jitter: Annotated[float, "at most so much more; Allegro: 8"] = 0.1
    live_orders: Annotated[int, "new orders from the start on"] = 0
    live_rate: Annotated[float, "of them a second"] = 1.0
    live_sellers: Annotated[Literal["connected", "all"], "who gets them"] = "connected"
    live_step_seconds: Annotated[float, "from one step of a live order to the next, on average"] = 0.5
    live_history: Annotated[float, "past orders whose status the seller changes, for each new order"] = 0.25

    @property
    def limit_minute_seconds(self) -> float:
        return 60.0 / self.time_scale

    def epoch_ms(self, now_ms: int) -> int:
        if not self.epoch:
            return now_ms
        moment = datetime.fromisoformat(self.epoch)
        return round((moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp() * 1000)


_ALIASES: Final[Mapping[str, Sequence[str]]] = {"history_orders": ["--orders"]}


def read_settings(arguments: Sequence[str], environ: Mapping[str, str] = os.environ) -> Settings:
    """Flags win over the environment; exits with a message if one is wrong."""
    parser = argparse.ArgumentParser(prog="python -m simulator", description="A simulated Allegro.")
    hints = get_type_hints(Settings, include_extras=True)
    for entry in fields(Settings):
        kind, text = get_args(hints[entry.name])
        variable = environ.get(f"SIMULATOR_{entry.name.upper()}")
        options = _options(kind, entry.default, variable)
        flag = f"--{entry.name.replace('_', '-')}"
        parser.add_argument(
            flag, *_ALIASES.get(entry.name, ()), dest=entry.name, help=f"{text} (default: {entry.default})", **options
        )
    values = vars(parser.parse_args(arguments))
    values["client"] = tuple(values["client"])
    return Settings(**values)


def _options(kind: Any, default: object, variable: str | None) -> dict[str, Any]:
    """How argparse reads a setting of that type; it converts texts from the environment as well."""
    if kind is bool:
        on = default if variable is None else variable.lower() in ("1", "true", "yes", "on")
        return {"action": argparse.BooleanOptionalAction, "default": on}
    if kind == tuple[str, ...]:
        return {"action": "append", "default": variable.split(",") if variable else []}
    if isinstance(default, str) and (choices := get_args(kind)):
        return {"choices": choices, "default": variable or default}
    return {"type": Path if default is None else kind, "default": variable or default}
