"""Gated short convolution with a state."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kernels.backend import Backend
from kernels.cpu._cpu import MAX_TAPS
from kernels.ops.conv import short_conv_ref
from kernels.ops.op import F32, I32
from kernels.program import ShapeError
from kernels.tensor import Tensor
from tests.kernels.conftest import OneOp, each_backend, each_cpu, normal, run_ops, seeds

N_ROWS = 7


def convolved(
    backend: Backend, x: F32, weight: F32, state: F32, rows: I32, sources: I32, targets: I32
) -> tuple[F32, F32]:
    """(result, state afterwards)."""

    def build(g: OneOp) -> list[Tensor]:
        kept = g.state(state)
        out = g.program.short_conv(
            g.input(x), g.weight(weight), kept, g.input(rows), g.input(sources), g.input(targets)
        )
        return [out, kept]

    out, after = run_ops(backend, build)
    return out.astype(np.float32, copy=False), after.astype(np.float32, copy=False)


def i32(*values: int) -> I32:
    return np.array(values, np.int32)


@each_backend
@given(
    lengths=st.lists(st.integers(1, 6), min_size=1, max_size=3),
    width=st.integers(1, 70),
    n_taps=st.sampled_from([2, 3, 4, MAX_TAPS]),
    seed=seeds,
)
def test_values_and_states_agree_with_the_reference(
    backend: Backend, lengths: list[int], width: int, n_taps: int, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    rows = np.repeat(np.arange(len(lengths), dtype=np.int32), lengths)
    x, weight = normal(seed, len(rows), 3 * width), normal(seed + 1, width, n_taps)
    state = normal(seed + 2, N_ROWS, (n_taps - 1) * width)
    sources = rng.integers(0, N_ROWS, len(lengths), np.int32)
    # a sequence may stay in its row; nobody reads what another writes
    free = [row for row in rng.permutation(N_ROWS).tolist() if row not in sources]
    stays = sources.tolist().count(int(sources[0])) == 1
    targets = i32(*([int(sources[0]), *free] if stays else free)[: len(lengths)])
    expected_state = state.copy()
    expected = short_conv_ref(x, weight, expected_state, rows, sources, targets)
    out, after = convolved(backend, x, weight, state, rows, sources, targets)
    # every term may be rounded once, in a sum of n_taps
    size = np.abs(expected).max() + 1
    np.testing.assert_allclose(out, expected, rtol=0, atol=n_taps * 2.0**-22 * size)
    np.testing.assert_array_equal(after, expected_state)


@each_backend
def test_a_sequence_in_pieces_is_the_sequence_in_one(backend: Backend) -> None:
    x, weight, state = normal(1, 9, 3 * 33), normal(2, 33, 3), np.zeros((3, 2 * 33), np.float32)
    zero = i32(0)
    whole, after = convolved(backend, x, weight, state, np.zeros(9, np.int32), zero, i32(1))
    parts: list[F32] = []
    source = zero
    for begin, end in ((0, 1), (1, 3), (3, 4), (4, 9)):
        rows = np.zeros(end - begin, np.int32)
        out, state = convolved(backend, x[begin:end], weight, state, rows, source, i32(1))
        parts.append(out)
        source = i32(1)
    np.testing.assert_array_equal(np.concatenate(parts), whole)
    np.testing.assert_array_equal(state[1], after[1])


@each_cpu
@pytest.mark.parametrize("name", ["rows", "sources", "targets"])
def test_an_index_that_is_out_of_range_is_refused_and_nothing_is_written(backend: Backend, name: str) -> None:
    given_ = {"rows": i32(0, 0), "sources": i32(0), "targets": i32(1)}
    given_[name] = i32(*[N_ROWS] * len(given_[name]))
    x, weight, state = normal(1, 2, 3 * 8), normal(2, 8, 3), normal(3, N_ROWS, 2 * 8)
    with pytest.raises(ValueError, match=f"value {N_ROWS} at 0 is outside"):
        convolved(backend, x, weight, state, **given_)


@each_cpu
def test_more_taps_than_a_kernel_keeps_are_refused(backend: Backend) -> None:
    g = OneOp()
    zero = g.input(i32(0))
    n_taps = MAX_TAPS + 1
    weight, state = g.weight(normal(2, 4, n_taps)), g.state(normal(3, 2, (n_taps - 1) * 4))
    g.program.short_conv(g.input(normal(1, 1, 12)), weight, state, zero, zero, zero)
    assert backend.refuses(g.program._ops[0]) == f"{n_taps} taps are over {MAX_TAPS}"  # pyright: ignore[reportPrivateUsage]


def test_shapes_that_do_not_fit_are_refused() -> None:
    g = OneOp()
    zero = g.input(i32(0))
    x, weight = g.input(normal(1, 1, 3 * 8)), g.weight(normal(2, 8, 3))
    state, other = g.state(normal(3, 2, 2 * 8)), g.state(normal(3, 2, 3 * 8))
    with pytest.raises(ShapeError, match="state"):
        g.program.short_conv(x, weight, other, zero, zero, zero)
    with pytest.raises(ShapeError, match="short convolution of"):
        g.program.short_conv(g.input(normal(1, 1, 8)), weight, state, zero, zero, zero)
    with pytest.raises(ShapeError, match="short convolution of"):
        g.program.short_conv(x, g.weight(normal(2, 8, 1)), state, zero, zero, zero)
