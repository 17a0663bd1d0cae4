"""Activation, gated or not."""

from typing import get_args

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kernels.backend import Backend
from kernels.cpu.backend import CpuBackend
from kernels.ops.gate import Activation, gate_ref, sigmoid_argument
from kernels.ops.op import F32
from tests.kernels.conftest import each_backend, each_cpu, normal, run_one_op, seeds

MAX_ULP = 6  # the exponential's two, a sum, a quotient, a product

each_activation = pytest.mark.parametrize("activation", get_args(Activation))


def gated(backend: Backend, gate: F32, up: F32 | None, activation: Activation) -> F32:
    return run_one_op(
        backend, lambda g: g.program.gate(g.input(gate), None if up is None else g.input(up), activation)
    )


def argument(gate: F32, activation: Activation) -> F32:
    """Of the sigmoid; 0 where there is none."""
    if activation == "relu":
        return np.zeros_like(gate)
    return sigmoid_argument(gate, activation).astype(np.float32)


@each_backend
@each_activation
@given(
    n=st.integers(0, 5), n_ff=st.integers(1, 300), scale=st.sampled_from([1e-6, 1.0, 20.0]),
    seed=seeds, has_up=st.booleans(),
)  # fmt: skip
def test_values_agree_with_the_reference(
    backend: Backend, activation: Activation, n: int, n_ff: int, scale: float, seed: int, has_up: bool
) -> None:
    gate, up = normal(seed, n, n_ff) * np.float32(scale), normal(seed + 1, n, n_ff) if has_up else None
    # beyond -87 the result is subnormal before it is multiplied
    gate = np.where(argument(gate, activation) < -80, np.float32(-1), gate)
    got, want = gated(backend, gate, up, activation), gate_ref(gate, up, activation)
    # what gelu's argument lost by rounding, the exponential multiplies by the argument
    n_ulp = MAX_ULP * (1.0 + np.abs(argument(gate, activation)) * (activation == "gelu"))
    ulp = np.maximum(np.spacing(np.abs(want)), np.finfo(np.float32).tiny)
    assert np.all(np.abs(got.astype(np.float64) - want) <= n_ulp * ulp)


def test_gelu_is_the_tanh_approximation_and_silu_is_not() -> None:
    x = np.array([[-3.0, -0.5, 0.0, 0.7, 2.0]], np.float32)
    wide = x.astype(np.float64)
    gelu = 0.5 * wide * (1 + np.tanh(np.sqrt(2 / np.pi) * (wide + 0.044715 * wide**3)))
    np.testing.assert_allclose(gate_ref(x, np.ones_like(x), "gelu"), gelu, rtol=1e-6)
    np.testing.assert_allclose(gate_ref(x, np.ones_like(x), "silu"), wide / (1 + np.exp(-wide)), rtol=1e-6)


@each_backend
@each_activation
def test_a_gate_far_below_zero_closes(backend: Backend, activation: Activation) -> None:
    gate = np.array([[-1e30, -1000.0, -300.0, 0.0]], np.float32)
    got = gated(backend, gate, np.ones_like(gate), activation)
    np.testing.assert_array_equal(got, np.zeros((1, 4), np.float32))


@each_backend
@each_activation
def test_a_gate_far_above_zero_passes_the_product(backend: Backend, activation: Activation) -> None:
    gate = np.array([[30.0, 1000.0, 1e30]], np.float32)
    np.testing.assert_array_equal(gated(backend, gate, np.full_like(gate, 2.0), activation), 2 * gate)


def test_relu_is_the_greater_of_x_and_zero() -> None:
    x = np.array([[-3.0, -0.0, 0.0, 0.7, 2.0]], np.float32)
    np.testing.assert_array_equal(gate_ref(x, None, "relu"), np.array([[0, 0, 0, 0.7, 2.0]], np.float32))


@each_backend
@each_activation
def test_without_a_factor_it_is_as_with_ones(backend: Backend, activation: Activation) -> None:
    gate = 3 * normal(4, 2, 77)
    want = gated(backend, gate, np.ones_like(gate), activation)
    np.testing.assert_array_equal(gated(backend, gate, None, activation), want)


@each_backend
@each_activation
@pytest.mark.parametrize("has_up", [False, True])
def test_nan_stays_nan_and_where_it_is(backend: Backend, activation: Activation, has_up: bool) -> None:
    gate = normal(1, 1, 21)
    gate[0, 3] = np.nan
    got = gated(backend, gate, np.ones_like(gate) if has_up else None, activation)
    np.testing.assert_array_equal(np.flatnonzero(np.isnan(got)), [3])


@each_cpu
@each_activation
def test_a_row_is_the_same_bits_alone_and_in_a_batch(backend: CpuBackend, activation: Activation) -> None:
    gate, up = normal(1, 3, 37), normal(2, 3, 37)
    alone = [gated(backend, gate[i : i + 1], up[i : i + 1], activation) for i in range(3)]
    np.testing.assert_array_equal(gated(backend, gate, up, activation), np.concatenate(alone))
