"""Gather of rows: the embedding lookup (dequantising) and the choice of output rows."""

from dataclasses import dataclass

import numpy as np

from kernels.ops.op import F32, I32, Op
from kernels.tensor import Tensor


@dataclass(frozen=True, slots=True, eq=False)
class Rows(Op):
    """table [n_rows, n_embd] any dtype, ids [n] i32 in 0..n_rows-1 -> out [n, n_embd] f32, times scale."""

    table: Tensor
    ids: Tensor
    out: Tensor
    scale: float = 1.0


def rows_ref(table: F32, ids: I32, scale: float) -> F32:
    """Reference of `Rows` on a dequantised table."""
    return table[ids] * np.float32(scale)
