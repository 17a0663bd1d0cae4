"""Products with weights of every type.

Errors are squared and summed, over the sum of |x|^2 |w|^2 / n_in: what the squares of the results would be if
x and w had nothing to do with one another.  (Over the results themselves a single small one is no measure.)
"""

from collections.abc import Mapping

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kernels.backend import Backend
from kernels.cpu.backend import CpuBackend, available_isas
from kernels.dtype import DType
from kernels.ops.matmul import matmul_ref
from kernels.ops.op import F32
from kernels.ops.quant import dequantize
from kernels.tensor import Tensor
from tests.kernels.conftest import OneOp, each_backend, each_cpu, normal, run_one_op, run_ops, seeds
from tests.kernels.weights import WEIGHT_DTYPES, random_weight

# int8 activations, 32 to a scale, give 3e-5 on the whole; a single element may have ten times its share.
# Plain types differ by the rounding of float32 alone.
MAX_ERROR: Mapping[DType, float] = {dtype: 5e-4 if dtype.is_quantized else 1e-11 for dtype in WEIGHT_DTYPES}
TYPICAL_ERROR = 5e-5

each_dtype = pytest.mark.parametrize("dtype", WEIGHT_DTYPES, ids=lambda d: d.name)


def product(g: OneOp, x: F32, raw: np.ndarray, dtype: DType, n_out: int, **extra: F32) -> Tensor:
    """x times a weight, with bias and residual when given."""
    weight = g.weight(raw, (n_out, x.shape[1]), dtype)
    bias = g.weight(extra["bias"]) if "bias" in extra else None
    residual = g.input(extra["residual"]) if "residual" in extra else None
    return g.program.matmul(g.input(x), weight, bias, residual)


def product_error(got: F32, x: F32, weight: F32) -> float:
    """The measure that the module's docstring defines."""
    power = np.sum(np.outer(np.sum(x.astype(np.float64) ** 2, 1), np.sum(weight.astype(np.float64) ** 2, 1)))
    error = np.sum((got.astype(np.float64) - matmul_ref(x, weight)) ** 2)
    return float(error * x.shape[1] / power) if power else float(error)


@each_dtype
@each_backend
@given(n=st.integers(0, 9), n_out=st.integers(1, 70), n_block=st.integers(1, 21), seed=seeds)
def test_products_agree_with_the_exact_weight(
    backend: Backend, dtype: DType, n: int, n_out: int, n_block: int, seed: int
) -> None:
    n_in = n_block * dtype.block_n if dtype.is_quantized else 7 * n_block
    raw = random_weight(dtype, n_out * n_in, seed)
    x = normal(seed, n, n_in)
    got = run_one_op(backend, lambda g: product(g, x, raw, dtype, n_out))
    assert (
        product_error(got, x, dequantize(raw, dtype, n_out * n_in).reshape(n_out, n_in)) <= MAX_ERROR[dtype]
    )


@each_dtype
@each_cpu
def test_the_error_of_many_products_is_that_of_8_bit_activations(backend: CpuBackend, dtype: DType) -> None:
    raw, x = random_weight(dtype, 64 * 1024, 8), normal(9, 16, 1024)
    got = run_one_op(backend, lambda g: product(g, x, raw, dtype, 64))
    assert product_error(got, x, dequantize(raw, dtype, 64 * 1024).reshape(64, 1024)) <= TYPICAL_ERROR


@each_cpu
@pytest.mark.parametrize("dtype", [DType.F32, DType.Q4_0, DType.Q6_K], ids=lambda d: d.name)
def test_bias_and_residual_are_added(backend: CpuBackend, dtype: DType) -> None:
    raw, x = random_weight(dtype, 20 * 256, 1), normal(2, 3, 256)
    bias, residual = normal(3, 20), normal(4, 3, 20)
    plain = run_one_op(backend, lambda g: product(g, x, raw, dtype, 20))
    both = run_one_op(backend, lambda g: product(g, x, raw, dtype, 20, bias=bias, residual=residual))
    np.testing.assert_array_equal(both, plain + bias + residual)


@each_dtype
@each_cpu
@given(n=st.integers(2, 11), n_out=st.integers(1, 40), seed=seeds)
def test_a_row_is_the_same_bits_alone_and_in_a_batch(
    backend: CpuBackend, dtype: DType, n: int, n_out: int, seed: int
) -> None:
    raw, x = random_weight(dtype, n_out * 512, seed), normal(seed, n, 512)
    together = run_one_op(backend, lambda g: product(g, x, raw, dtype, n_out))
    alone = [
        run_one_op(backend, lambda g, i=i: product(g, x[i : i + 1], raw, dtype, n_out)) for i in range(n)
    ]
    np.testing.assert_array_equal(together, np.concatenate(alone))


@each_dtype
@pytest.mark.parametrize("isa", available_isas())
def test_bits_do_not_depend_on_the_number_of_threads(isa: str, dtype: DType) -> None:
    raw, x = random_weight(dtype, 77 * 512, 5), normal(6, 5, 512)
    one, four = (
        run_one_op(CpuBackend(n_threads, isa, small_bytes=0), lambda g: product(g, x, raw, dtype, 77))
        for n_threads in (1, 4)
    )
    np.testing.assert_array_equal(one, four)


@each_cpu
def test_products_that_share_activations_agree_with_products_that_do_not(backend: CpuBackend) -> None:
    a, b = (random_weight(DType.Q8_0, 8 * 96, seed) for seed in (1, 2))
    x = normal(3, 4, 96)

    def share(g: OneOp) -> list[Tensor]:
        left = g.input(x)
        return [g.program.matmul(left, g.weight(raw, (8, 96), DType.Q8_0)) for raw in (a, b)]

    alone = [run_one_op(backend, lambda g, raw=raw: product(g, x, raw, DType.Q8_0, 8)) for raw in (a, b)]
    np.testing.assert_array_equal(run_ops(backend, share), alone)


@each_cpu
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_activations_that_are_not_finite_show_in_their_row_only(backend: CpuBackend, bad: float) -> None:
    x = normal(1, 3, 64)
    x[1, 40] = bad
    got = run_one_op(backend, lambda g: product(g, x, random_weight(DType.Q4_0, 5 * 64, 2), DType.Q4_0, 5))
    assert np.isnan(got[1]).all()
    assert np.isfinite(got[[0, 2]]).all()


@each_cpu
@pytest.mark.parametrize("scale", [0.0, 1e-44, 1e-30, 1e30])
def test_activations_of_any_size_agree(backend: CpuBackend, scale: float) -> None:
    x, raw = normal(1, 2, 64) * np.float32(scale), random_weight(DType.Q8_0, 5 * 64, 2)
    got = run_one_op(backend, lambda g: product(g, x, raw, DType.Q8_0, 5))
    want = matmul_ref(x, dequantize(raw, DType.Q8_0, 5 * 64).reshape(5, 64))
    np.testing.assert_allclose(got, want, rtol=0.05, atol=1e-36 + 0.01 * np.abs(want).max())
