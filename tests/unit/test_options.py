"""Options by name: what they take from words and from JSON."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from actors.errors import RequestError
from actors.options import OPTIONS, OptionValue, check_option, parse_option


@pytest.mark.parametrize(
    ("name", "value", "checked"),
    [
        ("top_k", 3, 3), ("top_k", 3.9, 3), ("temperature", 1, 1.0), ("use_mmap", True, True),
        ("stop", "a", ["a"]), ("stop", ["a", "b"], ["a", "b"]), ("stop", [], []),
    ],
)  # fmt: skip
def test_json_values_take_the_options_type(name: str, value: OptionValue, checked: OptionValue) -> None:
    got = check_option(name, value)
    assert (got, type(got)) == (checked, type(checked))


@pytest.mark.parametrize(
    ("name", "value", "kind"),
    [
        ("temperature", "hot", "float32"), ("temperature", math.inf, "float32"),
        ("temperature", True, "float32"),
        ("temperature", 1e300, "float32"), ("top_k", "3", "integer"), ("top_k", True, "integer"),
        ("seed", 2**63, "integer"), ("use_mmap", 1, "boolean"), ("stop", 1, "array"), ("stop", [1], "array"),
    ],
)  # fmt: skip
def test_a_value_of_another_type_is_refused_in_ollamas_words(name: str, value: object, kind: str) -> None:
    with pytest.raises(RequestError, match=f'option "{name}" must be of type {kind}'):
        check_option(name, value)


@pytest.mark.parametrize(
    ("name", "words", "value"),
    [("top_k", ["3"], 3), ("top_k", ["3.0"], 3), ("top_p", ["0.5"], 0.5), ("use_mmap", ["False"], False),
     ("stop", ["a", "b"], ["a", "b"]), ("seed", ["-1"], -1)],
)  # fmt: skip
def test_words_are_read_in_the_options_type(name: str, words: list[str], value: OptionValue) -> None:
    assert parse_option(name, words) == value


@pytest.mark.parametrize("words", [[], ["1", "2"], [""], ["x"], ["nan"], ["1e999"], ["9" * 5000]])
def test_words_that_are_no_value_are_refused_by_name(words: list[str]) -> None:
    for name in ("top_k", "temperature"):
        with pytest.raises(RequestError, match=name):
            parse_option(name, words)


json_values = st.none() | st.booleans() | st.integers() | st.floats() | st.text()


@given(st.sampled_from(sorted(OPTIONS)), json_values)
def test_what_passes_once_passes_again_unchanged(name: str, value: object) -> None:
    try:
        checked = check_option(name, value)
    except RequestError:
        return
    assert check_option(name, checked) == checked
