"""Rotary embedding."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kernels.backend import Backend
from kernels.cpu.backend import CpuBackend
from kernels.ops.op import F32, I32
from kernels.ops.rope import RopeStyle, Rotation, rope_ref
from kernels.tensor import Tensor
from tests.kernels.conftest import OneOp, each_backend, each_cpu, normal, run_one_op, seeds

# of the largest value of a pair: cos and sin to half a unit each, two products and a sum
MAX_ERROR = 4 * 2.0**-24

styles = st.sampled_from(["norm", "neox"])
positions_of_any_age = st.one_of(st.integers(0, 2**17), st.integers(-5, 2**31 - 1))


def rotation_of(style: RopeStyle, n_pair: int, magnitude: float = 1.0) -> Rotation:
    return Rotation(style, tuple(10000.0 ** (-i / max(n_pair, 1)) for i in range(n_pair)), magnitude)


def rotated(backend: Backend, x: F32, positions: I32, head_dim: int, rotation: Rotation) -> F32:
    def build(g: OneOp) -> Tensor:
        return g.program.rope(g.input(x), g.input(positions), head_dim, rotation)

    return run_one_op(backend, build)


@each_backend
@given(
    style=styles,
    n=st.integers(0, 7),
    n_head=st.integers(1, 5),
    n_pair=st.integers(0, 40),
    n_rest=st.integers(0, 9),
    position=positions_of_any_age,
    seed=seeds,
)
def test_heads_are_rotated_by_their_position(
    backend: Backend,
    style: RopeStyle,
    n: int,
    n_head: int,
    n_pair: int,
    n_rest: int,
    position: int,
    seed: int,
) -> None:
    head_dim = max(1, 2 * n_pair + n_rest)
    x = normal(seed, n, n_head * head_dim)
    positions = np.full(n, position, np.int32) - np.arange(n, dtype=np.int32)
    rotation = rotation_of(style, n_pair, 1.3)
    got, want = rotated(backend, x, positions, head_dim, rotation), rope_ref(x, positions, head_dim, rotation)
    bound = MAX_ERROR * 1.3 * (np.abs(x).max() if x.size else 1.0)
    np.testing.assert_allclose(got, want, rtol=0, atol=bound * 2)


@each_backend
def test_values_past_the_rotated_ones_pass_unchanged(backend: Backend) -> None:
    x = normal(1, 2, 3 * 10)
    got = rotated(backend, x, np.array([5, 6], np.int32), 10, rotation_of("neox", 3))
    np.testing.assert_array_equal(got.reshape(2, 3, 10)[..., 6:], x.reshape(2, 3, 10)[..., 6:])


@each_cpu
def test_position_zero_changes_nothing(backend: CpuBackend) -> None:
    x = normal(1, 1, 64)
    np.testing.assert_array_equal(rotated(backend, x, np.zeros(1, np.int32), 64, rotation_of("norm", 32)), x)


def test_a_head_wider_than_the_kernel_is_refused_by_name() -> None:
    g = OneOp()
    x, positions = g.input(normal(1, 1, 4096)), g.input(np.zeros(1, np.int32))
    g.program.rope(x, positions, 4096, rotation_of("neox", 2048))
    assert "head_dim 4096" in (CpuBackend(1).refuses(g.program._ops[0]) or "")


@each_cpu
@pytest.mark.parametrize("style", ["norm", "neox"])
def test_a_row_is_the_same_bits_alone_and_in_a_batch(backend: CpuBackend, style: RopeStyle) -> None:
    x, positions, rotation = normal(3, 5, 4 * 24), np.arange(7, 12, dtype=np.int32), rotation_of(style, 12)
    together = rotated(backend, x, positions, 24, rotation)
    alone = [rotated(backend, x[i : i + 1], positions[i : i + 1], 24, rotation) for i in range(5)]
    np.testing.assert_array_equal(together, np.concatenate(alone))
