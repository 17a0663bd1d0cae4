"""Truncation and context shift, on plain values."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from actors.errors import RequestError
from actors.runner.context import n_discard, shift, truncate
from actors.runner.groups import NO_GROUPS, Groups, groups_of


@pytest.mark.parametrize(
    ("n_ctx", "n_keep", "n_inputs", "expected"),
    [
        (2048, 5, 2048, 1021),
        (2048, 2047, 2048, 1),
        (2048, 0, 2048, 1024),
        (2048, 5, 5000, 3973),
        (2048, 2047, 5000, 2953),
        (2048, 5, 512, 0),
    ],
)
def test_discard_vectors_of_the_predecessor(n_ctx: int, n_keep: int, n_inputs: int, expected: int) -> None:
    assert n_discard(n_ctx, n_keep, n_inputs) == expected


@pytest.mark.parametrize(
    ("n_ctx", "n_keep", "spans", "expected"),
    [
        (2048, 5, [(1024, 512)], 1531),
        (2048, 5, [(10, 512)], 1021),
        (32, 0, [(0, 10), (10, 10), (20, 10), (30, 10)], 20),
        (32, 0, [(4, 10), (8, 10), (14, 10)], 24),
    ],
)
def test_discard_vectors_with_groups(
    n_ctx: int, n_keep: int, spans: list[tuple[int, int]], expected: int
) -> None:
    n_inputs = max(n_ctx, *(first + n for first, n in spans))  # a group that is about to come is counted
    history, groups = shift(range(n_inputs), groups_of(spans), n_ctx, n_keep)
    assert n_inputs - len(history) == expected
    assert_groups_are_whole(history, groups, groups_of(spans))


@pytest.mark.parametrize("n_inputs", range(33, 61))
def test_truncation_keeps_front_and_end(n_inputs: int) -> None:
    tokens = list(range(n_inputs))
    cut, _ = truncate(tokens, NO_GROUPS, n_ctx=32, n_keep=4)
    assert len(cut) == 32
    assert cut[:4] == tokens[:4]
    assert cut[4:] == tokens[-28:]


@pytest.mark.parametrize("n_inputs", range(33, 61))
def test_truncation_cuts_no_group(n_inputs: int) -> None:
    before = groups_of([(6, 10)])
    cut, groups = truncate(range(n_inputs), before, n_ctx=32, n_keep=4)
    assert cut[:4] == [0, 1, 2, 3]
    assert len(cut) <= 32
    assert_groups_are_whole(cut, groups, before)


def test_a_prompt_that_ends_with_a_group_too_long_is_refused() -> None:
    with pytest.raises(RequestError, match=r"40 tokens, 32 fit"):
        truncate(range(40), groups_of([(4, 36)]), n_ctx=32, n_keep=4)


@given(st.integers(1, 64), st.integers(-1, 100), st.integers(0, 200))
def test_truncation_never_exceeds_the_context_and_keeps_the_last_input(
    n_ctx: int, n_keep: int, n: int
) -> None:
    cut, _ = truncate(range(n), NO_GROUPS, n_ctx, n_keep)
    assert len(cut) == min(n, n_ctx)
    assert not n or cut[-1] == n - 1


some_spans = st.lists(st.tuples(st.integers(0, 80), st.integers(1, 20)), max_size=6)


@given(some_spans, st.integers(1, 64), st.integers(-1, 70))
def test_whatever_is_dropped_groups_are_dropped_whole(
    spans: list[tuple[int, int]], n_ctx: int, n_keep: int
) -> None:
    before = groups_of(spans)
    cut, groups = truncate(range(101), before, n_ctx, n_keep)
    assert cut[-1] == 100  # is of no group
    assert_groups_are_whole(cut, groups, before)
    # full again: generated inputs are of no group either
    history = [*cut, *range(101, 101 + n_ctx - len(cut) + 1)]
    later, groups = shift(history, groups, n_ctx, n_keep)
    assert len(later) <= n_ctx
    assert_groups_are_whole(later, groups, before)


def assert_groups_are_whole(kept: list[int], groups: Groups, before: Groups) -> None:
    """`kept` names inputs by where they were: those of a group are all there, side by side, or none is."""
    stayed = [span for span in before.spans if span[0] in kept]
    assert [tuple(kept[begin:end]) for begin, end in groups.spans] == [tuple(range(*span)) for span in stayed]
    gone = {i for begin, end in before.spans if begin not in kept for i in range(begin, end)}
    assert not gone & set(kept)
