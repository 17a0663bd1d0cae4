"""Random weights made as fast as a disk writes them: random bits, with scales that keep the values sane."""

import math
from collections.abc import Iterator, Mapping

import numpy as np

from kernels.cpu import _cpu
from kernels.dtype import DType
from kernels.memory import Bytes

CHUNK_BYTES = 32 << 20
SAMPLE_N = 1 << 16
# byte offset of a block's scale and of its minimum's, and what centres the values: minimum by scale
_SCALES: Mapping[DType, tuple[int, int | None, float]] = {
    DType.Q4_0: (0, None, 0.0),
    DType.Q5_0: (0, None, 0.0),
    DType.Q5_1: (0, 2, -15.5),
    DType.Q8_0: (0, None, 0.0),
    DType.Q4_K: (0, 2, 7.5),
    DType.Q5_K: (0, 2, 15.5),
    DType.Q6_K: (208, None, 0.0),
}
# bits of the mantissa; sign, two low bits of the exponent and the mantissa are random
_PLAIN: Mapping[DType, int] = {DType.F16: 10, DType.BF16: 7}
_EXPONENT_BIAS: Mapping[DType, int] = {DType.F16: 15, DType.BF16: 127}
_UNIT_STD = math.sqrt(7 / 3 * (1 + 4 + 16 + 64) / 4)  # of such numbers with smallest exponent 0


def random_weight(dtype: DType, n: int, std: float, rng: np.random.Generator) -> Iterator[Bytes]:
    """Bytes of n elements in pieces of at most CHUNK_BYTES, with about this standard deviation."""
    scale = std / _unit_std(dtype) if dtype.is_quantized else std
    n_left = dtype.n_bytes(n)
    step = CHUNK_BYTES // dtype.block_bytes * dtype.block_bytes
    while n_left:
        n_bytes = min(step, n_left)
        yield _piece(dtype, n_bytes, scale, rng)
        n_left -= n_bytes


def _piece(dtype: DType, n_bytes: int, scale: float, rng: np.random.Generator) -> Bytes:
    if dtype in _PLAIN:
        lowest = round(math.log2(scale / _UNIT_STD)) + _EXPONENT_BIAS[dtype]
        mantissa = _PLAIN[dtype]
        bits = np.frombuffer(rng.bytes(n_bytes), np.uint16) & np.uint16(0x8000 | (4 << mantissa) - 1)
        return (bits + np.uint16(max(1, lowest) << mantissa)).view(np.uint8)
    if dtype not in _SCALES:
        raise ValueError(
            f"no random weights of type {dtype.name}; there are {', '.join(d.name for d in _SCALES)}"
        )
    raw = np.frombuffer(bytearray(rng.bytes(n_bytes)), np.uint8).reshape(-1, dtype.block_bytes)
    at, minimum_at, centre = _SCALES[dtype]
    scales = scale * rng.uniform(0.8, 1.2, (len(raw), 1))
    raw[:, at : at + 2] = scales.astype(np.float16).view(np.uint8)
    if minimum_at is not None:
        raw[:, minimum_at : minimum_at + 2] = (scales * centre).astype(np.float16).view(np.uint8)
    return raw.reshape(-1)


def _unit_std(dtype: DType) -> float:
    """Standard deviation of what random blocks with scales of about 1/256 hold, times 256."""
    rng = np.random.default_rng(0)
    raw = _piece(dtype, dtype.n_bytes(SAMPLE_N), 1 / 256, rng)
    return float(_cpu.dequantize(_cpu.available_isas()[0], raw, dtype.ggml_id, SAMPLE_N).std()) * 256
