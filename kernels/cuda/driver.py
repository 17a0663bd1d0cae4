"""What launches kernels and holds their memory: a GPU through CuPy, or the emulator."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from kernels.memory import Bytes, Pending

Pointer = int


@dataclass(frozen=True, slots=True)
class Launch:
    """One kernel over a grid; `args` in the order of its parameters and as wide as they are."""

    kernel: str
    type_name: str  # of the weight, where the kernel is compiled for each
    grid: tuple[int, int, int]
    n_threads: int
    args: tuple[np.generic, ...]  # addresses as uint64
    shared_bytes: int = 0


@dataclass(frozen=True, slots=True)
class Gemm:
    """The library's product: c [n, n_out] f32 = a [n, n_in] f16 times b [n_out, n_in] f16, transposed."""

    a: Pointer
    b: Pointer
    c: Pointer
    n: int
    n_in: int
    n_out: int


Work = Launch | Gemm


class Graph(Protocol):
    """Work that was recorded, to be done again and again."""

    def launch(self) -> None:
        """Do it, after all that the driver was given before; returns without waiting."""
        ...


class Driver(Protocol):
    """One device.  Work is done in the order in which it is given; what is started runs beside it."""

    @property
    def title(self) -> str:
        """The device's name for people."""
        ...

    @property
    def has_gemm(self) -> bool:
        """Whether there is a library for `Gemm`."""
        ...

    @property
    def context_bytes(self) -> int:
        """What `open` is expected to take."""
        ...

    def held_bytes(self) -> int:
        """What this process holds of the device."""
        ...

    def open(self) -> None:
        """Make the context, once."""
        ...

    def close(self) -> None:
        """Give back what `open` took."""
        ...

    def allocate(self, n_bytes: int) -> Pointer:
        """Zeros; MemoryError when there are none."""
        ...

    def free(self, pointer: Pointer) -> None:
        """Give memory back."""
        ...

    def upload(self, pointer: Pointer, data: Bytes) -> None:
        """From the host; data may change once this returns."""
        ...

    def start_upload(self, pointer: Pointer, data: Bytes) -> Pending:
        """From the host, after other such copies, beside other work; data has to stay till then."""
        ...

    def pin(self, data: Bytes) -> None:
        """Lock memory of the host, which `start_upload` then reads later; PinError says why not."""
        ...

    def unpin(self, data: Bytes) -> None:
        """Undo `pin`."""
        ...

    def download(self, pointer: Pointer, into: Bytes) -> None:
        """To the host, done when this returns."""
        ...

    def reaches(self, other: "Driver") -> bool:
        """Whether the two devices copy from one another by themselves; takes nothing of either."""
        ...

    def receive(self, pointer: Pointer, other: "Driver", source: Pointer, n_bytes: int) -> None:
        """From a device that it reaches: after the work of both so far, before what both are given later."""
        ...

    def mark(self) -> Pending:
        """The end of all work that was given so far, without what was started."""
        ...

    def prepare(self, works: Sequence[Work]) -> None:
        """Compile what these need, so that `run` takes no time and no memory for it."""
        ...

    def run(self, works: Sequence[Work]) -> None:
        """Do them in order; returns without waiting."""
        ...

    def record(self, works: Sequence[Work]) -> Graph:
        """The same as one."""
        ...
