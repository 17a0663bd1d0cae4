"""The allocator of host memory: whole pages, zeroed, really there when it returns."""

import mmap
from pathlib import Path

import numpy as np

from kernels.backend import Allocations, Bytes, OutOfMemory
from kernels.cpu import _cpu

PAGE_BYTES = mmap.PAGESIZE
MEMINFO = Path("/proc/meminfo")


def round_to_pages(n_bytes: int) -> int:
    """What the kernel gives for a request."""
    return -(-n_bytes // PAGE_BYTES) * PAGE_BYTES


def available_bytes() -> int | None:
    """What Linux believes it can give without swapping; None where it does not say.

    Touching more pages than there are does not fail, it gets a process killed: so this is asked first.  The
    limit of a container is discovery's to know (a layout never asks for more); this is the last guard.
    """
    try:
        lines = MEMINFO.read_text().splitlines()
    except OSError:
        return None
    for line in lines:
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return None


class CpuBuffer:
    """Pages of host memory.  They go back when `free` was called and the last view of `array` is gone."""

    def __init__(self, array: Bytes, asked_bytes: int, label: str, counters: Allocations) -> None:
        self.array = array
        self._asked_bytes = asked_bytes
        self._given_bytes = round_to_pages(asked_bytes)
        self._label = label
        self._counters = counters
        self._is_freed = False
        counters.n_allocations += 1
        counters.asked_bytes += asked_bytes
        counters.given_bytes += self._given_bytes
        counters.high_water_bytes = max(counters.high_water_bytes, counters.given_bytes)
        counters.by_label[label] = counters.by_label.get(label, 0) + self._given_bytes

    def free(self) -> None:
        """Give the memory back."""
        if self._is_freed:
            return
        self._is_freed = True
        self._counters.asked_bytes -= self._asked_bytes
        self._counters.given_bytes -= self._given_bytes
        self._counters.by_label[self._label] -= self._given_bytes
        self.array = np.empty(0, np.uint8)


def allocate(device: str, n_bytes: int, label: str, counters: Allocations) -> CpuBuffer:
    """n_bytes of zeros; OutOfMemory when the machine has not so much, ValueError for a negative size."""
    if n_bytes < 0:
        raise ValueError(f"{label}: {n_bytes} bytes")
    if n_bytes == 0:
        return CpuBuffer(np.empty(0, np.uint8), 0, label, counters)
    available = available_bytes()
    if n_bytes >= 2**63 or (available is not None and round_to_pages(n_bytes) > available):
        raise OutOfMemory(device, n_bytes, label)
    array = _cpu.allocate(n_bytes)
    if array is None:
        raise OutOfMemory(device, n_bytes, label)
    return CpuBuffer(array, n_bytes, label, counters)
