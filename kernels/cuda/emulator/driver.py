"""A device that is none: its memory is the host's, its kernels run in the emulator.  For tests.

Work and copies wait in queues until somebody waits for them, as `queues` has it.
"""

import ctypes
import hashlib
import os
import subprocess
from collections.abc import Sequence
from functools import cache, partial
from pathlib import Path

import numpy as np

from kernels.cuda.driver import Driver, Gemm, Launch, Pointer, Work
from kernels.cuda.emulator.queues import Point, Queues
from kernels.cuda.sources import kernels_of, module_of, source_of
from kernels.memory import Bytes, PinError

ALIGNMENT = 256
WORK, COPIES = "work", "copies"  # the queues
# accesses are told to shadow.hpp, which takes the place of the library that this flag is made for
WATCHED = ("-fsanitize=thread",)
FLAGS = ("-std=c++17", "-O1", "-fPIC", "-ffp-contract=off", "-Wall", "-Werror")
# what is known of code that two compilers share
FLAGS_OFF = (
    "-Wno-unknown-pragmas",
    "-Wno-unused-function",
    "-Wno-unused-variable",
    "-Wno-parentheses",
    "-Wno-psabi",
)


class EmulatedDriver:
    """Satisfies `kernels.cuda.driver.Driver`.

    cache_dir: where compiled modules are kept.  seed: of the orders of threads and of queues.
    can_pin: whether the system lets a driver lock memory.  has_peers: whether devices reach one another.
    is_watched: races in shared memory end the process with words; everything takes several times as long.
    """

    title = "emulated CUDA"
    has_gemm = False
    context_bytes = 0

    def __init__(
        self,
        cache_dir: Path,
        seed: int = 1,
        *,
        can_pin: bool = True,
        has_peers: bool = True,
        is_watched: bool = False,
    ) -> None:
        self._cache_dir = cache_dir
        self._seed = seed
        self._can_pin = can_pin
        self._has_peers = has_peers
        self._is_watched = is_watched
        self.received_bytes = 0  # of other devices
        self.queues = Queues(seed)  # a test may put work of its own there
        self._memory: dict[Pointer, Bytes] = {}
        self._pinned: dict[Pointer, int] = {}  # the size of each range

    @property
    def pinned_bytes(self) -> int:
        """Memory of the host that is locked."""
        return sum(self._pinned.values())

    @property
    def n_waiting(self) -> int:
        """What the queues hold that is not done."""
        return len(self.queues)

    def held_bytes(self) -> int:
        """All that was not freed."""
        return sum(array.nbytes - ALIGNMENT for array in self._memory.values())

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
        """The array goes, when nothing is under way any more: CUDA waits, too."""
        self.queues.finish()
        del self._memory[pointer]

    def upload(self, pointer: Pointer, data: Bytes) -> None:
        """A copy of a copy."""
        self.queues.put(WORK, partial(_copy, pointer, data.copy()))

    def start_upload(self, pointer: Pointer, data: Bytes) -> "EmulatedEvent":
        """A copy, of a copy unless the memory is pinned."""
        begin: int = data.ctypes.data
        is_pinned = any(p <= begin and begin + data.nbytes <= p + n for p, n in self._pinned.items())
        self.queues.put(COPIES, partial(_copy, pointer, data if is_pinned else data.copy()))
        return EmulatedEvent(self.queues, self.queues.mark(COPIES))

    def pin(self, data: Bytes) -> None:
        """Noted."""
        if not self._can_pin:
            raise PinError("memory of this system cannot be locked")
        self._pinned[data.ctypes.data] = data.nbytes

    def unpin(self, data: Bytes) -> None:
        """Noted; KeyError where it is not pinned."""
        del self._pinned[data.ctypes.data]

    def download(self, pointer: Pointer, into: Bytes) -> None:
        """A copy."""
        self.queues.reach(self.queues.mark(WORK))
        flat = np.empty(into.nbytes, np.uint8)
        ctypes.memmove(flat.ctypes.data, pointer, flat.nbytes)
        into[...] = flat

    def reaches(self, other: Driver) -> bool:
        """As the two were made."""
        return (
            isinstance(other, EmulatedDriver) and other is not self and self._has_peers and other._has_peers
        )

    def receive(self, pointer: Pointer, other: Driver, source: Pointer, n_bytes: int) -> None:
        """In the queues of both."""
        assert isinstance(other, EmulatedDriver), "others are out of reach"
        given = other.queues.mark(WORK)
        self.queues.put(WORK, partial(other.queues.reach, given))
        self.queues.put(WORK, partial(ctypes.memmove, pointer, source, n_bytes))
        done = self.queues.mark(WORK)
        other.queues.put(WORK, partial(self.queues.reach, done))
        self.received_bytes += n_bytes

    def mark(self) -> "EmulatedEvent":
        """The end of the queue of work."""
        return EmulatedEvent(self.queues, self.queues.mark(WORK))

    def prepare(self, works: Sequence[Work]) -> None:
        """Compile their modules."""
        for work in works:
            if isinstance(work, Launch):
                self._library(work)

    def run(self, works: Sequence[Work]) -> None:
        """One after the other."""
        for work in works:
            self.queues.put(WORK, partial(self._run, work))

    def record(self, works: Sequence[Work]) -> "EmulatedGraph":
        """To be run again."""
        return EmulatedGraph(self, works)

    def _run(self, work: Work) -> None:
        assert not isinstance(work, Gemm), "there is no library here"
        emulate(self._library(work), work, self._seed)

    def _library(self, launch: Launch) -> ctypes.CDLL:
        return _library(self._cache_dir, module_of(launch.kernel), launch.type_name, self._is_watched)


