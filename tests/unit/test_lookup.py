"""Speculation by prompt look-up: what is drafted, how much, and when it rests."""

import hypothesis.strategies as st
import pytest
from hypothesis import given

from actors.runner.lookup import N_DRAFT_MAX, N_REST, Lookup, n_worth

FREE = 0.0  # an input more costs nothing


def test_what_followed_the_same_three_tokens_last_is_drafted() -> None:
    history = [1, 2, 3, 4, 5, 9, 1, 2, 3, 6, 7, 8, 1, 2, 3]
    assert Lookup().draft(history, 3, FREE) == [6, 7, 8]


def test_two_equal_tokens_are_not_enough() -> None:
    assert not Lookup().draft([0, 2, 3, 4, 1, 2, 3], 4, FREE)


def test_the_history_may_grow_between_drafts() -> None:
    lookup, history = Lookup(), [1, 2, 3, 4]
    assert not lookup.draft(history, 4, FREE)
    history += [1, 2, 3]
    assert lookup.draft(history, 2, FREE) == [4, 1]


def test_a_history_that_was_shifted_is_learnt_anew() -> None:
    lookup = Lookup()
    assert lookup.draft([1, 2, 3, 4, 1, 2, 3], 1, FREE) == [4]
    assert not lookup.draft([5, 6, 1, 2, 3], 1, FREE)


def test_a_long_prompt_is_learnt_in_several_draws() -> None:
    lookup, history = Lookup(), [*range(9000), 7000, 7001, 7002]
    assert not lookup.draft(history, 2, FREE)
    assert lookup.draft(history, 2, FREE) == [7003, 7004]


def test_a_sequence_that_is_wrong_too_often_rests_and_tries_again() -> None:
    lookup, history = Lookup(), [1, 2, 3, 4, 1, 2, 3]
    n_drafts = 0
    while lookup.draft(history, 4, input_cost=0.2):
        lookup.judge(4, 0)
        n_drafts += 1
        assert n_drafts < 20
    assert n_drafts > 0
    while not lookup.draft(history, 4, input_cost=0.2):
        history += [1, 2, 3]
    assert N_REST <= len(history) - 7 <= N_REST + 3


@given(st.floats(0, 1), st.floats(0, 2), st.integers(0, 20))
def test_a_draft_is_as_long_as_makes_a_token_cheapest(rate: float, cost: float, n_most: int) -> None:
    def price(n: int) -> float:
        return (1 + n * cost) / (1 + sum(rate**i for i in range(1, n + 1)))

    n = n_worth(rate, cost, n_most)
    assert 0 <= n <= n_most
    assert price(n) <= min(price(other) for other in range(n_most + 1)) + 1e-9


@given(st.lists(st.integers(0, 3), max_size=60), st.integers(0, 12))
def test_a_draft_is_part_of_the_history_after_its_own_end(history: list[int], n_most: int) -> None:
    drafted = list(Lookup().draft(history, n_most, FREE))
    assert len(drafted) <= min(n_most, N_DRAFT_MAX)
    if drafted:
        found = [*history[-3:], *drafted]
        assert any(history[i : i + len(found)] == found for i in range(len(history) - 3))


@pytest.mark.parametrize("n_right", range(5))
def test_each_judgement_moves_the_rate_towards_what_was_right(n_right: int) -> None:
    lookup = Lookup()
    for _ in range(200):
        lookup.judge(4, n_right)
    assert lookup.rate == pytest.approx(n_right / min(n_right + 1, 4), abs=1e-6)
