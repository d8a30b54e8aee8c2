"""What `make up` does when something dies or is missing."""

from pathlib import Path

import pytest

from devstack.errors import DevstackError
from devstack.up import Restarts, Watched, check_real_allegro, environment_with_dotenv, look


class Fake:
    """Something that runs or not, and counts its starts."""

    def __init__(self, *, starts_well: bool = True) -> None:
        self.alive = True
        self.starts = 0
        self._starts_well = starts_well

    def running(self) -> bool:
        return self.alive

    def start(self) -> None:
        self.starts += 1
        if not self._starts_well:
            raise DevstackError("the disk is full")
        self.alive = True

    def watched(self) -> Watched:
        return Watched("writer", self.running, self.start, None, Restarts(0))


def test_what_runs_is_left_alone() -> None:
    fake, said = Fake(), list[str]()

    look([fake.watched()], 100, said.append)

    assert (fake.starts, said) == (0, [])


def test_what_died_is_started_again_after_a_second() -> None:
    fake, said = Fake(), list[str]()
    watched = fake.watched()
    fake.alive = False

    for now in (100.0, 100.5, 101.0, 101.5):
        look([watched], now, said.append)

    assert fake.starts == 1
    assert said == ["writer has ended; starting it again in 1 s", "writer was started again"]


def test_what_keeps_dying_waits_ever_longer_and_at_most_half_a_minute() -> None:
    restarts = Restarts(0)
    restarts.started(0)

    delays = [restarts.died(10) for _ in range(7)]

    assert delays == [1, 2, 4, 8, 16, 30, 30]


def test_a_minute_of_health_forgives_what_was() -> None:
    restarts = Restarts(0)
    restarts.died(10)
    restarts.started(11)
    restarts.died(12)
    restarts.started(14)

    assert restarts.died(80) == 1


def test_what_does_not_start_is_said_and_tried_again() -> None:
    fake, said = Fake(starts_well=False), list[str]()
    watched = fake.watched()
    fake.alive = False

    for now in (100.0, 101.0, 103.0):
        look([watched], now, said.append)

    assert fake.starts == 2
    assert said[1:] == [
        "writer does not start; next try in 2 s: the disk is full",
        "writer does not start; next try in 4 s: the disk is full",
    ]


def test_the_environment_wins_over_dotenv(tmp_path: Path) -> None:
    dotenv = tmp_path / ".env"
    dotenv.write_text("LOG_LEVEL=DEBUG\nALLEGRO_CLIENT_ID=\nSYNC_INTERVAL_SECONDS=60\n")

    environment = environment_with_dotenv({"LOG_LEVEL": "ERROR"}, dotenv)

    assert environment == {"LOG_LEVEL": "ERROR", "SYNC_INTERVAL_SECONDS": "60"}


def test_a_missing_dotenv_is_fine(tmp_path: Path) -> None:
    assert environment_with_dotenv({"A": "b"}, tmp_path / ".env") == {"A": "b"}


def test_the_real_allegro_asks_for_more_than_a_client_id() -> None:
    with pytest.raises(DevstackError, match="also needs ALLEGRO_CLIENT_SECRET and ALLEGRO_USER_AGENT: set"):
        check_real_allegro({"ALLEGRO_CLIENT_ID": "x"})
