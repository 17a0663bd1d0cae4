"""Truncation and context shift, on plain values."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from actors.runner.context import n_discard, truncate


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


@pytest.mark.parametrize("n_inputs", range(33, 61))
def test_truncation_keeps_front_and_end(n_inputs: int) -> None:
    tokens = list(range(n_inputs))
    cut = truncate(tokens, n_ctx=32, n_keep=4)
    assert len(cut) == 32
    assert cut[:4] == tokens[:4]
    assert cut[4:] == tokens[-28:]


@given(st.integers(1, 64), st.integers(-1, 100), st.integers(0, 200))
def test_truncation_never_exceeds_the_context_and_keeps_the_last_input(
    n_ctx: int, n_keep: int, n: int
) -> None:
    cut = truncate(range(n), n_ctx, n_keep)
    assert len(cut) == min(n, n_ctx)
    assert not n or cut[-1] == n - 1
