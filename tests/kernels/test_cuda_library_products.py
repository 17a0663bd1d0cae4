"""Products by the matrix library, as CUDA does them for prompts: halves, scales, bias, residual around it.

The emulator runs the kernels; numpy stands for the library.
"""

import ctypes

import numpy as np
import pytest

from kernels.backend import Binding
from kernels.cuda.backend import CudaBackend
from kernels.cuda.driver import Gemm, Pointer, Work
from kernels.cuda.emulator.driver import EmulatedDriver
from kernels.dtype import DType
from kernels.executable import view
from kernels.ops.op import Array
from kernels.ops.quant import dequantize
from tests.cuda import COMPILED
from tests.kernels.conftest import OneOp, normal, tensors_of
from tests.kernels.weights import WEIGHT_DTYPES, random_weight

F16_ERROR = 2e-3  # of |x| |w|: either is rounded to 2^-11, twice where the scale of a row is not exact


def elements(pointer: Pointer, n: int, kind: type[np.generic]) -> Array:
    raw = (ctypes.c_uint8 * (n * np.dtype(kind).itemsize)).from_address(pointer)
    return np.ctypeslib.as_array(raw).view(kind)


class WithLibrary(EmulatedDriver):
    """The emulator, whose library is numpy."""

    has_gemm = True

    def __init__(self) -> None:
        super().__init__(COMPILED)
        self.n_products = 0

    def _run(self, work: Work) -> None:
        if not isinstance(work, Gemm):
            super()._run(work)
            return
        self.n_products += 1
        a = elements(work.a, work.n * work.n_in, np.float16).reshape(work.n, work.n_in).astype(np.float32)
        b = elements(work.b, work.n_out * work.n_in, np.float16).reshape(work.n_out, work.n_in)
        elements(work.c, work.n * work.n_out, np.float32)[:] = (a @ b.astype(np.float32).T).reshape(-1)


@pytest.mark.parametrize("dtype", WEIGHT_DTYPES, ids=lambda dtype: dtype.name)
@pytest.mark.parametrize(("n", "n_out", "has_more"), [(24, 7, False), (33, 70, True)])
@pytest.mark.parametrize("scale", [1.0, 1e6, 1e-12])
def test_a_prompt_multiplied_by_the_library_is_the_product(
    dtype: DType, n: int, n_out: int, has_more: bool, scale: float
) -> None:
    n_in = max(512, 2 * dtype.block_n) if dtype.is_quantized else 77
    raw, x = random_weight(dtype, n_out * n_in, 3), normal(1, n, n_in) * np.float32(scale)
    x[3] *= 1e3  # rows have scales of their own
    one = OneOp()
    bias, residual = normal(5, n_out), normal(6, n, n_out)
    more = [one.weight(bias), one.input(residual)] if has_more else []
    out = one.program.matmul(one.input(x), one.weight(raw, (n_out, n_in), dtype), *more)
    (op,) = one.program._ops
    driver = WithLibrary()
    backend = CudaBackend("cuda:0", driver)
    memory = {}
    for tensor in dict.fromkeys(tensors_of(op)):
        memory[tensor] = backend.allocate(tensor.n_bytes({}), tensor.name).memory
        if tensor in one.given:
            memory[tensor].upload(one.given[tensor])
    scratch = backend.allocate(backend.workspace_bytes(op, {}), "workspace").memory
    scratch.upload(np.full(scratch.n_bytes, 0xA5, np.uint8))
    backend.bind(Binding([op], memory, {}, scratch)).run({})
    got = np.empty(out.n_bytes({}), np.uint8)
    memory[out].download(got)
    assert driver.n_products == 1
    weight = dequantize(raw, dtype, n_out * n_in).reshape(n_out, n_in).astype(np.float64)
    want, tolerance = (
        x.astype(np.float64) @ weight.T,
        np.abs(x).astype(np.float64) @ np.abs(weight).T * F16_ERROR,
    )
    if has_more:
        want = want + bias + residual
        tolerance = tolerance + 1e-5 * np.abs(want)
    assert np.all(np.abs(view(got, out, {}).astype(np.float64) - want) <= tolerance + 1e-30)
