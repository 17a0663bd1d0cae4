"""RMS normalisation."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kernels.backend import Backend
from kernels.ops.norm import rms_norm_ref
from kernels.program import ShapeError
from kernels.tensor import Tensor
from tests.kernels.conftest import OneOp, each_backend, normal, run_one_op, seeds, worst_ulp

EPS = 1e-6
MAX_ULP = 3  # the inverse root, and two products


@each_backend
@given(
    n=st.integers(0, 9),
    n_chunk=st.integers(1, 4),
    k=st.integers(1, 1025),
    scale=st.sampled_from([1e-18, 1.0, 1e18]),
    seed=seeds,
)
def test_rows_and_chunks_are_divided_by_their_root_mean_square(
    backend: Backend, n: int, n_chunk: int, k: int, scale: float, seed: int
) -> None:
    x, weight = normal(seed, n, n_chunk * k) * np.float32(scale), normal(seed + 1, k)
    got = run_one_op(backend, lambda g: g.program.rms_norm(g.input(x), g.weight(weight), EPS))
    assert worst_ulp(got, rms_norm_ref(x, weight, k, EPS)) <= MAX_ULP


@each_backend
@given(n=st.integers(0, 5), n_chunk=st.integers(1, 3), k=st.integers(1, 300), seed=seeds)
def test_without_a_weight_nothing_is_scaled(
    backend: Backend, n: int, n_chunk: int, k: int, seed: int
) -> None:
    x = normal(seed, n, n_chunk * k)
    got = run_one_op(backend, lambda g: g.program.unit_norm(g.input(x), k, EPS))
    assert worst_ulp(got, rms_norm_ref(x, None, k, EPS)) <= MAX_ULP


@each_backend
@given(n=st.integers(0, 5), n_chunk=st.integers(1, 3), k=st.integers(1, 300), seed=seeds)
def test_a_residual_is_added_to_what_was_normalised(
    backend: Backend, n: int, n_chunk: int, k: int, seed: int
) -> None:
    x, weight, residual = normal(seed, n, n_chunk * k), normal(seed + 1, k), normal(seed + 2, n, n_chunk * k)

    def build(g: OneOp) -> Tensor:
        return g.program.rms_norm(g.input(x), g.weight(weight), EPS, g.input(residual))

    want = rms_norm_ref(x, weight, k, EPS, residual)
    size = np.abs(rms_norm_ref(x, weight, k, EPS)) + np.abs(residual)  # of the terms: they may cancel
    assert np.all(np.abs(run_one_op(backend, build) - want) <= MAX_ULP * np.spacing(size))


def test_a_residual_of_another_shape_is_refused() -> None:
    g = OneOp()
    with pytest.raises(ShapeError, match="residual"):
        g.program.rms_norm(g.input(normal(1, 2, 8)), g.weight(normal(2, 8)), EPS, g.input(normal(3, 2, 4)))


@each_backend
def test_zeros_stay_zero(backend: Backend) -> None:
    x = np.zeros((2, 33), np.float32)
    got = run_one_op(backend, lambda g: g.program.rms_norm(g.input(x), g.weight(normal(1, 33)), EPS))
    assert not got.any()


@each_backend
def test_a_row_with_nan_spoils_no_other_row(backend: Backend) -> None:
    x = normal(3, 3, 40)
    x[1, 7] = np.nan
    got = run_one_op(backend, lambda g: g.program.rms_norm(g.input(x), g.weight(normal(1, 40)), EPS))
    assert np.isnan(got[1]).all()
    assert np.isfinite(got[[0, 2]]).all()
