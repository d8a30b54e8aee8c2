"""Puts everything together: one `Simulator` is a whole Allegro behind one port."""

import asyncio
import logging
from types import TracebackType
from typing import Final, Self

from simulator import errors
from simulator.api import Api
from simulator.auth import CONSENT_PATH, Auth, Consents
from simulator.clock import SECOND_US, Clock, SystemClock
from simulator.control import PREFIX, Control
from simulator.dice import Dice, Rolls
from simulator.faults import AUTH_ENDPOINTS, Faults
from simulator.live import Live
from simulator.oauth import OAuth
from simulator.settings import Settings
from simulator.stats import Stats
from simulator.store import Store
from simulator.wire import Answer, Request, Server
from simulator.world import World

_LOG: Final = logging.getLogger("simulator")
_PATHS: Final = {
    "/me": "me",
    "/order/events": "events",
    "/order/event-stats": "event_stats",
    "/order/checkout-forms": "list",
    "/auth/oauth/device": "device",
    "/auth/oauth/token": "token",
}
_DETAIL_PREFIX: Final = "/order/checkout-forms/"
# The agenda is looked at this often when nothing is due; requests look as well.
_LONGEST_SLEEP_SECONDS: Final = 0.05


class Simulator:
    """Use it as an asynchronous context manager; `url` is known inside."""

    def __init__(self, settings: Settings, clock: Clock | None = None) -> None:
        self._settings = settings
        clock = clock or SystemClock()
        store = Store(settings.state_file) if settings.state_file is not None else None
        epoch_ms = settings.epoch_ms(clock.now_us() // 1000)
        if store is not None:
            epoch_ms = store.epoch_ms(settings, epoch_ms)
        self.faults = Faults(settings.seed)
        self.world = World(settings, clock, self.faults, epoch_ms)
        self.oauth = OAuth(settings, clock.now_us)
        self.stats = Stats()
        self.live = Live(self.world, settings)
        consents = Consents(self.world, self.oauth)
        self._api = Api(self.world, self.oauth, self.faults, settings, self.stats)
        self._auth = Auth(self.world, self.oauth, self.faults, settings, consents)
        self._control = Control(self.world, self.oauth, self.faults, self.stats, consents, self.live)
        self._latency = Rolls(Dice(settings.seed, "latency"))
        self._store = store
        self._server = Server(self.handle, _report)
        self._pulse: asyncio.Task[None] | None = None
        self.url = ""

    async def __aenter__(self) -> Self:
        if self._store is not None:
            self._store.attach(self.world, self.oauth)
        port = await self._server.start(self._settings.host, self._settings.port)
        self.url = f"http://{self._settings.host}:{port}"
        if self._settings.live_orders:
            self.live.start(self._settings.live_orders, self._settings.live_rate)
        self._pulse = asyncio.get_running_loop().create_task(self._beat())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._pulse is not None:
            self._pulse.cancel()
            await asyncio.gather(self._pulse, return_exceptions=True)
        await self._server.stop()
        if self._store is not None:
            self._store.close()

    async def _beat(self) -> None:
        """Let things happen when they are due, also while nobody asks."""
        while True:
            self.world.tick()
            due_us = self.world.agenda.next_us
            wait = _LONGEST_SLEEP_SECONDS if due_us is None else (due_us - self.world.now_us()) / SECOND_US
            await asyncio.sleep(min(max(wait, 0.001), _LONGEST_SLEEP_SECONDS))

    def handle(self, request: Request) -> Answer:
        self.world.tick()
        path = request.path
        endpoint, argument = _PATHS.get(path), ""
        if endpoint is None and path.startswith(_DETAIL_PREFIX):
            endpoint, argument = "detail", path[len(_DETAIL_PREFIX) :]
        if endpoint is not None:
            answer = self._allegro(endpoint, request, argument)
            answered = answer.silent_seconds is None and answer.cut_at is None
            self.stats.count(endpoint, answer.status, self.world.now_us(), answered=answered)
            return answer
        if path.startswith(PREFIX):
            return self._control.answer(request)
        if path == CONSENT_PATH:
            return self._auth.page(request)
        return errors.no_such_resource(path)

    def _allegro(self, endpoint: str, request: Request, argument: str) -> Answer:
        seller = self._api.caller(request) if self.faults.name_sellers else None
        answer = self._instead(endpoint, seller)
        if answer is None:
            if endpoint in AUTH_ENDPOINTS:
                answer = self._auth.answer(endpoint, request)
            else:
                answer = self._api.answer(endpoint, request, argument)
            self._spoil(endpoint, seller, answer)
        answer.delay_seconds += self._latency_seconds()
        return answer

    def _instead(self, endpoint: str, seller: str | None) -> Answer | None:
        """What a fault answers in place of the endpoint."""
        faults = self.faults
        if faults.strikes("maintenance", endpoint, seller):
            return errors.unavailable(503, 0)
        if endpoint in AUTH_ENDPOINTS and faults.strikes("captcha_403", endpoint, seller):
            return errors.captcha(faults.struck["captcha_403"])
        limited = faults.strikes("http_429", endpoint, seller)
        if limited is not None:
            return errors.too_many_requests(limited.amount)
        broken = faults.strikes("http_5xx", endpoint, seller)
        if broken is not None:
            number = faults.struck["http_5xx"]
            statuses = broken.statuses or (502, 503, 504)
            return errors.unavailable(statuses[number % len(statuses)], number // 3)
        silent = faults.strikes("timeout", endpoint, seller)
        if silent is not None:
            return Answer(504, silent_seconds=silent.amount)
        return None

    def _spoil(self, endpoint: str, seller: str | None, answer: Answer) -> None:
        """What a fault does to an answer on its way; the request has had its effect."""
        faults = self.faults
        if faults.strikes("malformed_json", endpoint, seller):
            answer.body = answer.body[: len(answer.body) * 2 // 3]
        slow = faults.strikes("slow_body", endpoint, seller)
        if slow is not None:
            # Now all of the seconds, now half of them: one is too long for a client that the other only tries.
            answer.drip_seconds = slow.amount if faults.struck["slow_body"] % 2 else slow.amount / 2
        if faults.strikes("cut_connection", endpoint, seller):
            # Now before the first byte, now in the middle.
            answer.cut_at = 0 if faults.struck["cut_connection"] % 2 else 200 + len(answer.body) // 2

    def _latency_seconds(self) -> float:
        settings = self._settings
        if not settings.latency_ms and not settings.latency_jitter_ms:
            return 0.0
        jitter = settings.latency_jitter_ms * self._latency.fraction() if settings.latency_jitter_ms else 0.0
        return (settings.latency_ms + jitter) / 1000


def _report(error: BaseException | None) -> None:
    _LOG.error("an answer could not be sent", exc_info=error)
