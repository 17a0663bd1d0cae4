"""The shape every op shares: what it reads, what it writes, in which layer it belongs."""

from dataclasses import dataclass, fields
from functools import cache

import numpy as np
import numpy.typing as npt

from kernels.tensor import Tensor

F32 = npt.NDArray[np.float32]
I32 = npt.NDArray[np.int32]
Array = npt.NDArray[np.generic]


@dataclass(frozen=True, slots=True, eq=False)
class Op:
    """One fused kernel's worth of work.  Every Tensor field but `out` is read; `out` is written.

    Ops that write into a state (and have no value) name the states in `writes`.
    """

    layer: int

    @property
    def reads(self) -> tuple[Tensor, ...]:
        """Tensors this op reads, in field order; optional ones that are absent are left out."""
        values = (getattr(self, name) for name in _read_names(type(self)))
        return tuple(value for value in values if isinstance(value, Tensor))

    @property
    def writes(self) -> tuple[Tensor, ...]:
        """Tensors this op writes."""
        out = getattr(self, "out", None)
        return (out,) if isinstance(out, Tensor) else ()


@cache
def _read_names(kind: type[Op]) -> tuple[str, ...]:
    """Fields that may hold a tensor to be read; a plan asks for those of a thousand ops many times."""
    return tuple(field.name for field in fields(kind) if field.name not in ("layer", "out"))
