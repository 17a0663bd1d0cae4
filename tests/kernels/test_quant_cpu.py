"""Dequantisation in every native path, bit for bit."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kernels.cpu import _cpu
from kernels.cpu.backend import available_isas
from kernels.dtype import DType
from kernels.ops.quant import dequantize
from tests.kernels.conftest import seeds
from tests.kernels.weights import HALVES, QUANTIZED_DTYPES, WEIGHT_DTYPES


def any_bytes(dtype: DType, n_block: int, seed: int) -> np.ndarray:
    """Blocks of random bytes with finite scales."""
    blocks = np.random.default_rng(seed).integers(0, 256, (n_block, dtype.block_bytes), dtype=np.uint8)
    for offset in HALVES.get(dtype, ()):
        scales = blocks[:, offset : offset + 2].copy().view(np.uint16)
        scales[(scales & 0x7C00) == 0x7C00] ^= 0x4000
        blocks[:, offset : offset + 2] = scales.view(np.uint8)
    return blocks.reshape(-1)


@pytest.mark.parametrize("dtype", QUANTIZED_DTYPES, ids=lambda d: d.name)
@pytest.mark.parametrize("isa", available_isas())
@given(n_block=st.integers(1, 19), seed=seeds)
def test_blocks_mean_what_the_reference_says(isa: str, dtype: DType, n_block: int, seed: int) -> None:
    raw, n = any_bytes(dtype, n_block, seed), n_block * dtype.block_n
    got = _cpu.dequantize(isa, raw, dtype.ggml_id, n)
    np.testing.assert_array_equal(got.view(np.uint32), dequantize(raw, dtype, n).view(np.uint32))


@pytest.mark.parametrize("dtype", [d for d in WEIGHT_DTYPES if not d.is_quantized], ids=lambda d: d.name)
@pytest.mark.parametrize("isa", available_isas())
def test_plain_floats_mean_what_the_reference_says(isa: str, dtype: DType) -> None:
    raw = any_bytes(dtype, 4000, 3)
    got, want = _cpu.dequantize(isa, raw, dtype.ggml_id, 4000), dequantize(raw, dtype, 4000)
    is_nan = np.isnan(want)
    np.testing.assert_array_equal(np.isnan(got), is_nan)
    np.testing.assert_array_equal(got[~is_nan].view(np.uint32), want[~is_nan].view(np.uint32))


@pytest.mark.parametrize("isa", available_isas())
def test_every_half_and_every_mxfp4_scale_is_exact(isa: str) -> None:
    halves = np.arange(2**16, dtype=np.uint16)
    want = halves.view(np.float16).astype(np.float32)
    got = _cpu.dequantize(isa, halves.view(np.uint8), DType.F16.ggml_id, 2**16)
    np.testing.assert_array_equal(got[~np.isnan(want)], want[~np.isnan(want)])
    blocks = np.full((256, 17), 0x21, np.uint8)
    blocks[:, 0] = np.arange(256)
    scales = _cpu.dequantize(isa, blocks.reshape(-1), DType.MXFP4.ggml_id, 256 * 32)
    np.testing.assert_array_equal(scales, dequantize(blocks, DType.MXFP4, 256 * 32))
