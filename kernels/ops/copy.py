"""Movement of a value between devices; only a plan inserts it."""

from dataclasses import dataclass

from kernels.ops.op import Op
from kernels.tensor import Tensor


@dataclass(frozen=True, slots=True, eq=False)
class Copy(Op):
    """x [...] on one device -> out [...] of the same shape and dtype on another."""

    x: Tensor
    out: Tensor
