"""RMS normalisation of rows, or of equal chunks of rows (per-head norms of queries and keys)."""

from dataclasses import dataclass

import numpy as np

from kernels.ops.op import F32, Op
from kernels.tensor import Tensor


@dataclass(frozen=True, slots=True, eq=False)
class RmsNorm(Op):
    """x [n, n_embd] f32, weight [chunk] f32 with chunk dividing n_embd -> out [n, n_embd] f32.

    Each run of `chunk` values is divided by its root mean square and scaled by weight, when there is one:
    chunk = n_embd normalises the row, chunk = head_dim normalises each head.  eps > 0, in the unit of x
    squared.  arXiv:1910.07467, section 4.
    residual [n, n_embd], when there is one, is added to the result.
    """

    x: Tensor
    weight: Tensor | None
    out: Tensor
    chunk: int
    eps: float
    residual: Tensor | None = None


def rms_norm_ref(x: F32, weight: F32 | None, chunk: int, eps: float, residual: F32 | None = None) -> F32:
    """Reference of `RmsNorm`, in float64: a judge must not share the rounding of the judged."""
    wide = x.astype(np.float64).reshape(x.shape[0], x.shape[1] // chunk, chunk)
    root = np.sqrt(np.mean(wide * wide, axis=-1, keepdims=True) + eps)
    normed = (wide / root * (1.0 if weight is None else weight)).reshape(x.shape)
    return (normed if residual is None else normed + residual).astype(np.float32)
