"""Gated activation."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from kernels.backend import Backend
from kernels.cpu.backend import CpuBackend
from kernels.ops.gate import swiglu_ref
from kernels.ops.op import F32
from tests.kernels.conftest import each_backend, each_cpu, normal, run_one_op, seeds, worst_ulp

MAX_ULP = 6  # the exponential's two, a sum, a quotient, a product


def gated(backend: Backend, gate: F32, up: F32) -> F32:
    return run_one_op(backend, lambda g: g.program.swiglu(g.input(gate), g.input(up)))


@each_backend
@given(n=st.integers(0, 5), n_ff=st.integers(1, 300), scale=st.sampled_from([1e-6, 1.0, 20.0]), seed=seeds)
def test_values_agree_with_the_reference(
    backend: Backend, n: int, n_ff: int, scale: float, seed: int
) -> None:
    gate, up = normal(seed, n, n_ff) * np.float32(scale), normal(seed + 1, n, n_ff)
    # beyond -87 the result is subnormal before it is multiplied
    gate = np.maximum(gate, np.float32(-80))
    assert worst_ulp(gated(backend, gate, up), swiglu_ref(gate, up)) <= MAX_ULP


@each_backend
def test_a_gate_far_below_zero_closes(backend: Backend) -> None:
    gate = np.array([[-1e30, -1000.0, -300.0, 0.0]], np.float32)
    np.testing.assert_array_equal(gated(backend, gate, np.ones_like(gate)), np.zeros((1, 4), np.float32))


@each_backend
def test_a_gate_far_above_zero_passes_the_product(backend: Backend) -> None:
    gate = np.array([[30.0, 1000.0, 1e30]], np.float32)
    np.testing.assert_array_equal(gated(backend, gate, np.full_like(gate, 2.0)), 2 * gate)


@each_backend
def test_nan_stays_nan_and_where_it_is(backend: Backend) -> None:
    gate = normal(1, 1, 21)
    gate[0, 3] = np.nan
    np.testing.assert_array_equal(np.flatnonzero(np.isnan(gated(backend, gate, np.ones_like(gate)))), [3])


@each_cpu
def test_a_row_is_the_same_bits_alone_and_in_a_batch(backend: CpuBackend) -> None:
    gate, up = normal(1, 3, 37), normal(2, 3, 37)
    alone = [gated(backend, gate[i : i + 1], up[i : i + 1]) for i in range(3)]
    np.testing.assert_array_equal(gated(backend, gate, up), np.concatenate(alone))
