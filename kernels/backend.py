"""What a device must be able to do for a plan to run on it.  `reference`, `cpu`, `cuda` and `sim` do.

A backend is one device's memory and kernels.  It never allocates while a program runs: everything comes from
buffers made by `allocate` before, whose sizes the plan knows.

Making a backend takes nothing of its device.  `open` makes what the device's library takes for a process
before the first buffer (a context), `close` gives that back.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from kernels.memory import Allocations, Buffer, Bytes, Done, Memory, Pending
from kernels.ops.op import Op
from kernels.tensor import Bounds, Tensor

CONTEXT = "context"  # the label of what `open` takes


@dataclass(frozen=True, slots=True)
class Binding:
    """Everything a segment needs: its ops in order and the memory behind each of their tensors."""

    ops: Sequence[Op]
    memory: Mapping[Tensor, Memory]  # at bound size; weights may be read-only views of the mapped file
    bounds: Bounds
    workspace: Memory


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
    def title(self) -> str:
        """The device's name for people, as its maker gives it."""
        ...

    @property
    def is_host(self) -> bool:
        """Whether its memory is the host's: buffers are HostMemory, weights are used in the mapped file."""
        ...

    @property
    def alignment(self) -> int:
        """Byte alignment of every tensor in an arena."""
        ...

    @property
    def allocations(self) -> Allocations:
        """Counters of the allocator, live."""
        ...

    @property
    def context_bytes(self) -> int:
        """What `open` is expected to take of the device."""
        ...

    def held_bytes(self) -> int:
        """What the device itself says this process holds of it: buffers, context, libraries."""
        ...

    def open(self) -> None:
        """Make the context, once; OutOfMemory, labelled CONTEXT, when there is no room for it."""
        ...

    def close(self) -> None:
        """Give the context back, once all buffers are freed; nothing where there is none."""
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
        """Memory filled with zeros on an open device; OutOfMemory when there is none."""
        ...

    def pin(self, data: Bytes) -> None:
        """Keep memory of the host where it is, so that devices of this library copy from it by themselves.

        Until `unpin`, on an open device.  PinError: the system refuses.
        """
        ...

    def unpin(self, data: Bytes) -> None:
        """Undo `pin`, once no copy from there is under way."""
        ...

    def reaches(self, other: "Backend") -> bool:
        """Whether values come from there without passing the host; also of devices that are not open."""
        ...

    def mark(self) -> Pending:
        """The end of all work that the device was given so far."""
        ...

    def bind(self, binding: Binding) -> Segment:
        """Compile a segment: choose kernels, resolve addresses."""
        ...


class Synchronous:
    """The part of `Backend` of devices that are done when a call returns, and reach no other."""

    def pin(self, data: Bytes) -> None:
        """Nothing to do: what is copied is there when `start_upload` returns."""

    def unpin(self, data: Bytes) -> None:
        """Nothing to do."""

    def reaches(self, other: Backend) -> bool:
        """Everything passes the host."""
        del other
        return False

    def mark(self) -> Done:
        """Work is done when a segment has run."""
        return Done()
