"""What all launches share: where things lie, arguments as kernels take them, parts of the scratch."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from kernels.cuda.driver import Launch, Pointer
from kernels.cuda.fuse import ACT_GROUP
from kernels.ops.rope import Rotation
from kernels.tensor import Bounds, Dim, Sym, Tensor

WARP = 32
N_THREADS = 256
ALIGNMENT = 256
ABSENT: Pointer = 0


@dataclass(frozen=True, slots=True)
class Place:
    """Where everything lies on the device."""

    address: Callable[[Tensor], Pointer]
    dims: Pointer
    symbols: Sequence[str]
    inv_freq: Mapping[Rotation, Pointer]
    counters: Pointer  # `fuse.MAX_COUNTERS` zeros of 32 bits
    scratch: Pointer
    bounds: Bounds
    has_gemm: bool

    def bytes_of(self, tensor: Tensor) -> range:
        """The addresses of its bytes."""
        start = self.address(tensor)
        return range(start, start + tensor.n_bytes(self.bounds))


@dataclass(frozen=True, slots=True)
class Acts:
    """The int8 form of a value, in the scratch: addresses of numbers, scales and sums."""

    tensor: Tensor
    at: tuple[Pointer, ...]


NO_ACTS = (ABSENT, ABSENT, ABSENT)


def launch(
    kernel: str,
    type_name: str,
    grid: tuple[int, int, int],
    n_threads: int,
    args: Sequence[Pointer | np.generic],
    shared_bytes: int = 0,
) -> Launch:
    """A launch whose addresses are as wide as kernels take them."""
    sized = tuple(np.uint64(arg) if isinstance(arg, int) else arg for arg in args)
    return Launch(kernel, type_name, grid, n_threads, sized, shared_bytes)


def dim_of(place: Place, dim: Dim) -> np.int32:
    """A dimension as kernels take it: a number, or which of `dims`."""
    return np.int32(-1 - place.symbols.index(dim.name) if isinstance(dim, Sym) else dim)


def dims_of(place: Place, dim: Dim) -> Sequence[Pointer | np.generic]:
    """The dimension, and where `dims` are."""
    return [dim_of(place, dim), place.dims]


def optional(place: Place, tensor: Tensor | None) -> Pointer:
    """The address of a tensor that may not be there."""
    return ABSENT if tensor is None else place.address(tensor)


def acts_bytes(n: int, n_in: int) -> Sequence[int]:
    """Bytes of int8 activations, their scales and their sums."""
    return n * n_in, n * (n_in // ACT_GROUP) * 4, n * (n_in // 16) * 2


def parts_at(start: Pointer, sizes: Sequence[int]) -> tuple[Pointer, ...]:
    """Addresses of parts of these sizes, one after the other."""
    found: list[Pointer] = []
    for n_bytes in sizes:
        found.append(start)
        start += up(n_bytes, ALIGNMENT)
    return tuple(found)


def end_of(sizes: Sequence[int]) -> int:
    """Bytes of all these parts."""
    return sum(up(n_bytes, ALIGNMENT) for n_bytes in sizes)


def blocks(n: int, per_block: int) -> int:
    """That n take."""
    return -(-n // per_block)


def up(n: int, multiple: int) -> int:
    """The next multiple."""
    return -(-n // multiple) * multiple
