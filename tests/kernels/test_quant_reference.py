"""The numpy meaning of each stored type, judged by the gguf package."""

from collections.abc import Callable

import gguf
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kernels.dtype import DType, UnsupportedDType
from kernels.ops.quant import dequantize, quantize_q4_0, quantize_q8_0

QUANTIZED = [dtype for dtype in DType if dtype.is_quantized]
# byte offsets of the half-precision scales within a block
HALVES = {
    DType.Q4_0: (0,), DType.Q4_1: (0, 2), DType.Q5_0: (0,), DType.Q5_1: (0, 2), DType.Q8_0: (0,),
    DType.Q2_K: (80, 82), DType.Q3_K: (108,), DType.Q4_K: (0, 2), DType.Q5_K: (0, 2), DType.Q6_K: (208,),
    DType.IQ4_NL: (0,), DType.MXFP4: (),
}  # fmt: skip


def random_blocks(dtype: DType, n_blocks: int, seed: int) -> np.ndarray:
    """[n_blocks, block_bytes] of random bytes with every scale finite."""
    rng = np.random.default_rng(seed)
    blocks = rng.integers(0, 256, (n_blocks, dtype.block_bytes), dtype=np.uint8)
    for offset in HALVES[dtype]:
        scales = blocks[:, offset : offset + 2].copy().view(np.uint16)
        scales[(scales & 0x7C00) == 0x7C00] ^= 0x4000
        blocks[:, offset : offset + 2] = scales.view(np.uint8)
    return blocks


def by_gguf(raw: np.ndarray, dtype: DType) -> np.ndarray:
    with np.errstate(over="ignore"):  # an MXFP4 exponent may reach infinity
        return gguf.quants.dequantize(raw, gguf.GGMLQuantizationType(dtype.ggml_id))


def assert_same_bits(got: np.ndarray, want: np.ndarray) -> None:
    assert got.dtype == np.float32
    np.testing.assert_array_equal(got.view(np.uint32), np.ascontiguousarray(want).reshape(-1).view(np.uint32))


@pytest.mark.parametrize("dtype", QUANTIZED, ids=lambda d: d.name)
@given(n_blocks=st.integers(1, 33), seed=st.integers(0, 2**32))
@settings(max_examples=25, deadline=None)
def test_random_blocks_mean_what_the_gguf_package_says(dtype: DType, n_blocks: int, seed: int) -> None:
    blocks = random_blocks(dtype, n_blocks, seed)
    got = dequantize(blocks.tobytes(), dtype, n_blocks * dtype.block_n)
    assert_same_bits(got, by_gguf(blocks, dtype))


@pytest.mark.parametrize("dtype", [DType.F32, DType.F16, DType.BF16], ids=lambda d: d.name)
def test_plain_floats_of_any_bits_mean_what_the_gguf_package_says(dtype: DType) -> None:
    raw = np.random.default_rng(7).integers(0, 256, (13, 6 * dtype.block_bytes), dtype=np.uint8)
    got = dequantize(raw.tobytes(), dtype, 13 * 6)
    want = by_gguf(raw, dtype).reshape(-1)
    np.testing.assert_array_equal(np.isnan(got), np.isnan(want))
    assert_same_bits(got[~np.isnan(got)], want[~np.isnan(want)])


@pytest.mark.parametrize(
    ("dtype", "code"), [(DType.I8, "b"), (DType.I16, "<i2"), (DType.I32, "<i4"), (DType.I64, "<i8")]
)
def test_integers_become_their_nearest_float(dtype: DType, code: str) -> None:
    values = np.array([-128, -1, 0, 1, 127], dtype=code)
    assert dequantize(values.tobytes(), dtype, 5).tolist() == [-128.0, -1.0, 0.0, 1.0, 127.0]


@pytest.mark.parametrize("dtype", QUANTIZED, ids=lambda d: d.name)
def test_no_elements_give_an_empty_array(dtype: DType) -> None:
    assert dequantize(b"", dtype, 0).shape == (0,)


def test_a_block_is_read_alike_from_bytes_memoryview_and_array() -> None:
    blocks = random_blocks(DType.Q4_K, 3, seed=1)
    want = dequantize(blocks.tobytes(), DType.Q4_K, 768)
    assert_same_bits(dequantize(memoryview(blocks.tobytes()), DType.Q4_K, 768), want)
    assert_same_bits(dequantize(blocks, DType.Q4_K, 768), want)


def test_bytes_that_do_not_fit_the_count_are_refused_with_the_numbers() -> None:
    with pytest.raises(ValueError, match="64 elements of Q4_0 take 36 bytes, got 35"):
        dequantize(bytes(35), DType.Q4_0, 64)


def test_a_count_that_is_not_whole_blocks_is_refused() -> None:
    with pytest.raises(ValueError, match="33 elements are not whole Q8_0 blocks of 32"):
        dequantize(bytes(34), DType.Q8_0, 33)


@pytest.mark.parametrize(
    ("dtype", "quantize"), [(DType.Q8_0, quantize_q8_0), (DType.Q4_0, quantize_q4_0)], ids=["Q8_0", "Q4_0"]
)
@given(n_blocks=st.integers(1, 9), seed=st.integers(0, 2**32), scale=st.sampled_from([0.0, 1e-3, 1.0, 300.0]))
@settings(max_examples=25, deadline=None)
def test_quantising_gives_the_bytes_of_the_gguf_package(
    dtype: DType, quantize: Callable[[np.ndarray], np.ndarray], n_blocks: int, seed: int, scale: float
) -> None:
    x = (np.random.default_rng(seed).standard_normal(n_blocks * 32) * scale).astype(np.float32)
    want = gguf.quants.quantize(x, gguf.GGMLQuantizationType(dtype.ggml_id))
    np.testing.assert_array_equal(quantize(x), want)


@pytest.mark.parametrize("dtype", list(DType), ids=lambda d: d.name)
def test_block_sizes_and_numbers_are_those_of_the_format(dtype: DType) -> None:
    ggml_type = gguf.GGMLQuantizationType[dtype.name]
    assert dtype.ggml_id == ggml_type.value
    assert (dtype.block_n, dtype.block_bytes) == gguf.GGML_QUANT_SIZES[ggml_type]
    assert DType.from_ggml(dtype.ggml_id) is dtype


@pytest.mark.parametrize(
    "ggml_type", [t for t in gguf.GGMLQuantizationType if t.name not in DType.__members__]
)
def test_a_type_that_only_others_read_is_refused_by_name(ggml_type: gguf.GGMLQuantizationType) -> None:
    with pytest.raises(UnsupportedDType, match=rf"tensor type {ggml_type.name}\b"):
        DType.from_ggml(ggml_type.value)


def test_a_number_that_is_no_type_is_refused_with_the_number() -> None:
    with pytest.raises(UnsupportedDType, match="unknown tensor type number 4096"):
        DType.from_ggml(4096)
