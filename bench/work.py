"""What a measurement has to do at least: multiply-adds of the matrix products, and bytes that must be read.

Attention's own arithmetic is not counted: it is done in floats and is small beside the products at the
lengths measured here.  Of the last layer only the rows whose logits are wanted go past the cache.
"""

import math
from dataclasses import dataclass

from bench.shapes import Shape, n_bytes_of

CACHE_ELEMENT_BYTES = 2  # f16
KEYS_AND_VALUES = 2
OPS_PER_PRODUCT = 2  # a multiplication and an addition


@dataclass(frozen=True, slots=True)
class Work:
    """Of one pass over n_tokens tokens."""

    n_tokens: int
    n_ops: int
    n_bytes: int

    @property
    def intensity(self) -> float:
        """Operations for each byte read."""
        return self.n_ops / self.n_bytes


def work_of(shape: Shape, file_type: str, n_tokens: int, n_outputs: int, n_visible: int) -> Work:
    """One pass of n_tokens inputs of which n_outputs want logits; n_visible cells are read in all."""
    last = f"blk.{shape.n_layer - 1}."
    n_products = n_outputs * math.prod(shape.tensors()[shape.output])
    for name, dims in shape.tensors().items():
        if len(dims) == 2 and name.startswith("blk."):
            is_late = name.startswith(last) and name.split(".")[2] not in ("attn_q", "attn_k", "attn_v")
            n_products += (n_outputs if is_late else n_tokens) * math.prod(dims)
    # of an embedding that is not the output matrix too, only a row a token is read
    read = [name for name in shape.tensors() if shape.is_tied or name != "token_embd.weight"]
    weights = sum(n_bytes_of(shape, file_type, name) for name in read)
    cell_bytes = shape.n_layer * shape.kv_width * KEYS_AND_VALUES * CACHE_ELEMENT_BYTES
    return Work(n_tokens, OPS_PER_PRODUCT * n_products, weights + n_visible * cell_bytes)
