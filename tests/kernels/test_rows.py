"""Gather of rows."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kernels.backend import Backend
from kernels.cpu.backend import CpuBackend
from kernels.dtype import DType
from kernels.ops.quant import dequantize
from kernels.ops.rows import rows_ref
from kernels.tensor import Tensor
from tests.kernels.conftest import OneOp, each_backend, each_cpu, normal, run_one_op, seeds
from tests.kernels.weights import WEIGHT_DTYPES, random_weight


@pytest.mark.parametrize("dtype", WEIGHT_DTYPES, ids=lambda d: d.name)
@each_backend
@given(
    n=st.integers(0, 9),
    n_row=st.integers(1, 6),
    n_block=st.integers(1, 5),
    scale=st.sampled_from([1.0, 33.94]),
    seed=seeds,
)
def test_rows_are_dequantised_exactly_and_scaled(
    backend: Backend, dtype: DType, n: int, n_row: int, n_block: int, scale: float, seed: int
) -> None:
    width = n_block * (dtype.block_n if dtype.is_quantized else 7)
    raw = random_weight(dtype, n_row * width, seed)
    ids = np.random.default_rng(seed).integers(0, n_row, n, dtype=np.int32)

    def build(g: OneOp) -> Tensor:
        return g.program.rows(g.weight(raw, (n_row, width), dtype), g.input(ids), scale)

    got = run_one_op(backend, build)
    want = rows_ref(dequantize(raw, dtype, n_row * width).reshape(n_row, width), ids, scale)
    np.testing.assert_array_equal(got.view(np.uint32), want.view(np.uint32))


@each_backend
def test_rows_of_a_computed_value_are_gathered(backend: Backend) -> None:
    x = normal(1, 4, 10)
    ids = np.array([3, 0, 3], np.int32)

    def build(g: OneOp) -> Tensor:
        gated = g.program.gate(g.input(x), g.input(np.ones_like(x)), "silu")
        return g.program.rows(gated, g.input(ids))

    got = run_one_op(backend, build)
    np.testing.assert_array_equal(got[0], got[2])
    assert not np.array_equal(got[0], got[1])


@each_cpu
@pytest.mark.parametrize("bad", [-1, 4, 2**31 - 1, -(2**31)])
def test_an_id_outside_the_table_is_refused_with_its_name_and_value(backend: CpuBackend, bad: int) -> None:
    ids = np.array([1, bad], np.int32)
    with pytest.raises(ValueError, match=rf"input input1: value {bad} at 1 is outside 0\.\.3"):
        run_one_op(backend, lambda g: g.program.rows(g.weight(normal(1, 4, 8)), g.input(ids)))


@each_cpu
def test_an_index_that_is_computed_is_refused_for_nothing_could_check_it(backend: CpuBackend) -> None:
    def build(g: OneOp) -> Tensor:
        numbers = g.program.rows(g.weight(normal(1, 4, 1)), g.input(np.array([1], np.int32)))
        ids = replace(numbers, shape=(1,), dtype=DType.I32)
        g.program._ops[-1] = replace(g.program._ops[-1], out=ids)
        return g.program.rows(g.weight(normal(1, 4, 8)), ids)

    with pytest.raises(ValueError, match="is computed here"):
        run_one_op(backend, build)
