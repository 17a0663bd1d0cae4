"""What a device must be able to do for a plan to run on it.  `reference` and `cpu` satisfy it.

A backend is one device's memory and kernels.  It never allocates while a program runs: everything comes from
buffers made by `allocate` before, whose sizes the plan knows.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import numpy.typing as npt

from kernels.ops.op import Op
from kernels.tensor import Bounds, Tensor

Bytes = npt.NDArray[np.uint8]


class OutOfMemory(MemoryError):
    """A device could not give what was asked; carries the numbers, is caught where a load is answered.

    free_bytes is what the device had then, None where it does not say.
    """

    def __init__(self, device: str, n_bytes: int, label: str, free_bytes: int | None = None) -> None:
        free = "" if free_bytes is None else f", {free_bytes} are free"
        super().__init__(f"{device} could not allocate {n_bytes} bytes for {label}{free}")
        self.device = device
        self.n_bytes = n_bytes
        self.label = label


@dataclass(slots=True)
class Allocations:
    """Counters of one device's allocator."""

    n_allocations: int = 0
    asked_bytes: int = 0  # alive now, as asked
    given_bytes: int = 0  # alive now, as the device rounds it
    high_water_bytes: int = 0
    by_label: dict[str, int] = field(default_factory=dict[str, int])


class Buffer(Protocol):
    """Device memory: `array` is its host view where the device has one."""

    @property
    def array(self) -> Bytes:
        """[n_bytes] u8, writable, without a copy."""
        ...

    def free(self) -> None:
        """Give the memory back; the second call does nothing."""
        ...


@dataclass(frozen=True, slots=True)
class Binding:
    """Everything a segment needs: its ops in order and the memory behind each of their tensors."""

    ops: Sequence[Op]
    memory: Mapping[Tensor, Bytes]  # at bound size; weights may be read-only views of the mapped file
    bounds: Bounds
    workspace: Bytes


class Segment(Protocol):
    """A run of ops on one device, ready to execute."""

    def run(self, values: Bounds) -> None:
        """Execute with these values of the symbols (each at most its bound).  Allocates nothing."""
        ...


class Backend(Protocol):
    """One device."""

    @property
    def name(self) -> str:
        """The device id, such as `cpu`."""
        ...

    @property
    def alignment(self) -> int:
        """Byte alignment of every tensor in an arena."""
        ...

    @property
    def allocations(self) -> Allocations:
        """Counters of the allocator, live."""
        ...

    def refuses(self, op: Op) -> str | None:
        """Why this device cannot run the op, or None when it can."""
        ...

    def workspace_bytes(self, op: Op, bounds: Bounds) -> int:
        """Scratch the op's kernel needs: a pure function of shapes, so that fit is arithmetic."""
        ...

    def round_up(self, n_bytes: int) -> int:
        """Bytes the allocator really gives for a request of n_bytes."""
        ...

    def allocate(self, n_bytes: int, label: str) -> Buffer:
        """Memory filled with zeros; OutOfMemory when there is none."""
        ...

    def bind(self, binding: Binding) -> Segment:
        """Compile a segment: choose kernels, resolve addresses."""
        ...
