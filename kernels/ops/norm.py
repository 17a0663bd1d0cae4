"""RMS normalisation of rows, or of equal chunks of rows (per-head norms of queries and keys)."""

from dataclasses import dataclass

import numpy as np

from kernels.ops.op import F32, Op
from kernels.tensor import Tensor


@dataclass(frozen=True, slots=True, eq=False)
class RmsNorm(Op):
    """x [n, n_embd] f32, weight [k] f32 with k dividing n_embd -> out [n, n_embd] f32.

    Each run of k values is divided by its root mean square and scaled by weight: k = n_embd normalises the
    row, k = head_dim normalises each head.  eps > 0, in the unit of x squared.  arXiv:1910.07467, section 4.
    residual [n, n_embd], when there is one, is added to the result.
    """

    x: Tensor
    weight: Tensor
    out: Tensor
    eps: float
    residual: Tensor | None = None


def rms_norm_ref(x: F32, weight: F32, eps: float, residual: F32 | None = None) -> F32:
    """Reference of `RmsNorm`, in float64: a judge must not share the rounding of the judged."""
    wide = x.astype(np.float64).reshape(x.shape[0], x.shape[1] // weight.shape[0], weight.shape[0])
    root = np.sqrt(np.mean(wide * wide, axis=-1, keepdims=True) + eps)
    normed = (wide / root * weight).reshape(x.shape)
    return (normed if residual is None else normed + residual).astype(np.float32)
