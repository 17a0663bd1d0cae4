"""The models that are measured: sizes as published, and which type each tensor of a quantised file has.

The mixtures are those that llama.cpp's quantiser makes of a file type, so that a generated file touches as
many bytes for a token as a downloaded one.
"""

import functools
import math
from collections.abc import Mapping
from dataclasses import dataclass

from kernels.dtype import DType


@dataclass(frozen=True, slots=True)
class Shape:
    """Sizes of a model."""

    name: str
    arch: str
    n_layer: int
    n_embd: int
    n_ff: int
    n_head: int
    n_head_kv: int
    head_dim: int
    n_vocab: int
    n_ctx_train: int
    rope_base: float
    eps: float
    rope_factor: float = 0.0  # > 0: rope_freqs as llama 3.1 and later have them
    is_tied: bool = True  # the embedding is the output matrix

    @property
    def output(self) -> str:
        """The name of the output matrix."""
        return "token_embd.weight" if self.is_tied else "output.weight"

    @property
    def q_width(self) -> int:
        """Width of all query heads."""
        return self.n_head * self.head_dim

    @property
    def kv_width(self) -> int:
        """Width of all key heads."""
        return self.n_head_kv * self.head_dim

    @functools.cache  # noqa: B019  # a handful of shapes, which live as long as the process
    def tensors(self) -> Mapping[str, tuple[int, ...]]:
        """Every tensor by its GGUF name, outermost dimension first."""
        found: dict[str, tuple[int, ...]] = {"token_embd.weight": (self.n_vocab, self.n_embd)}
        for i in range(self.n_layer):
            found |= {f"blk.{i}.{name}": shape for name, shape in self._layer().items()}
        found["output_norm.weight"] = (self.n_embd,)
        found.setdefault(self.output, (self.n_vocab, self.n_embd))
        if self.rope_factor > 0:
            found["rope_freqs.weight"] = (self.head_dim // 2,)
        return found

    def _layer(self) -> dict[str, tuple[int, ...]]:
        q, kv, n_embd, n_ff = self.q_width, self.kv_width, self.n_embd, self.n_ff
        layer: dict[str, tuple[int, ...]] = {
            "attn_norm.weight": (n_embd,),
            "attn_q.weight": (q, n_embd),
            "attn_k.weight": (kv, n_embd),
            "attn_v.weight": (kv, n_embd),
            "attn_output.weight": (n_embd, q),
            "ffn_norm.weight": (n_embd,),
            "ffn_gate.weight": (n_ff, n_embd),
            "ffn_up.weight": (n_ff, n_embd),
            "ffn_down.weight": (n_embd, n_ff),
        }
        if self.arch == "qwen3":
            layer |= {"attn_q_norm.weight": (self.head_dim,), "attn_k_norm.weight": (self.head_dim,)}
        if self.arch == "qwen2":
            layer |= {"attn_q.bias": (q,), "attn_k.bias": (kv,), "attn_v.bias": (kv,)}
        return layer

    def rope_freqs(self) -> list[float]:
        """What each pair's frequency is divided by, [head_dim / 2]: llama 3.1's rule and numbers."""
        low_factor, high_factor, n_ctx_before = 1.0, 4.0, 8192
        factors: list[float] = []
        for i in range(self.head_dim // 2):
            turns = n_ctx_before / (2 * math.pi * self.rope_base ** (2 * i / self.head_dim))
            smooth = min(1.0, max(0.0, (turns - low_factor) / (high_factor - low_factor)))
            factors.append(1 / ((1 - smooth) / self.rope_factor + smooth))
        return factors


SHAPES: Mapping[str, Shape] = {
    "1B": Shape("1B", "llama", 16, 2048, 8192, 32, 8, 64, 128256, 131072, 500000.0, 1e-5, 32.0),
    "3B": Shape("3B", "llama", 28, 3072, 8192, 24, 8, 128, 128256, 131072, 500000.0, 1e-5, 32.0),
    "8B": Shape(
        "8B", "llama", 32, 4096, 14336, 32, 8, 128, 128256, 131072, 500000.0, 1e-5, 8.0, is_tied=False
    ),
    "qwen2-0.5B": Shape("qwen2-0.5B", "qwen2", 24, 896, 4864, 14, 2, 64, 151936, 32768, 1e6, 1e-6),
    "qwen3-0.6B": Shape("qwen3-0.6B", "qwen3", 28, 1024, 3072, 16, 8, 128, 151936, 40960, 1e6, 1e-6),
    "tiny": Shape("tiny", "llama", 2, 256, 512, 4, 2, 64, 1024, 4096, 10000.0, 1e-5),
}

FILE_TYPES: Mapping[str, DType] = {
    "Q4_0": DType.Q4_0,
    "Q4_K_M": DType.Q4_K,
    "Q5_K_M": DType.Q5_K,
    "Q6_K": DType.Q6_K,
    "Q8_0": DType.Q8_0,
    "F16": DType.F16,
    "BF16": DType.BF16,
}
# what takes the place of a format with blocks of 256 in rows that are not multiples of 256
_SHORT_ROWS: Mapping[DType, DType] = {DType.Q4_K: DType.Q5_0, DType.Q5_K: DType.Q5_1, DType.Q6_K: DType.Q8_0}


def dtype_of(shape: Shape, file_type: str, name: str) -> DType:
    """The type that the tensor has in a file of this type."""
    dims = shape.tensors()[name]
    if len(dims) == 1:
        return DType.F32
    base = FILE_TYPES[file_type]
    if base.is_quantized:
        base = _mixed(shape, file_type, name, base)
        if dims[-1] % base.block_n:
            return _SHORT_ROWS[base]
    return base


def _mixed(shape: Shape, file_type: str, name: str, base: DType) -> DType:
    if name == shape.output:  # is kept finer
        return base if base is DType.Q8_0 else DType.Q6_K
    if name == "token_embd.weight":
        return base
    kind = name.split(".")[2]
    if (
        file_type.endswith("_M")
        and kind in ("attn_v", "ffn_down")
        and _is_finer(int(name.split(".")[1]), shape.n_layer)
    ):
        return DType.Q6_K
    return base


def _is_finer(layer: int, n_layer: int) -> bool:
    """The first and the last eighth of the layers, and every third between."""
    eighth = n_layer // 8
    return layer < eighth or layer >= 7 * n_layer // 8 or (layer - eighth) % 3 == 2


def n_bytes_of(shape: Shape, file_type: str, name: str) -> int:
    """Bytes of a tensor in a file of this type."""
    return dtype_of(shape, file_type, name).n_bytes(math.prod(shape.tensors()[name]))


def file_bytes(shape: Shape, file_type: str) -> int:
    """Bytes of all tensors."""
    return sum(n_bytes_of(shape, file_type, name) for name in shape.tensors())
