"""A device that is none: its memory is the host's, its kernels run in the emulator.  For tests."""

import ctypes
import hashlib
import os
import subprocess
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import numpy as np

from kernels.cuda.driver import Gemm, Launch, Pointer, Work
from kernels.cuda.sources import kernels_of, module_of, source_of
from kernels.memory import Bytes

ALIGNMENT = 256
FLAGS = ("-std=c++17", "-O1", "-fPIC", "-shared", "-ffp-contract=off", "-Wall", "-Werror")
# what is known of code that two compilers share
FLAGS_OFF = (
    "-Wno-unknown-pragmas",
    "-Wno-unused-function",
    "-Wno-unused-variable",
    "-Wno-parentheses",
    "-Wno-psabi",
)


class EmulatedDriver:
    """Satisfies `kernels.cuda.driver.Driver`.  cache_dir: where compiled modules are kept."""

    title = "emulated CUDA"
    has_gemm = False
    context_bytes = 0

    def __init__(self, cache_dir: Path, seed: int = 1) -> None:
        self._cache_dir = cache_dir
        self._seed = seed
        self._memory: dict[Pointer, Bytes] = {}

    def held_bytes(self) -> int:
        """All that was not freed."""
        return sum(array.nbytes for array in self._memory.values())

    def open(self) -> None:
        """Nothing to do."""

    def close(self) -> None:
        """Nothing to do."""

    def allocate(self, n_bytes: int) -> Pointer:
        """Zeros, aligned as a GPU's are."""
        raw = np.zeros(n_bytes + ALIGNMENT, np.uint8)
        pointer: int = raw.ctypes.data
        pointer += -pointer % ALIGNMENT
        self._memory[pointer] = raw
        return pointer

    def free(self, pointer: Pointer) -> None:
        """The array goes."""
        del self._memory[pointer]

    def upload(self, pointer: Pointer, data: Bytes) -> None:
        """A copy."""
        flat = np.ascontiguousarray(data)
        ctypes.memmove(pointer, flat.ctypes.data, flat.nbytes)

    def download(self, pointer: Pointer, into: Bytes) -> None:
        """A copy."""
        flat = np.empty(into.nbytes, np.uint8)
        ctypes.memmove(flat.ctypes.data, pointer, flat.nbytes)
        into[...] = flat

    def prepare(self, works: Sequence[Work]) -> None:
        """Compile their modules."""
        for work in works:
            if isinstance(work, Launch):
                _library(self._cache_dir, module_of(work.kernel), work.type_name)

    def run(self, works: Sequence[Work]) -> None:
        """One after the other."""
        for work in works:
            assert not isinstance(work, Gemm), "there is no library here"
            emulate(_library(self._cache_dir, module_of(work.kernel), work.type_name), work, self._seed)

    def record(self, works: Sequence[Work]) -> "EmulatedGraph":
        """To be run again."""
        return EmulatedGraph(self, works)


class EmulatedGraph:
    """Satisfies `kernels.cuda.driver.Graph`."""

    def __init__(self, driver: EmulatedDriver, works: Sequence[Work]) -> None:
        self._driver = driver
        self._works = works

    def launch(self) -> None:
        """Run everything."""
        self._driver.run(self._works)


def emulate(library: ctypes.CDLL, launch: Launch, seed: int) -> None:
    """Run a kernel of a library that `compiled` made."""
    sizes = (ctypes.c_uint * 6)(*launch.grid, launch.n_threads, 1, 1)
    values = [np.array([arg]) for arg in launch.args]
    args = (ctypes.c_void_p * len(values))(*[value.ctypes.data for value in values])
    if 0 not in launch.grid:
        run = getattr(library, f"emulate_{launch.kernel}")
        run(sizes, ctypes.c_size_t(launch.shared_bytes), ctypes.c_uint(seed), args)


@cache
def _library(cache_dir: Path, module: str, type_name: str) -> ctypes.CDLL:
    """The module compiled as C++."""
    text = source_of(module, type_name, is_emulated=True)
    return compiled(cache_dir, f"{module}-{type_name or 'all'}", text, kernels_of(module))


def compiled(cache_dir: Path, name: str, source: str, kernels: Sequence[str]) -> ctypes.CDLL:
    """The source, the emulator's header before it, as a library; RuntimeError with the compiler's words."""
    text = "\n".join([source, *(f"EMULATED({kernel})" for kernel in kernels), ""])
    compiler = os.environ.get("CXX", "g++")
    command = [compiler, *FLAGS, *FLAGS_OFF]
    digest = hashlib.sha256("\0".join([*command, text]).encode()).hexdigest()[:16]
    cache_dir.mkdir(parents=True, exist_ok=True)
    path = cache_dir / f"{name}-{digest}.so"
    if not path.exists():
        part = path.with_suffix(f".{os.getpid()}.part")
        done = subprocess.run(
            [*command, "-x", "c++", "-", "-o", str(part)],
            input=text,
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            raise RuntimeError(f"{name} does not compile for the emulator:\n{done.stderr[:4000]}")
        part.replace(path)
    return ctypes.CDLL(str(path))
