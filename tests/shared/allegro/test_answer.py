"""What the headers of an answer tell: how long to wait."""

from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.allegro.answer import Answer

DATE = "Sun, 06 Nov 1994 08:49:37 GMT"


def retry_after(stated: str, **headers: str) -> timedelta | None:
    return Answer(429, {"Retry-After": stated, **headers}, b"").retry_after


@pytest.mark.parametrize(
    ("stated", "seconds"),
    [("17", 17), (" 17 ", 17), ("1.5", 2), ("0.2", 1), ("2.0", 2), ("0", 1), ("0.0", 1), ("999999", 999_999)],
)
def test_seconds_are_rounded_up_and_at_least_one(stated: str, seconds: int) -> None:
    assert retry_after(stated) == timedelta(seconds=seconds)


@pytest.mark.parametrize(
    "until", ["Sun, 06 Nov 1994 08:50:07 GMT", "Sunday, 06-Nov-94 08:50:07 GMT", "Sun Nov  6 08:50:07 1994"]
)
def test_a_date_in_any_form_counts_from_the_date_of_the_answer(until: str) -> None:
    assert retry_after(until, Date=DATE) == timedelta(seconds=30)


@pytest.mark.parametrize("date", ["", "yesterday"])
def test_a_date_counts_from_now_where_the_answer_has_none(date: str) -> None:
    until = format_datetime(datetime.now(UTC) + timedelta(seconds=90), usegmt=True)

    waited = retry_after(until, Date=date)

    assert waited is not None
    assert timedelta(seconds=60) < waited <= timedelta(seconds=90)


def test_a_date_that_has_passed_is_a_second() -> None:
    assert retry_after("Sat, 05 Nov 1994 08:49:37 GMT", Date=DATE) == timedelta(seconds=1)


@pytest.mark.parametrize(
    "stated",
    ["", "soon", "-1", "+1", "1e3", "inf", "1.", ".5", "1" * 30, "²", "1000000", "Wed, 06 Nov 2094 08:49:37 GMT"],
)
def test_what_is_of_no_use_is_no_statement(stated: str) -> None:
    assert retry_after(stated, Date=DATE) is None


@given(st.text(), st.text())
def test_no_header_however_odd_is_an_error(stated: str, date: str) -> None:
    waited = retry_after(stated, Date=date)

    assert waited is None or timedelta(seconds=1) <= waited <= timedelta(seconds=999_999)


@pytest.mark.parametrize("zone", ["+9999", "-9999", "+99999999999999", "-0000", "GMT"])
@pytest.mark.parametrize("year", ["0001", "9999", "99999"])
def test_no_date_however_odd_is_an_error(year: str, zone: str) -> None:
    odd = f"Mon, 01 Jan {year} 00:00:00 {zone}"

    assert retry_after(odd, Date=odd) in (None, timedelta(seconds=1))
