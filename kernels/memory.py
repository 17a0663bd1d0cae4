"""Memory of devices: ranges that kernels compute on, and how bytes get in and out of them.

The host's own memory is `HostMemory`, and whoever holds one may look at its array.  Into any other the host
only puts bytes with `upload`, and gets them out with `download`.
"""

from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import numpy.typing as npt

Bytes = npt.NDArray[np.uint8]


class OutOfMemory(MemoryError):
    """A device could not give what was asked; carries the numbers, is caught where a load is answered."""

    def __init__(self, device: str, n_bytes: int, label: str, why: str = "") -> None:
        """why: what the device has to say of it, such as how much is free."""
        reason = f": {why}" if why else ""
        super().__init__(f"{device} could not allocate {n_bytes} bytes for {label}{reason}")
        self.device = device
        self.n_bytes = n_bytes
        self.label = label


class PinError(RuntimeError):
    """Memory of the host cannot be pinned; the message says why."""


@dataclass(slots=True)
class Allocations:
    """Counters of one device's allocator."""

    n_allocations: int = 0
    asked_bytes: int = 0  # alive now, as asked
    given_bytes: int = 0  # alive now, as the device rounds it
    high_water_bytes: int = 0
    by_label: dict[str, int] = field(default_factory=dict[str, int])

    def give(self, label: str, asked_bytes: int, given_bytes: int) -> None:
        """Count a buffer that was given."""
        self.n_allocations += 1
        self.asked_bytes += asked_bytes
        self.given_bytes += given_bytes
        self.high_water_bytes = max(self.high_water_bytes, self.given_bytes)
        self.by_label[label] = self.by_label.get(label, 0) + given_bytes

    def take(self, label: str, asked_bytes: int, given_bytes: int) -> None:
        """Count a buffer that came back."""
        self.asked_bytes -= asked_bytes
        self.given_bytes -= given_bytes
        self.by_label[label] -= given_bytes


class Memory(Protocol):
    """A range of one device's memory."""

    @property
    def n_bytes(self) -> int:
        """Its size."""
        ...

    def part(self, start: int, n_bytes: int) -> "Memory":
        """A range within, without a copy; ValueError when it does not lie within."""
        ...

    def upload(self, data: Bytes) -> None:
        """Put data [at most n_bytes] from the host at the beginning.

        It comes after all work that the device was given before, and data may change once this returns.
        """
        ...

    def start_upload(self, data: Bytes) -> "Pending":
        """Begin to put data [at most n_bytes] from the host at the beginning, beside all other work.

        Data may change, and the device's work may use what arrived, once the copy is done.  From memory that
        is pinned (`kernels.backend.Backend.pin`) the device copies by itself.
        """
        ...

    def reaches(self, other: "Memory") -> bool:
        """Whether `receive` from there goes without passing the host."""
        ...

    def receive(self, source: "Memory", n_bytes: int) -> None:
        """Put n_bytes of the beginning of another device's memory at the beginning.

        It comes after all work that either was given before, and before all that either is given later.
        ValueError where it does not reach it.
        """
        ...

    def download(self, into: Bytes) -> None:
        """Fill `into` [at most n_bytes] on the host from the beginning.

        It comes after all work that the device was given before, and is done when this returns.
        """
        ...


class Pending(Protocol):
    """Something that a device does by itself, which the host may wait for."""

    @property
    def is_done(self) -> bool:
        """Whether it is over; asks without waiting."""
        ...

    def wait(self) -> None:
        """Until it is over."""
        ...


class Done:
    """Satisfies `Pending` for what was done at once."""

    is_done = True

    def wait(self) -> None:
        """No reason to."""


class Buffer(Protocol):
    """Memory with an owner, who frees it."""

    @property
    def memory(self) -> Memory:
        """The whole of it; of no bytes once freed."""
        ...

    def free(self) -> None:
        """Give the memory back; the second call does nothing."""
        ...


class ArrayMemory:
    """What memory has in common that is an array [n_bytes] u8 of this process: copies are done at once.

    Other memory is reached through `upload` and `download` alone.
    """

    __slots__ = ("_array",)

    def __init__(self, array: Bytes) -> None:
        self._array = array

    @property
    def n_bytes(self) -> int:
        """Its size."""
        return self._array.nbytes

    def upload(self, data: Bytes) -> None:
        """See `Memory`."""
        self._array[: data.nbytes] = data

    def start_upload(self, data: Bytes) -> Done:
        """See `Memory`."""
        self.upload(data)
        return Done()

    def reaches(self, other: Memory) -> bool:
        """None."""
        del other
        return False

    def receive(self, source: Memory, n_bytes: int) -> None:
        """See `reaches`."""
        raise ValueError(f"{n_bytes} bytes of {source} are out of reach of {self}")

    def download(self, into: Bytes) -> None:
        """See `Memory`."""
        into[...] = self._array[: into.nbytes]


class HostMemory(ArrayMemory):
    """The host's own memory, or a mapped file's."""

    __slots__ = ()

    @property
    def array(self) -> Bytes:
        """The thing itself."""
        return self._array

    def part(self, start: int, n_bytes: int) -> "HostMemory":
        """See `Memory`."""
        return HostMemory(part_of(self._array, start, n_bytes))

    def __repr__(self) -> str:
        return f"{self.n_bytes} bytes of the host"


def part_of(array: Bytes, start: int, n_bytes: int) -> Bytes:
    """A view of n_bytes; ValueError when they do not lie within the array."""
    if not 0 <= start <= start + n_bytes <= array.nbytes:
        raise ValueError(f"bytes {start} to {start + n_bytes} are not within {array.nbytes}")
    return array[start : start + n_bytes]


def host_array(memory: Memory) -> Bytes:
    """The array of host memory; ValueError for any other, which the host may not touch."""
    if not isinstance(memory, HostMemory):
        raise ValueError(f"{memory} is not the host's memory")
    return memory.array
