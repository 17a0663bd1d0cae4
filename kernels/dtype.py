"""Element types of tensors: plain numbers and the block formats of GGUF files.

A block format stores `block_n` consecutive elements of a row in `block_bytes` bytes; rows are whole blocks.
The numbers are those of the GGUF specification (ggml_type); `kernels/ops/quant.py` describes the layouts.
"""

import enum
from collections.abc import Mapping
from types import MappingProxyType
from typing import Self


class UnsupportedDType(ValueError):
    """A tensor type that the file format knows, or does not know, and that no kernel here can read."""


class DType(enum.Enum):
    """An element type.  `DType.Q4_K.block_bytes` bytes hold `DType.Q4_K.block_n` elements."""

    F32 = (0, 1, 4)
    F16 = (1, 1, 2)
    Q4_0 = (2, 32, 18)
    Q4_1 = (3, 32, 20)
    Q5_0 = (6, 32, 22)
    Q5_1 = (7, 32, 24)
    Q8_0 = (8, 32, 34)
    Q2_K = (10, 256, 84)
    Q3_K = (11, 256, 110)
    Q4_K = (12, 256, 144)
    Q5_K = (13, 256, 176)
    Q6_K = (14, 256, 210)
    IQ4_NL = (20, 32, 18)
    I8 = (24, 1, 1)
    I16 = (25, 1, 2)
    I32 = (26, 1, 4)
    I64 = (27, 1, 8)
    BF16 = (30, 1, 2)
    MXFP4 = (39, 32, 17)

    ggml_id: int
    block_n: int
    block_bytes: int

    def __init__(self, ggml_id: int, block_n: int, block_bytes: int) -> None:
        self.ggml_id = ggml_id
        self.block_n = block_n
        self.block_bytes = block_bytes

    @property
    def is_quantized(self) -> bool:
        """Whether elements share a scale within a block."""
        return self.block_n > 1

    def n_bytes(self, n_elements: int) -> int:
        """Bytes that n_elements take; ValueError unless they are whole blocks."""
        n_blocks, rest = divmod(n_elements, self.block_n)
        if rest or n_elements < 0:
            raise ValueError(f"{n_elements} elements are not whole {self.name} blocks of {self.block_n}")
        return n_blocks * self.block_bytes

    @classmethod
    def from_ggml(cls, ggml_id: int) -> Self:
        """The type with this number in a GGUF file; UnsupportedDType names one that is not implemented."""
        for dtype in cls:
            if dtype.ggml_id == ggml_id:
                return dtype
        name = _NOT_IMPLEMENTED.get(ggml_id)
        what = f"tensor type {name} ({ggml_id})" if name else f"unknown tensor type number {ggml_id}"
        known = ", ".join(dtype.name for dtype in cls)
        raise UnsupportedDType(f"{what} is not supported; supported are {known}")


# Types that a GGUF file may name and no kernel here reads, so that the refusal can name them too.  Those
# whose number was withdrawn from the format (4, 5: early 4-bit types; 31 to 33, 36 to 38: repacked layouts)
# are still found in old files.
_NOT_IMPLEMENTED: Mapping[int, str] = MappingProxyType(
    {
        4: "Q4_2 (withdrawn)",
        5: "Q4_3 (withdrawn)",
        9: "Q8_1",
        15: "Q8_K",
        16: "IQ2_XXS",
        17: "IQ2_XS",
        18: "IQ3_XXS",
        19: "IQ1_S",
        21: "IQ3_S",
        22: "IQ2_S",
        23: "IQ4_XS",
        28: "F64",
        29: "IQ1_M",
        31: "Q4_0_4_4 (withdrawn)",
        32: "Q4_0_4_8 (withdrawn)",
        33: "Q4_0_8_8 (withdrawn)",
        34: "TQ1_0",
        35: "TQ2_0",
        36: "IQ4_NL_4_4 (withdrawn)",
        37: "IQ4_NL_4_8 (withdrawn)",
        38: "IQ4_NL_8_8 (withdrawn)",
        40: "NVFP4",
        41: "Q1_0",
    }
)
