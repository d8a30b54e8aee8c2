"""Every setting: a flag, or an environment variable SIMULATOR_<FLAG>."""

import argparse
import os
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal


def _setting(default: object, text: str, *aliases: str, **more: Any) -> Any:
    return field(default=default, metadata={"help": text, "aliases": aliases, **more})


@dataclass(frozen=True)
class Settings:
    host: str = _setting("127.0.0.1", "address to listen on; the control endpoints have no password")
    port: int = _setting(0, "0: any free port")
    seed: int = _setting(1, "of everything that is derived")
    epoch: str = _setting("", "the end of the history, ISO 8601; the start of the process if not given")
    sellers: int = _setting(3, "ready-made sellers")
    history_orders: int = _setting(200, "orders of each seller's past", "--orders")
    history_days: float = _setting(400.0, "the days over which they are spread; Allegro keeps 365")
    future_fields: float = _setting(0.03, "part of the orders that carry fields nobody knows yet")
    state_file: Path | None = _setting(None, "consents, tokens and live orders survive a restart in this file")

    client: tuple[str, ...] = _setting((), "ID:SECRET that is accepted, repeatable; none: any", repeatable=True)
    token_lifetime: float = _setting(43199.0, "seconds of an access token")
    refresh_lifetime: float = _setting(90 * 86400.0, "seconds of a refresh token")
    refresh_grace: float = _setting(60.0, "seconds that a spent refresh token still works")
    long_tokens: bool = _setting(False, "tokens with 25 scopes, longer than 1 kB")
    old_access_dies: bool = _setting(False, "a refresh ends the access token before it (#9045)")
    session_limit: int = _setting(20, "sessions of a seller; one more ends the oldest; 0: no limit")
    device_interval: float = _setting(5.0, "seconds between polls of a device code; it is sent rounded up")
    device_lifetime: float = _setting(3600.0, "seconds of a device code")

    client_limit: int = _setting(9000, "requests a minute of a client id; 0: no limit")
    events_limit: int = _setting(60, "of the journal, a minute and token; 0: no limit")
    list_limit: int = _setting(100, "of the list, a minute and token; 0: no limit")
    detail_limit: int = _setting(1000, "of single orders, a minute and token; 0: no limit")
    device_limit: int = _setting(10, "starts of the device flow, a minute and client id; 0: no limit")
    time_scale: float = _setting(1.0, "a limit's minute lasts 60 s divided by this")
    retry_after: bool = _setting(False, "send Retry-After with 429; Allegro is not known to")
    rate_headers: bool = _setting(False, "send X-RateLimit-Remaining, as Allegro did until about 2020")
    check_headers: bool = _setting(True, "refuse a wrong Accept or User-Agent")
    latency_ms: float = _setting(0.0, "before every answer of Allegro's endpoints")
    latency_jitter_ms: float = _setting(0.0, "at most so much more")

    journal_delay: float = _setting(0.2, "seconds from an event to its journal entry, at least; Allegro: 12")
    journal_jitter: float = _setting(0.1, "at most so much more; Allegro: 8")
    live_orders: int = _setting(0, "new orders from the start on")
    live_rate: float = _setting(1.0, "of them a second")
    live_sellers: Literal["connected", "all"] = _setting("connected", "who gets them", choices=("connected", "all"))
    live_step_seconds: float = _setting(0.5, "from one step of a live order to the next, on average")
    live_history: float = _setting(0.25, "past orders whose seller changes the status, for each new order")

    @property
    def limit_minute_seconds(self) -> float:
        return 60.0 / self.time_scale

    def epoch_ms(self, now_ms: int) -> int:
        if not self.epoch:
            return now_ms
        moment = datetime.fromisoformat(self.epoch)
        return round((moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp() * 1000)


def read_settings(arguments: Sequence[str], environ: Mapping[str, str] = os.environ) -> Settings:
    """Flags win over the environment; exits with a message if one is wrong."""
    parser = argparse.ArgumentParser(prog="python -m simulator", description="A simulated Allegro.")
    for entry in fields(Settings):
        default = entry.default
        assert default is not MISSING  # noqa: S101 - every setting has one
        variable = environ.get(f"SIMULATOR_{entry.name.upper()}")
        options: dict[str, Any] = {"help": f"{entry.metadata['help']} (default: {default})", "dest": entry.name}
        if "choices" in entry.metadata:
            options["choices"] = entry.metadata["choices"]
        if isinstance(default, bool):
            options |= {"action": argparse.BooleanOptionalAction}
            options["default"] = default if variable is None else variable.lower() in ("1", "true", "yes", "on")
        elif "repeatable" in entry.metadata:
            options |= {"action": "append", "default": variable.split(",") if variable else []}
        else:
            options |= {"type": Path if entry.name == "state_file" else type(default)}
            options["default"] = variable if variable else default
        parser.add_argument(f"--{entry.name.replace('_', '-')}", *entry.metadata["aliases"], **options)
    values = vars(parser.parse_args(arguments))
    values["client"] = tuple(values["client"])
    return Settings(**values)
