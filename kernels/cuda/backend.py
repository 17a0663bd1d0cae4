"""The CUDA backend: memory and kernels of one device, behind a driver that is a GPU or the emulator.

Everything that a kernel relies on is checked when a segment is bound; index inputs are made by the engine
from the cache's tables, and are not looked at again on the device.
"""

from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager

import numpy as np

from kernels.backend import CONTEXT, Backend, Binding
from kernels.checks import check_ops, refusal_of, values_within
from kernels.cuda import attending, fuse, launches, works
from kernels.cuda.driver import Driver, Gemm, Graph, Pointer, Work
from kernels.cuda.memory import CudaBuffer, CudaMemory
from kernels.cuda.sampler import CudaSampler
from kernels.memory import Allocations, Bytes, Memory, OutOfMemory, Pending
from kernels.ops.attention import Attention, StoreKV
from kernels.ops.op import Op
from kernels.ops.rope import Rope, Rotation
from kernels.tensor import N_TOKENS, Bounds, Tensor

CONSTANT_BYTES = 12 << 10  # at the beginning of the workspace: sizes of a run, counters, frequencies
FREQUENCIES = launches.ALIGNMENT + 4 * fuse.MAX_COUNTERS  # where they begin
GRANULARITY_BYTES = 512
GRAPH_ROWS = fuse.FUSED_ROWS  # plans of at most so many rows are recorded, others launched kernel by kernel
N_KEPT = 8  # sizes whose launches are kept
WIDEST_BYTES = 16  # of an access: where every tensor has to be aligned


