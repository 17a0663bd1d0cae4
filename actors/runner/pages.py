"""The pages of a mapped file: bring them in, ask which are there."""

import ctypes
import mmap

import numpy as np

_LIBC = ctypes.CDLL(None, use_errno=True)
_LIBC.mincore.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_char_p]


def touch(data: memoryview) -> None:
    """Read one byte of every page, so that no forward pass waits for the disk."""
    if len(data):
        np.frombuffer(data, np.uint8)[:: mmap.PAGESIZE].max()


def resident_bytes(data: memoryview) -> int:
    """Bytes of mapped memory whose pages are in main memory now."""
    if not len(data):
        return 0
    start = np.frombuffer(data, np.uint8).ctypes.data
    first = start - start % mmap.PAGESIZE
    n_pages = -(-(start + len(data) - first) // mmap.PAGESIZE)
    flags = ctypes.create_string_buffer(n_pages)
    if _LIBC.mincore(first, n_pages * mmap.PAGESIZE, flags) != 0:
        raise OSError(ctypes.get_errno(), "mincore of a mapped model file failed")
    n_resident = int((np.frombuffer(flags.raw, np.uint8) & 1).sum())
    return min(len(data), n_resident * mmap.PAGESIZE)
