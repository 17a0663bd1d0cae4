"""What a program is made of: symbolic dimensions and typed tensors without memory.

Shapes are in numpy order, outermost dimension first, so a weight of `n_out` rows over `n_in` columns is
`[n_out, n_in]`; a GGUF file writes the same tensor as `(n_in, n_out)`.
"""

import enum
from collections.abc import Mapping
from dataclasses import dataclass

from kernels.dtype import DType


@dataclass(frozen=True, slots=True)
class Sym:
    """A dimension whose value arrives with each run, at most the bound its plan was made for."""

    name: str

    def __repr__(self) -> str:
        return self.name


Dim = int | Sym
Shape = tuple[Dim, ...]
Bounds = Mapping[str, int]

N_TOKENS = Sym("n_tokens")
N_OUTPUTS = Sym("n_outputs")
N_SEQS = Sym("n_seqs")
N_PAGES = Sym("n_pages")
N_SOURCE = Sym("n_source")  # inputs of an encoder
N_SOURCE_PAGES = Sym("n_source_pages")  # of one sequence's


def value_of(dim: Dim, values: Bounds) -> int:
    """The number behind a dimension; KeyError names a symbol that has no value."""
    return values[dim.name] if isinstance(dim, Sym) else dim


def shape_of(shape: Shape, values: Bounds) -> tuple[int, ...]:
    """The shape with every symbol replaced by its value."""
    return tuple(value_of(dim, values) for dim in shape)


class Role(enum.Enum):
    """Where a tensor's memory comes from and how long it lives."""

    INPUT = "input"  # written by the caller before each run
    WEIGHT = "weight"  # read-only, from the model file
    STATE = "state"  # outlives a run: cache pages
    VALUE = "value"  # lives between its op and its last reader


@dataclass(frozen=True, slots=True, eq=False)
class Tensor:
    """A named tensor of a program; `layer` is 0..n_layer-1, n_layer for the output, -1 for the input side."""

    name: str
    shape: Shape
    dtype: DType
    role: Role
    layer: int

    def n_bytes(self, values: Bounds) -> int:
        """Bytes of the tensor when its symbols have these values."""
        n_elements = 1
        for dim in self.shape:
            n_elements *= dim if isinstance(dim, int) else values[dim.name]
        return self.dtype.n_bytes(n_elements)

    @property
    def width(self) -> int:
        """Numbers in a row: the last dimension; ValueError where that is a symbol."""
        last = self.shape[-1]
        if isinstance(last, Sym):
            raise ValueError(f"{self} has rows of unknown length")
        return last

    def __repr__(self) -> str:
        dims = ", ".join(map(str, self.shape))
        return f"{self.name}: {self.dtype.name}[{dims}]"
