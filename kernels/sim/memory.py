"""Memory of a simulated device: the host may copy bytes in and out, and nothing else."""

import mmap
from collections.abc import Callable

import numpy as np

from kernels.memory import Allocations, ArrayMemory, Bytes, OutOfMemory, part_of

# mmap names it from Python 3.13 on.  What the device simulates to have must not count as promised by the host
MAP_NORESERVE = 0x4000


class SimMemory(ArrayMemory):
    """A range of one device's memory.  Satisfies `kernels.memory.Memory`."""

    def __init__(self, device: str, array: Bytes) -> None:
        super().__init__(array)
        self._device = device

    def part(self, start: int, n_bytes: int) -> "SimMemory":
        """See `Memory`."""
        return SimMemory(self._device, part_of(self._array, start, n_bytes))

    def seen_by(self, device: str) -> Bytes:
        """What kernels of a device compute on; ValueError for another device's."""
        if device != self._device:
            raise ValueError(f"kernels of {device} cannot reach memory of {self._device}")
        return self._array

    def __repr__(self) -> str:
        return f"{self.n_bytes} bytes of {self._device}"


class SimBuffer:
    """A buffer that the machine gave.  Satisfies `kernels.memory.Buffer`."""

    def __init__(
        self,
        device: str,
        n_bytes: int,
        given_bytes: int,
        label: str,
        counters: Allocations,
        release: Callable[[int], None],
    ) -> None:
        self._device = device
        self._asked_bytes, self._given_bytes = n_bytes, given_bytes
        self._label = label
        self._counters = counters
        self._release = release
        self._is_freed = False
        self._memory = SimMemory(device, _zeros(device, n_bytes, label))
        counters.give(label, n_bytes, given_bytes)

    @property
    def memory(self) -> SimMemory:
        """The whole of it; of no bytes once freed."""
        return self._memory

    def free(self) -> None:
        """Give the memory back; the second call does nothing."""
        if self._is_freed:
            return
        self._is_freed = True
        self._release(self._given_bytes)
        self._counters.take(self._label, self._asked_bytes, self._given_bytes)
        self._memory = SimMemory(self._device, np.empty(0, np.uint8))


def _zeros(device: str, n_bytes: int, label: str) -> Bytes:
    """Shared anonymous pages: the process's private memory, the host's to report, has none of them."""
    if n_bytes == 0:
        return np.empty(0, np.uint8)
    try:
        pages = mmap.mmap(-1, n_bytes, flags=mmap.MAP_SHARED | MAP_NORESERVE)
    except OSError as exc:
        raise OutOfMemory(device, n_bytes, label, "the host has no memory to simulate it with") from exc
    return np.frombuffer(pages, np.uint8)