class EmulatedEvent:
    """Satisfies `kernels.memory.Pending`."""

    def __init__(self, queues: Queues, point: Point) -> None:
        self._queues = queues
        self.point = point

    @property
    def is_done(self) -> bool:
        """Asking takes time, in which something is done."""
        self._queues.advance()
        return self.point.is_reached

    def wait(self) -> None:
        """See `Pending`."""
        self._queues.reach(self.point)


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


def _copy(pointer: Pointer, data: Bytes) -> None:
    flat = np.ascontiguousarray(data)
    ctypes.memmove(pointer, flat.ctypes.data, flat.nbytes)


@cache
def _library(cache_dir: Path, module: str, type_name: str, is_watched: bool) -> ctypes.CDLL:
    """The module compiled as C++."""
    text = source_of(module, type_name, is_emulated=True)
    name = f"{module}-{type_name or 'all'}"
    return compiled(cache_dir, name, text, kernels_of(module), is_watched=is_watched)


def compiled(
    cache_dir: Path, name: str, source: str, kernels: Sequence[str], *, is_watched: bool
) -> ctypes.CDLL:
    """The source, the emulator's header before it, as a library; RuntimeError with the compiler's words."""
    text = "\n".join([source, *(f"EMULATED({kernel})" for kernel in kernels), ""])
    compiler = os.environ.get("CXX", "g++")
    command = [compiler, *FLAGS, *FLAGS_OFF, *(WATCHED if is_watched else ())]
    digest = hashlib.sha256("\0".join([*command, text]).encode()).hexdigest()[:16]
    cache_dir.mkdir(parents=True, exist_ok=True)
    path = cache_dir / f"{name}-{digest}.so"
    if not path.exists():
        part = path.with_suffix(f".{os.getpid()}.part")
        unlinked = part.with_suffix(".o")
        for step, given in (
            ([*command, "-c", "-x", "c++", "-", "-o", str(unlinked)], text),
            ([compiler, "-shared", str(unlinked), "-o", str(part)], ""),
        ):
            done = subprocess.run(step, input=given, capture_output=True, text=True, check=False)
            if done.returncode:
                raise RuntimeError(f"{name} does not compile for the emulator:\n{done.stderr[:4000]}")
        unlinked.unlink()
        part.replace(path)
    return ctypes.CDLL(str(path))
