"""Gated activation of the feed-forward part.  arXiv:2002.05202."""

from dataclasses import dataclass

import numpy as np

from kernels.ops.op import F32, Op
from kernels.tensor import Tensor


@dataclass(frozen=True, slots=True, eq=False)
class SwiGLU(Op):
    """gate, up [n, n_ff] f32 -> out [n, n_ff] f32 = gate * sigmoid(gate) * up.

    `out` may share memory with either.
    """

    gate: Tensor
    up: Tensor
    out: Tensor


def swiglu_ref(gate: F32, up: F32) -> F32:
    """Reference of `SwiGLU` in float64; exact zero where the sigmoid underflows."""
    wide = gate.astype(np.float64)
    return (wide / (1.0 + np.exp(np.minimum(-wide, 700.0))) * up).astype(np.float32)
