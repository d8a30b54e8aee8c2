"""How far walks may run ahead: together never much more than one may alone, each enough to keep Allegro's pace."""

from contextlib import ExitStack

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.enricher.headroom import Headroom


@given(st.integers(1, 500), st.integers(0, 5000))
def test_the_more_walks_go_on_the_less_each_may_have_under_way(walks: int, under_way: int) -> None:
    headroom = Headroom()
    with ExitStack() as stack:
        for _ in range(walks):
            stack.enter_context(headroom.walking())
        many = headroom.is_used_up(under_way=under_way)
    with headroom.walking():
        alone = headroom.is_used_up(under_way=under_way)

    assert many >= alone


@pytest.mark.parametrize(("walks", "allowed"), [(1, 1000), (3, 333), (100, 300)])
def test_what_is_under_way_is_shared_but_three_pages_are_always_allowed(walks: int, allowed: int) -> None:
    headroom = Headroom()
    with ExitStack() as stack:
        for _ in range(walks):
            stack.enter_context(headroom.walking())

        assert not headroom.is_used_up(under_way=allowed - 1)
        assert headroom.is_used_up(under_way=allowed)


@pytest.mark.parametrize(("walks", "pause"), [(1, 1 / 60), (30, 0.5), (500, 1.0)])
def test_waiting_walks_share_their_looks_and_none_looks_too_seldom_to_hear_a_stop(walks: int, pause: float) -> None:
    headroom = Headroom()
    with ExitStack() as stack:
        for _ in range(walks):
            stack.enter_context(headroom.walking())

        assert headroom.pause_seconds == pytest.approx(pause)
