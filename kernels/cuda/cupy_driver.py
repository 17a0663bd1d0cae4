"""A GPU through CuPy: memory without CuPy's pools, modules compiled by NVRTC and kept on disk, graphs.

CuPy is imported when a device is opened: whoever only plans needs none.
"""

import importlib
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import numpy as np

from kernels.cuda.driver import Driver, Gemm, Launch, Pointer, Work
from kernels.cuda.sources import module_of, source_of
from kernels.memory import Bytes, PinError

CONTEXT_BYTES = 640 << 20  # an H200 with driver 580, CUDA 13 and the matrix library took 598 MiB
# cudaErrorMemoryAllocation, CUDA_ERROR_OUT_OF_MEMORY, CUBLAS_STATUS_ALLOC_FAILED
OUT_OF_MEMORY = {("CUDARuntimeError", 2), ("CUDADriverError", 2), ("CUBLASError", 3)}
NOT_READY = 600  # cudaErrorNotReady
PEERS_ALREADY = 704  # cudaErrorPeerAccessAlreadyEnabled
TO_DEVICE, TO_HOST = 1, 2
PORTABLE = 1  # cudaHostRegisterPortable
OP_N, OP_T = 0, 1
R_32F, R_16F, COMPUTE_32F, ALGO_DEFAULT = 0, 2, 68, -1
OPTIONS = ("--std=c++17",)


