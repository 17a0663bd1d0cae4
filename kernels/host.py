"""Buffers of host memory, and what this process holds of it."""

from pathlib import Path

import numpy as np

from kernels.memory import Allocations, Bytes, HostMemory


class HostBuffer:
    """Host memory, counted.  It goes back when `free` was called and the last view of its array is gone."""

    def __init__(self, array: Bytes, given_bytes: int, label: str, counters: Allocations) -> None:
        """array is what was asked for; given_bytes what the allocator takes for it."""
        self._memory = HostMemory(array)
        self._asked_bytes, self._given_bytes = array.nbytes, given_bytes
        self._label = label
        self._counters = counters
        self._is_freed = False
        counters.give(label, array.nbytes, given_bytes)

    @property
    def memory(self) -> HostMemory:
        """The whole of it; of no bytes once freed."""
        return self._memory

    def free(self) -> None:
        """Give the memory back; the second call does nothing."""
        if self._is_freed:
            return
        self._is_freed = True
        self._counters.take(self._label, self._asked_bytes, self._given_bytes)
        self._memory = HostMemory(np.empty(0, np.uint8))


def private_bytes() -> int:
    """Memory that this process alone holds: anonymous pages, so without mapped model files."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) * 1024
    return 0
