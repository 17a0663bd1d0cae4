"""The CUDA backend: memory and kernels of one device, behind a driver that is a GPU or the emulator.

Everything that a kernel relies on is checked when a segment is bound; index inputs are made by the engine
from the cache's tables, and are not looked at again on the device.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from kernels.backend import Binding
from kernels.cuda import works
from kernels.cuda.driver import Driver, Graph, Pointer, Work
from kernels.cuda.memory import CudaBuffer, CudaMemory
from kernels.dtype import DType
from kernels.memory import Allocations, OutOfMemory
from kernels.ops.attention import Attention, StoreKV
from kernels.ops.conv import ShortConv
from kernels.ops.gate import Gate
from kernels.ops.matmul import Matmul
from kernels.ops.norm import RmsNorm
from kernels.ops.op import Op
from kernels.ops.rope import Rope, Rotation
from kernels.ops.rows import Rows
from kernels.ops.softcap import SoftCap
from kernels.tensor import Bounds, Role, Tensor

CONSTANT_BYTES = 8 << 10  # sizes of a run, and frequencies: at the beginning of the workspace
GRANULARITY_BYTES = 512
GRAPH_ROWS = 16  # plans of at most so many rows are recorded, others launched kernel by kernel
N_KEPT = 8  # sizes whose launches are kept
WEIGHT_DTYPES = frozenset(d for d in DType if d.is_quantized) | {DType.F32, DType.F16, DType.BF16}
STATE_DTYPES = frozenset({DType.F32, DType.F16, DType.Q8_0})
ELEMENT_BYTES = 4  # the strictest alignment of a weight's own elements


class CudaBackend:
    """Satisfies `kernels.backend.Backend`.  name: the device's id."""

    def __init__(self, name: str, driver: Driver) -> None:
        self.allocations = Allocations()
        self._name = name
        self._driver = driver

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
        return works.ALIGNMENT

    @property
    def context_bytes(self) -> int:
        """What a context with these kernels takes."""
        return self._driver.context_bytes

    def held_bytes(self) -> int:
        """What the device says this process holds."""
        return self._driver.held_bytes()

    def open(self) -> None:
        """Make the context."""
        self._driver.open()

    def close(self) -> None:
        """Give it back."""
        self._driver.close()

    def refuses(self, op: Op) -> str | None:
        """Why there is no kernel for the op, or None."""
        match op:
            case Rows():
                return None if op.table.dtype in WEIGHT_DTYPES else f"no kernel reads rows of {op.table}"
            case Matmul():
                return None if op.weight.dtype in WEIGHT_DTYPES else f"no kernel multiplies with {op.weight}"
            case StoreKV() | Attention():
                same = op.k_state.dtype is op.v_state.dtype and op.k_state.shape == op.v_state.shape
                if not same or op.k_state.dtype not in STATE_DTYPES:
                    return f"no kernel for a cache of {op.k_state} and {op.v_state}"
                is_wide = op.head_dim > works.MAX_HEAD_DIM
                return f"head_dim {op.head_dim} is over {works.MAX_HEAD_DIM}" if is_wide else None
            case ShortConv():
                n_taps = op.weight.shape[-1]
                assert isinstance(n_taps, int)
                return None if n_taps <= works.MAX_TAPS else f"{n_taps} taps are over {works.MAX_TAPS}"
            case RmsNorm() | Rope() | Gate() | SoftCap():
                return None
            case _:
                return f"no kernel for {type(op).__name__}"

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

    def bind(self, binding: Binding) -> "CudaSegment":
        """Check and resolve everything; ValueError says which tensor of which op does not fit, and why."""
        for op in binding.ops:
            refusal = self.refuses(op)
            if refusal is not None:
                raise ValueError(f"{type(op).__name__} in layer {op.layer}: {refusal}")
            needed = self.workspace_bytes(op, binding.bounds)
            if binding.workspace.n_bytes < needed:
                raise ValueError(f"{op}: workspace has {binding.workspace.n_bytes} bytes, needs {needed}")
        return CudaSegment(self._driver, binding)


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
        self._head = np.zeros(works.ALIGNMENT + len(frequencies), np.uint8)
        self._head[works.ALIGNMENT :] = np.frombuffer(frequencies, np.uint8)
        self._place = works.Place(
            address=self._addresses.__getitem__,
            dims=workspace.pointer,
            symbols=self._symbols,
            inv_freq=inv_freq,
            scratch=workspace.pointer + CONSTANT_BYTES,
            bounds=binding.bounds,
            has_gemm=driver.has_gemm,
        )
        most = self._works(binding.bounds)
        driver.prepare(most)
        n_rows = max((binding.bounds[s] for s in self._symbols if s == "n_tokens"), default=0)
        self._graph: Graph | None = driver.record(most) if n_rows <= GRAPH_ROWS else None
        self._kept: dict[tuple[int, ...], Sequence[Work]] = {}

    def run(self, values: Bounds) -> None:
        """Start everything with these values of the symbols; what reads results waits for them.

        KeyError names a symbol without value; ValueError a value over its bound.
        """
        sizes = tuple(self._checked(name, values) for name in self._symbols)
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

    def _checked(self, name: str, values: Mapping[str, int]) -> int:
        value, bound = values[name], self._binding.bounds[name]
        if not 0 <= value <= bound:
            raise ValueError(f"{name} is {value}, this plan was made for 0..{bound}")
        return value

    def _frequencies(self, ops: Sequence[Op], start: Pointer) -> tuple[bytes, Mapping[Rotation, Pointer]]:
        """Every rotation's frequencies one after the other, and where each will lie."""
        raw = b""
        found: dict[Rotation, Pointer] = {}
        for op in ops:
            rotation = op.rotation if isinstance(op, Rope | StoreKV) else None
            if rotation is not None and rotation not in found:
                found[rotation] = start + works.ALIGNMENT + len(raw)
                raw += np.array(rotation.inv_freq, np.float32).tobytes()
        if works.ALIGNMENT + len(raw) > CONSTANT_BYTES:
            raise ValueError(
                f"{len(found)} rotations take {len(raw)} bytes, there is room for {CONSTANT_BYTES}"
            )
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
        alignment = 16 if tensor.role is Role.WEIGHT else ELEMENT_BYTES
        if needed and memory.pointer % alignment:
            raise ValueError(f"{tensor} at {memory.pointer:#x} is not aligned to {alignment} bytes")
        return memory.pointer
