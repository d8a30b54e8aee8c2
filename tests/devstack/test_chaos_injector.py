"""When faults are done: never two at once on what one of them holds, however slow the machine is."""

import asyncio
import sys
from pathlib import Path
from typing import Any, cast

import psutil

from devstack.chaos.injector import Injected, Injector, UnansweredError
from devstack.chaos.plan import Injection, Kind
from devstack.processes import Child

_LONG = 0.05


class NoStack:
    """The faults of these tests touch nothing."""

    def environment(self) -> dict[str, str]:
        return {"KAFKA_TOPIC_PREFIX": "test-"}


class SlowInjector(Injector):
    """Every kill takes long."""

    def __init__(self) -> None:
        super().__init__(cast("Any", NoStack()), cast("Any", None), [], {}, cast("Any", None), print)
        self.at_once: dict[str, int] = {}
        self.most_at_once = 0

    async def _kill(self, injected: Injected) -> None:
        self.at_once[injected.injection.target] = 1
        self.most_at_once = max(self.most_at_once, len(self.at_once))
        await asyncio.sleep(_LONG)
        del self.at_once[injected.injection.target]


async def test_two_faults_on_one_service_never_meet() -> None:
    injector = SlowInjector()

    await injector.run([Injection(0.0, Kind.KILL, "writer"), Injection(0.0, Kind.KILL, "writer-2")], 60)

    assert (len(injector.done), injector.most_at_once) == (2, 1)
    assert injector.done[0].ended <= injector.done[1].began


async def test_faults_on_two_services_go_on_side_by_side() -> None:
    injector = SlowInjector()

    await injector.run([Injection(0.0, Kind.KILL, "writer"), Injection(0.0, Kind.KILL, "poller")], 60)

    assert injector.most_at_once == 2


async def test_what_there_is_no_time_for_is_left_out_unless_its_like_has_not_been_done() -> None:
    injector = SlowInjector()
    plan = [Injection(0.0, Kind.KILL, name) for name in ("writer", "writer-2", "poller")]

    await injector.run(plan, seconds=0)

    assert [one.injection.target for one in injector.done] == ["writer", "poller"]
    assert injector.left_out == 1


class OneProcess(NoStack):
    """A stack of one process, which does nothing."""

    def __init__(self, child: Child) -> None:
        self.services = {child.name: child}


async def test_a_pause_ends_also_where_nobody_answers_what_the_process_held(tmp_path: Path) -> None:
    child = Child("poller", [sys.executable, "-c", "import time; time.sleep(60)"], log=tmp_path / "log")
    child.start()

    class Unanswered(Injector):
        async def _of_leases(self, look: Any) -> Any:
            raise UnansweredError("PostgreSQL is away")

    injector = Unanswered(cast("Any", OneProcess(child)), cast("Any", None), [], {}, cast("Any", None), print)
    try:
        await injector.run([Injection(0.0, Kind.PAUSE, "poller")], 60)

        assert injector.done[0].in_vain == "PostgreSQL is away"
        async with asyncio.timeout(10):
            while psutil.Process(child.pid).status() == psutil.STATUS_STOPPED:  # noqa: ASYNC110 - a signal is on its way
                await asyncio.sleep(_LONG)
    finally:
        child.kill()
