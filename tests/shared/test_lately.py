"""What has come lately counts half after a half-life, whatever it came in."""

import math

from hypothesis import given
from hypothesis import strategies as st

from shared.lately import Lately


@given(number=st.integers(0, 10_000), half_lives=st.floats(0, 20))
def test_it_halves_with_every_half_life(number: int, half_lives: float) -> None:
    lately = Lately(0.5)
    lately.add(number, 7.0)

    assert math.isclose(lately.amount(7.0 + half_lives * 0.5), number * 0.5**half_lives, rel_tol=1e-9)


@given(parts=st.lists(st.integers(0, 1000), max_size=20))
def test_it_is_the_same_in_one_piece_or_in_many(parts: list[int]) -> None:
    whole, pieces = Lately(0.5), Lately(0.5)
    whole.add(sum(parts), 1.0)
    for part in parts:
        pieces.add(part, 1.0)

    assert math.isclose(whole.amount(3.0), pieces.amount(3.0), rel_tol=1e-9)


def test_a_steady_rate_comes_to_its_share_of_the_half_life() -> None:
    lately = Lately(0.5)
    for step in range(1000):
        lately.add(3, step / 100)

    assert math.isclose(lately.amount(9.99), 300 * 0.5 / math.log(2), rel_tol=0.02)
