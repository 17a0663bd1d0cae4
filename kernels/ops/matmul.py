"""Matrix product of activations with a weight in its file format, bias and residual added in the same pass.

The reference dequantises the weight exactly and multiplies in float64.  Backends may quantise the activations
to int8 blocks; their error bound is stated in the test.
"""

from dataclasses import dataclass

import numpy as np

from kernels.ops.op import F32, Op
from kernels.tensor import Tensor


@dataclass(frozen=True, slots=True, eq=False)
class Matmul(Op):
    """out [n, n_out] f32 = x weight^T (+ bias) (+ residual).

    x [n, n_in] f32, weight [n_out, n_in] any dtype, bias [n_out] f32, residual [n, n_out] f32.
    `residual` may share memory with `out`; `x` may not.
    """

    x: Tensor
    weight: Tensor
    out: Tensor
    bias: Tensor | None = None
    residual: Tensor | None = None


def matmul_ref(x: F32, weight: F32, bias: F32 | None = None, residual: F32 | None = None) -> F32:
    """Reference of `Matmul` on a dequantised weight [n_out, n_in]."""
    wide = x.astype(np.float64) @ weight.astype(np.float64).T
    if bias is not None:
        wide += bias
    if residual is not None:
        wide += residual
    return wide.astype(np.float32)
