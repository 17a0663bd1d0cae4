"""Spans of time."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from actors.duration import DurationError, parse_duration
from actors.errors import RequestError


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("300", 300.0),
        (300, 300.0),
        (0.5, 0.5),
        ("0", 0.0),
        ("-1", -1.0),
        ("1h30m", 5400.0),
        ("-1m", -60.0),
        ("+5s", 5.0),
        ("1.5h", 5400.0),
        (".5s", 0.5),
        ("1h2m3.5s", 3723.5),
        ("300ms", 0.3),
        ("7us", 7e-6),
        ("7µs", 7e-6),
        ("9ns", 9e-9),
        (" 5m ", 300.0),
        ("24h", 86400.0),
    ],
)
def test_spans_are_read_as_people_write_them(text: str | float, seconds: float) -> None:
    assert parse_duration(text) == pytest.approx(seconds)


@pytest.mark.parametrize(
    "bad", ["", " ", "m", "5x", "5 m", "1h30", "--5s", "1e3s", "nan", "inf", "5m!", "٣s"]
)
def test_anything_else_is_refused_by_name(bad: str) -> None:
    with pytest.raises(DurationError, match="invalid duration"):
        parse_duration(bad)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, 1e10, "300000000h"])
def test_spans_without_end_are_refused(bad: str | float) -> None:
    with pytest.raises(DurationError):
        parse_duration(bad)


def test_a_bad_span_in_a_request_is_the_requests_fault() -> None:
    assert issubclass(DurationError, RequestError)


@given(
    st.lists(st.tuples(st.integers(0, 999), st.sampled_from(["h", "m", "s", "ms"])), min_size=1, max_size=4),
    st.sampled_from(["", "-", "+"]),
)
def test_a_span_is_the_sum_of_its_parts(parts: list[tuple[int, str]], sign: str) -> None:
    unit_s = {"h": 3600.0, "m": 60.0, "s": 1.0, "ms": 0.001}
    total_s = sum(n * unit_s[unit] for n, unit in parts)
    text = sign + "".join(f"{n}{unit}" for n, unit in parts)
    assert parse_duration(text) == pytest.approx(-total_s if sign == "-" else total_s)