class CupyDriver:
    """Satisfies `kernels.cuda.driver.Driver`.  ordinal: as CuPy counts; title: the device's name."""

    has_gemm = True
    context_bytes = CONTEXT_BYTES

    def __init__(self, ordinal: int, title: str) -> None:
        self.title = title
        self._ordinal = ordinal
        self._cupy: Any = None
        self._runtime: Any = None
        self._stream: Any = None
        self._copies: Any = None
        self._blas: Any = None
        self._handle = 0
        self._kernels: dict[tuple[str, str], Any] = {}
        self._peers: set[int] = set()  # ordinals of devices that this one may read
        self._free_bytes = 0  # of the device before the context, as near as can be known
        self._one, self._zero = np.ones(1, np.float32), np.zeros(1, np.float32)

    @property
    def stream(self) -> Any:  # noqa: ANN401  # CuPy has no types
        """What all work goes through, for who times it."""
        return self._stream

    def held_bytes(self) -> int:
        """What is gone of the device since `open`, its context included; others may have had part of it."""
        if self._stream is None:
            return 0
        self._use()
        free_bytes, _ = self._runtime.memGetInfo()
        return max(0, self._free_bytes - free_bytes)

    def open(self) -> None:
        """The context, a stream, and the matrix library's handle, which takes memory of its own."""
        self._cupy = importlib.import_module("cupy")
        self._runtime = self._cupy.cuda.runtime
        self._blas = importlib.import_module("cupy_backends.cuda.libs.cublas")
        with self._memory_errors():
            self._use()
            free_bytes, total_bytes = self._runtime.memGetInfo()  # asking makes the context
            self._free_bytes = min(total_bytes, free_bytes + CONTEXT_BYTES)
            self._stream = self._cupy.cuda.Stream(non_blocking=True)
            self._copies = self._cupy.cuda.Stream(non_blocking=True)
            # one of our own: CuPy's is a thread's, and ends with it
            self._handle = self._blas.create()
            self._blas.setStream(self._handle, self._stream.ptr)

    def close(self) -> None:
        """The context stays until the process ends, as CUDA has it."""
        if self._handle:
            self._use()
            self._blas.destroy(self._handle)
            self._handle = 0
        self._kernels = {}
        self._stream = self._copies = None

    def allocate(self, n_bytes: int) -> Pointer:
        """From CUDA itself."""
        self._use()
        with self._memory_errors():
            pointer: int = self._runtime.malloc(n_bytes)
        self._runtime.memsetAsync(pointer, 0, n_bytes, self._stream.ptr)
        self._stream.synchronize()  # copies go through another stream, which would not wait for it
        return pointer

    def free(self, pointer: Pointer) -> None:
        """To CUDA itself."""
        self._use()
        self._runtime.free(pointer)

    def upload(self, pointer: Pointer, data: Bytes) -> None:
        """Through the runtime's own pinned buffer: it returns when data has been read."""
        flat = np.ascontiguousarray(data)
        self._use()
        self._runtime.memcpyAsync(pointer, flat.ctypes.data, flat.nbytes, TO_DEVICE, self._stream.ptr)

    def start_upload(self, pointer: Pointer, data: Bytes) -> "CupyEvent":
        """On the stream of copies.  From pageable memory it returns when data has been read."""
        self._use()
        size = data.nbytes
        self._runtime.memcpyAsync(pointer, data.ctypes.data, size, TO_DEVICE, self._copies.ptr)
        return CupyEvent(self._cupy, self._copies, self._use)

    def pin(self, data: Bytes) -> None:
        """Registered for every device."""
        self._use()
        try:
            self._runtime.hostRegister(data.ctypes.data, data.nbytes, PORTABLE)
        except self._runtime.CUDARuntimeError as exc:
            raise PinError(str(exc)) from exc

    def unpin(self, data: Bytes) -> None:
        """Undo `pin`."""
        self._use()
        self._runtime.hostUnregister(data.ctypes.data)

    def download(self, pointer: Pointer, into: Bytes) -> None:
        """Waits for all that was given before."""
        if not into.flags.c_contiguous:
            raise ValueError("what is downloaded into is not contiguous")
        self._use()
        self._runtime.memcpyAsync(into.ctypes.data, pointer, into.nbytes, TO_HOST, self._stream.ptr)
        self._stream.synchronize()

    def reaches(self, other: Driver) -> bool:
        """As CUDA says of the two; it needs no context for that."""
        if not isinstance(other, CupyDriver) or other is self:
            return False
        runtime = importlib.import_module("cupy").cuda.runtime
        return bool(runtime.deviceCanAccessPeer(self._ordinal, other._ordinal))

    def receive(self, pointer: Pointer, other: Driver, source: Pointer, n_bytes: int) -> None:
        """Each stream waits for the other: the source's memory may be written again after the copy."""
        assert isinstance(other, CupyDriver), "others are out of reach"
        other._use()
        given = other._stream.record(self._cupy.cuda.Event(disable_timing=True))
        self._use()
        self._enable(other)
        self._stream.wait_event(given)
        ends = (pointer, self._ordinal, source, other._ordinal)
        self._runtime.memcpyPeerAsync(*ends, n_bytes, self._stream.ptr)
        done = self._stream.record(self._cupy.cuda.Event(disable_timing=True))
        other._use()
        other._stream.wait_event(done)

    def mark(self) -> "CupyEvent":
        """An event on the stream of work."""
        self._use()
        return CupyEvent(self._cupy, self._stream, self._use)

    def prepare(self, works: Sequence[Work]) -> None:
        """Compile, or take from CuPy's cache on disk."""
        self._use()
        with self._memory_errors():
            for work in works:
                if isinstance(work, Launch):
                    self._kernel(work)

    def run(self, works: Sequence[Work]) -> None:
        """One launch after the other."""
        self._use()
        with self._stream:
            for work in works:
                if isinstance(work, Gemm):
                    self._multiply(work)
                elif 0 not in work.grid:
                    block = (work.n_threads, 1, 1)
                    self._kernel(work)(work.grid, block, work.args, shared_mem=work.shared_bytes)

    def record(self, works: Sequence[Work]) -> "CupyGraph":
        """A CUDA graph."""
        self._use()
        with self._memory_errors(), self._stream:
            self._stream.begin_capture()
            try:
                self.run(works)
            except BaseException:
                with suppress(self._runtime.CUDARuntimeError):  # the first one says what was wrong
                    self._stream.end_capture()
                raise
            graph = self._stream.end_capture()
        return CupyGraph(graph, self._stream, self._use)

    def synchronize(self) -> None:
        """Wait for everything."""
        self._use()
        self._stream.synchronize()

    def _use(self) -> None:
        """For this thread's next calls.  Setting it back would make a context on the first device."""
        self._runtime.setDevice(self._ordinal)

    @contextmanager
    def _memory_errors(self) -> Generator[None]:
        """What CUDA or the matrix library says of memory as MemoryError."""
        try:
            yield
        except Exception as exc:
            if (type(exc).__name__, getattr(exc, "status", None)) not in OUT_OF_MEMORY:
                raise
            raise MemoryError(str(exc)) from exc

    def _enable(self, other: "CupyDriver") -> None:
        """Without it copies would pass the host all the same."""
        if other._ordinal in self._peers:
            return
        try:
            self._runtime.deviceEnablePeerAccess(other._ordinal)
        except self._runtime.CUDARuntimeError as exc:
            if exc.status != PEERS_ALREADY:  # contexts outlive drivers
                raise
        self._peers.add(other._ordinal)

    def _kernel(self, launch: Launch) -> Any:  # noqa: ANN401  # as above
        key = (launch.kernel, launch.type_name)
        if key not in self._kernels:
            source = source_of(module_of(launch.kernel), launch.type_name)
            module = self._cupy.RawModule(code=source, options=OPTIONS, backend="nvrtc")
            self._kernels[key] = module.get_function(launch.kernel)
        return self._kernels[key]

    def _multiply(self, gemm: Gemm) -> None:
        """Column by column, as the library sees rows: c^T [n_out, n] = b [n_out, n_in] times a^T."""
        one, zero = self._one.ctypes.data, self._zero.ctypes.data
        self._blas.gemmEx(
            self._handle, OP_T, OP_N, gemm.n_out, gemm.n, gemm.n_in, one,
            gemm.b, R_16F, gemm.n_in, gemm.a, R_16F, gemm.n_in, zero,
            gemm.c, R_32F, gemm.n_out, COMPUTE_32F, ALGO_DEFAULT,
        )  # fmt: skip


class CupyEvent:
    """The end of what a stream was given.  Satisfies `kernels.memory.Pending`."""

    def __init__(self, cupy: Any, stream: Any, use: Callable[[], None]) -> None:  # noqa: ANN401  # as above
        """use: sets the device, of whichever thread asks."""
        self._runtime = cupy.cuda.runtime
        self._use = use
        self._event = cupy.cuda.Event(block=True, disable_timing=True)
        self._event.record(stream)

    @property
    def is_done(self) -> bool:
        """See `Pending`; raises what CUDA has to say of a device that is gone."""
        self._use()
        status = self._runtime.eventQuery(self._event.ptr)
        if status == NOT_READY:
            return False
        self._runtime.check_status(status)
        return True

    def wait(self) -> None:
        """See `Pending`; the thread sleeps."""
        self._use()
        self._event.synchronize()


class CupyGraph:
    """Satisfies `kernels.cuda.driver.Graph`."""

    def __init__(self, graph: Any, stream: Any, use: Callable[[], None]) -> None:  # noqa: ANN401  # as above
        self._graph = graph
        self._stream = stream
        self._use = use

    def launch(self) -> None:
        """On the driver's stream."""
        self._use()
        self._graph.launch(self._stream)
