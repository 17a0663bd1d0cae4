"""The shape every op shares: what it reads, what it writes, in which layer it belongs."""

from collections.abc import Iterator
from dataclasses import dataclass, fields

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
        return tuple(t for name, t in self._tensors() if name != "out")

    @property
    def writes(self) -> tuple[Tensor, ...]:
        """Tensors this op writes."""
        return tuple(t for name, t in self._tensors() if name == "out")

    def _tensors(self) -> Iterator[tuple[str, Tensor]]:
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, Tensor):
                yield field.name, value
