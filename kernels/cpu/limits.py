"""What the host's memory gives at most, as the native kernels meet it."""

import statistics

from kernels.cpu import _cpu
from kernels.cpu.backend import CpuBackend

N_PASSES = 7


def read_bytes_per_s(backend: CpuBackend, n_bytes: int) -> float:
    """Bytes that all the backend's threads together read in a second, streaming through n_bytes.

    The median of some passes: a few find the caches warm, or another program at work.  n_bytes should be more
    than the caches hold.  OutOfMemory where the host has not so much.
    """
    buffer = backend.allocate(n_bytes, "read speed")
    data = buffer.memory.array
    passes = [_cpu.timed_read(backend.pool, backend.isa, data)[0] for _ in range(N_PASSES)]
    buffer.free()
    return n_bytes / statistics.median(passes)
