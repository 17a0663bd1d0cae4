"""The allocator of host memory: whole pages, zeroed, really there when it returns."""

import mmap
from pathlib import Path

import numpy as np

from kernels.cpu import _cpu
from kernels.host import HostBuffer
from kernels.memory import Allocations, OutOfMemory

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


def allocate(device: str, n_bytes: int, label: str, counters: Allocations) -> HostBuffer:
    """n_bytes of zeros; OutOfMemory when the machine has not so much, ValueError for a negative size."""
    if n_bytes < 0:
        raise ValueError(f"{label}: {n_bytes} bytes")
    if n_bytes == 0:
        return HostBuffer(np.empty(0, np.uint8), 0, label, counters)
    available = available_bytes()
    if n_bytes >= 2**63 or (available is not None and round_to_pages(n_bytes) > available):
        raise OutOfMemory(device, n_bytes, label)
    array = _cpu.allocate(n_bytes)
    if array is None:
        raise OutOfMemory(device, n_bytes, label)
    return HostBuffer(array, round_to_pages(n_bytes), label, counters)