class CudaBackend:
    """Satisfies `kernels.backend.Backend`.

    name: the device's id.  own_bytes: what a management library says this process holds, or None.
    """

    def __init__(self, name: str, driver: Driver, own_bytes: Callable[[], int | None] = lambda: None) -> None:
        self.allocations = Allocations()
        self._name = name
        self._driver = driver
        self._own_bytes = own_bytes

    @property
    def name(self) -> str:
        """The device id."""
        return self._name

    @property
    def title(self) -> str:
        """As its maker names it."""
        return self._driver.title

    @property
    def is_host(self) -> bool:
        """Its memory is its own."""
        return False

    @property
    def alignment(self) -> int:
        """Byte alignment of tensors."""
        return launches.ALIGNMENT

    @property
    def context_bytes(self) -> int:
        """What a context with these kernels takes."""
        return self._driver.context_bytes

    def held_bytes(self) -> int:
        """What the management library says of this process, else what the driver makes of free memory."""
        own_bytes = self._own_bytes()
        # less than the buffers is another process's: in a container pids may be the host's
        if own_bytes is None or own_bytes < self.allocations.given_bytes:
            return self._driver.held_bytes()
        return own_bytes

    def open(self) -> None:
        """Make the context; OutOfMemory when the device has no room for it."""
        with self._growing_context():
            self._driver.open()

    def close(self) -> None:
        """Give it back."""
        self._driver.close()

    def refuses(self, op: Op) -> str | None:
        """Why there is no kernel for the op, or None."""
        if isinstance(op, StoreKV | Attention) and op.head_dim > attending.MAX_HEAD_DIM:
            return f"head_dim {op.head_dim} is over {attending.MAX_HEAD_DIM}"
        return refusal_of(op, max_taps=works.MAX_TAPS)

    def workspace_bytes(self, op: Op, bounds: Bounds) -> int:
        """Constants, and the op's scratch."""
        return CONSTANT_BYTES + works.scratch_bytes(op, bounds, has_gemm=self._driver.has_gemm)

    def round_up(self, n_bytes: int) -> int:
        """Whole granules."""
        return -(-n_bytes // GRANULARITY_BYTES) * GRANULARITY_BYTES

    def allocate(self, n_bytes: int, label: str) -> CudaBuffer:
        """Zeros on the device; OutOfMemory when there are none."""
        given_bytes = self.round_up(n_bytes)
        try:
            pointer = self._driver.allocate(given_bytes) if given_bytes else 0
        except MemoryError as exc:
            raise OutOfMemory(self._name, n_bytes, label, str(exc)) from exc
        return CudaBuffer(self._driver, pointer, n_bytes, given_bytes, label, self.allocations)

    def pin(self, data: Bytes) -> None:
        """For all devices of CUDA; PinError when the driver refuses."""
        self._driver.pin(data)

    def unpin(self, data: Bytes) -> None:
        """Undo `pin`."""
        self._driver.unpin(data)

    def reaches(self, other: Backend) -> bool:
        """As the driver says."""
        return isinstance(other, CudaBackend) and self._driver.reaches(other._driver)

    def mark(self) -> Pending:
        """An event."""
        return self._driver.mark()

    def bind(self, binding: Binding) -> "CudaSegment":
        """Check and resolve everything; ValueError says which tensor of which op does not fit, and why.

        OutOfMemory when the device has no room for the kernels, which are part of the context.
        """
        check_ops(self, binding)
        with self._growing_context():
            return CudaSegment(self._driver, binding)

    def sampler(self, memory: Memory, n_rows: int, n_vocab: int, n_history: int) -> CudaSampler:
        """See `CudaSampler`; ValueError for memory of another device."""
        if not isinstance(memory, CudaMemory) or not memory.is_of(self._driver):
            raise ValueError(f"{self._driver.title} cannot sample in {memory}")
        return CudaSampler(self._driver, memory, n_rows, n_vocab, n_history)

    @contextmanager
    def _growing_context(self) -> Generator[None]:
        """What the driver lacks memory for, the context lacks."""
        try:
            yield
        except MemoryError as exc:
            raise OutOfMemory(self._name, self.context_bytes, CONTEXT, str(exc)) from exc


class CudaSegment:
    """A run of ops: recorded once where rows are few, else launched kernel by kernel."""

    def __init__(self, driver: Driver, binding: Binding) -> None:
        self._driver = driver
        self._binding = binding
        self._symbols = sorted(binding.bounds)
        self._addresses = {tensor: self._address(tensor) for tensor in binding.memory}
        workspace = self._own(binding.workspace, "the workspace")
        self._constants = CudaMemory(driver, workspace.pointer, CONSTANT_BYTES)
        frequencies, inv_freq = self._frequencies(binding.ops, workspace.pointer)
        self._head = np.zeros(FREQUENCIES + len(frequencies), np.uint8)
        self._head[FREQUENCIES:] = np.frombuffer(frequencies, np.uint8)
        self._place = launches.Place(
            address=self._addresses.__getitem__,
            dims=workspace.pointer,
            symbols=self._symbols,
            inv_freq=inv_freq,
            counters=workspace.pointer + launches.ALIGNMENT,
            scratch=workspace.pointer + CONSTANT_BYTES,
            bounds=binding.bounds,
            has_gemm=driver.has_gemm,
        )
        most = self._works(binding.bounds)
        driver.prepare(most)
        is_small = binding.bounds.get(N_TOKENS.name, 0) <= GRAPH_ROWS
        # the library has a workspace of its own, which nothing may record
        can_record = is_small and not any(isinstance(work, Gemm) for work in most)
        self._graph: Graph | None = driver.record(most) if can_record else None
        self._kept: dict[tuple[int, ...], Sequence[Work]] = {}

    def run(self, values: Bounds) -> None:
        """Start everything with these values of the symbols; what reads results waits for them.

        KeyError names a symbol without value; ValueError a value over its bound.
        """
        sizes = tuple(values_within(self._symbols, values, self._binding.bounds))
        self._head[: 4 * len(sizes)].view(np.int32)[:] = sizes
        self._constants.upload(self._head)
        if self._graph is not None:
            self._graph.launch()
            return
        found = self._kept.get(sizes)
        if found is None:
            if len(self._kept) >= N_KEPT:
                self._kept.clear()
            found = self._kept[sizes] = self._works(values)
            self._driver.prepare(found)
        self._driver.run(found)

    def _works(self, values: Bounds) -> Sequence[Work]:
        return works.works_of(self._binding.ops, self._place, values)

    def _frequencies(self, ops: Sequence[Op], start: Pointer) -> tuple[bytes, Mapping[Rotation, Pointer]]:
        """Every rotation's frequencies one after the other, and where each will lie."""
        raw = b""
        found: dict[Rotation, Pointer] = {}
        for op in ops:
            rotation = op.rotation if isinstance(op, Rope | StoreKV) else None
            if rotation is not None and rotation not in found:
                found[rotation] = start + FREQUENCIES + len(raw)
                raw += np.array(rotation.inv_freq, np.float32).tobytes()
        room = CONSTANT_BYTES - FREQUENCIES
        if len(raw) > room:
            raise ValueError(f"{len(found)} rotations take {len(raw)} bytes, there is room for {room}")
        return raw, found

    def _own(self, memory: object, what: str) -> CudaMemory:
        if not isinstance(memory, CudaMemory) or not memory.is_of(self._driver):
            raise ValueError(f"kernels of {self._driver.title} cannot reach {memory} ({what})")
        return memory

    def _address(self, tensor: Tensor) -> Pointer:
        """The address of memory that is large enough at the bounds and lies where its elements may lie."""
        memory = self._own(self._binding.memory[tensor], str(tensor))
        needed = tensor.n_bytes(self._binding.bounds)
        if memory.n_bytes < needed:
            raise ValueError(f"the memory of {tensor} has {memory.n_bytes} bytes, needs {needed}")
        if needed and memory.pointer % WIDEST_BYTES:
            raise ValueError(f"{tensor} at {memory.pointer:#x} is not aligned to {WIDEST_BYTES} bytes")
        return memory.pointer
