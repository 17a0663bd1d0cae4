"""What all backends of the host have alike: its memory, which nobody opens, and its processor's name."""

from pathlib import Path

import numpy as np

from kernels.backend import Synchronous
from kernels.memory import Allocations, Bytes, HostMemory

CPUINFO = Path("/proc/cpuinfo")


class HostBackend(Synchronous):
    """The part of `kernels.backend.Backend` that does not depend on who computes."""

    def __init__(self, name: str) -> None:
        self.allocations = Allocations()
        self._name = name

    @property
    def name(self) -> str:
        """The device id."""
        return self._name

    @property
    def title(self) -> str:
        """The processor's name."""
        return processor_name()

    @property
    def is_host(self) -> bool:
        """Its memory is the host's."""
        return True

    @property
    def context_bytes(self) -> int:
        """A process has its host from the start."""
        return 0

    def held_bytes(self) -> int:
        """The process's own memory."""
        return private_bytes()

    def open(self) -> None:
        """Nothing to do."""

    def close(self) -> None:
        """Nothing to do."""


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


def processor_name() -> str:
    """As Linux names it; most ARM servers are not named."""
    with CPUINFO.open() as lines:  # each processor has a paragraph, and on x86 the first one will do
        for line in lines:
            key, _, value = line.partition(":")
            if key.strip() in ("model name", "Model"):
                return value.strip()
    return "unknown processor"
