"""Soft-capping of logits: they never leave -cap..cap, and hardly change while they are small.

arXiv:2408.00118, section 2.
"""

from dataclasses import dataclass

import numpy as np

from kernels.ops.op import F32, Op
from kernels.tensor import Tensor


@dataclass(frozen=True, slots=True, eq=False)
class SoftCap(Op):
    """x [n, k] f32 -> out [n, k] f32 = cap * tanh(x / cap); cap > 0.  `out` may share memory with `x`."""

    x: Tensor
    out: Tensor
    cap: float


def softcap_ref(x: F32, cap: float) -> F32:
    """Reference of `SoftCap`, in float64."""
    return (cap * np.tanh(x.astype(np.float64) / cap)).astype(np.float32)
