"""When an answer counts as a loop."""

import pytest

from actors.runner.repetition import LEAST_TIMES, repeats


@pytest.mark.parametrize("period", [1, 2, 3, 7, 16])
@pytest.mark.parametrize("n_more", [0, 1])
def test_a_group_over_and_over_is_a_loop(period: int, n_more: int) -> None:
    group = list(range(period))
    tokens = (group * 64)[: 64 + n_more]
    assert repeats(tokens, 64)


def test_a_group_may_hold_the_same_token_twice() -> None:
    assert repeats([1, 2, 1, 3] * 8, 32)


@pytest.mark.parametrize("place", [0, 1, 31, 62, 63])
def test_one_other_token_makes_it_none(place: int) -> None:
    tokens = [1, 2] * 32
    tokens[place] = 9
    assert not repeats(tokens, 64)


def test_fewer_times_than_it_takes_are_none() -> None:
    group = list(range(20))
    assert not repeats(group * (LEAST_TIMES - 1), 60)
    assert repeats(group * LEAST_TIMES, 80)


def test_a_list_that_repeats_its_form_only_is_none() -> None:
    assert not repeats([token for i in range(64) for token in (5, 6, 100 + i, 7)], 256)


def test_less_than_was_asked_for_is_none() -> None:
    assert not repeats([1] * 63, 64)
    assert not repeats([], 1)
