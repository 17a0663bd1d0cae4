"""The shape every op shares: what it reads, what it writes, in which layer it belongs."""

from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import cache
from operator import attrgetter

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
        return tuple([value for value in _reader(type(self))(self) if isinstance(value, Tensor)])

    @property
    def writes(self) -> tuple[Tensor, ...]:
        """Tensors this op writes."""
        out = getattr(self, "out", None)
        return (out,) if isinstance(out, Tensor) else ()


@cache
def _reader(kind: type[Op]) -> Callable[[Op], tuple[object, ...]]:
    """All fields but `out`; a plan asks for those of a thousand ops many times."""
    names = [field.name for field in fields(kind) if field.name != "out"]
    assert len(names) > 1, "an op has a layer and reads something"  # of one name alone there is no tuple
    return attrgetter(*names)
