"""Random weights in every type a weight may have."""

import numpy as np

from kernels.dtype import DType
from kernels.memory import Bytes

WEIGHT_DTYPES = [d for d in DType if d.is_quantized or d in (DType.F32, DType.F16, DType.BF16)]
QUANTIZED_DTYPES = [d for d in WEIGHT_DTYPES if d.is_quantized]

# byte offsets of the half-precision numbers in a block
HALVES = {
    DType.Q4_0: (0,), DType.Q4_1: (0, 2), DType.Q5_0: (0,), DType.Q5_1: (0, 2), DType.Q8_0: (0,),
    DType.Q2_K: (80, 82), DType.Q3_K: (108,), DType.Q4_K: (0, 2), DType.Q5_K: (0, 2), DType.Q6_K: (208,),
    DType.IQ4_NL: (0,), DType.MXFP4: (),
}  # fmt: skip


def random_weight(dtype: DType, n: int, seed: int) -> Bytes:
    """Bytes of n elements of about the size weights have: random integers, scales round 0.01."""
    rng = np.random.default_rng(seed)
    if not dtype.is_quantized:
        values = rng.standard_normal(n, np.float32) * np.float32(0.1)
        if dtype is DType.BF16:
            return (values.view(np.uint32) >> 16).astype(np.uint16).view(np.uint8)
        return values.astype(np.float16 if dtype is DType.F16 else np.float32).view(np.uint8)
    blocks = rng.integers(0, 256, (n // dtype.block_n, dtype.block_bytes), dtype=np.uint8)
    for offset in HALVES[dtype]:
        scales = rng.uniform(0.005, 0.015, len(blocks)).astype(np.float16)
        blocks[:, offset : offset + 2] = scales[:, None].view(np.uint8)
    if dtype is DType.MXFP4:
        blocks[:, 0] = rng.integers(118, 124, len(blocks))
    return blocks.reshape(-1)
