"""From ops and memory to a native segment: addresses, dimensions, and the checks of index inputs."""

from dataclasses import dataclass

from kernels.backend import Binding
from kernels.cpu import _cpu
from kernels.dtype import DType
from kernels.memory import host_array
from kernels.ops.attention import Attention, StoreKV
from kernels.ops.conv import ShortConv
from kernels.ops.experts import GATINGS, ExpertMatmul, Route, SlotSum
from kernels.ops.gate import ACTIVATIONS, Gate
from kernels.ops.matmul import Matmul
from kernels.ops.norm import RmsNorm
from kernels.ops.op import Op
from kernels.ops.rope import Rope, Rotation
from kernels.ops.rows import Rows
from kernels.ops.softcap import SoftCap
from kernels.tensor import Bounds, Dim, Role, Sym, Tensor, value_of

ABSENT = 0
MAX_POSITION = 1 << 30  # of a row with a bias: a kernel subtracts it from a cell without looking
WORD_BYTES = 4
VECTOR_BYTES = 64

NativeCache = tuple[int, int, int, int]  # key/value heads, head_dim, page_size, ggml number of the dtype


@dataclass(frozen=True, slots=True)
class ExpertScratch:
    """What a product with experts has in the workspace.

    First each thread's panels and sums, then every slot's activations as int8, then slots sorted by expert.
    """

    thread_floats: int
    max_slots: int
    acts_at: int
    order_at: int
    n_bytes: int

    @classmethod
    def of(cls, op: ExpertMatmul, bounds: Bounds, n_threads: int) -> "ExpertScratch":
        """Of this op, by bounds."""
        n = value_of(op.x.shape[0], bounds)
        thread_floats = _cpu.matmul_scratch(n)  # an expert's columns are of different rows
        n_groups = -(-op.n_in // _cpu.ACT_GROUP_N) if op.weight.dtype.is_quantized else 0
        acts_at = n_threads * thread_floats * WORD_BYTES
        order_at = acts_at + n * op.n_used * n_groups * _cpu.ACT_GROUP_BYTES
        n_words = _cpu.order_words(value_of(op.weight.shape[0], {}), n * op.n_used)
        return cls(thread_floats, n * op.n_used, acts_at, order_at, order_at + n_words * WORD_BYTES)


class SegmentBuilder:
    """Adds ops, in order, to a native segment."""

    def __init__(self, segment: _cpu.Segment, binding: Binding) -> None:
        self.segment = segment
        self.symbols = sorted(binding.bounds)
        self._binding = binding
        self._workspace = host_array(binding.workspace).ctypes.data if binding.workspace.n_bytes else ABSENT
        self._computed = {tensor for op in binding.ops for tensor in op.writes}
        self._addresses: dict[Tensor, int] = {}
        self._checked: set[tuple[object, ...]] = set()
        # whose int8 blocks stand in the workspace, by which ids sorted: the next product may want them
        self._prepared: tuple[object, ...] = ()
        if self._workspace % VECTOR_BYTES:
            raise ValueError(f"the workspace at {self._workspace:#x} is not aligned to {VECTOR_BYTES} bytes")

    def add(self, op: Op) -> None:
        """Append an op that the backend does not refuse."""
        match op:
            case Rows():
                self._rows(op)
            case RmsNorm():
                self._rms_norm(op)
            case Matmul():
                self._matmul(op)
            case Rope():
                self._rope(op)
            case StoreKV():
                self._store_kv(op)
            case Attention():
                self._attention(op)
            case ShortConv():
                self._short_conv(op)
            case Gate():
                self._gate(op)
            case SoftCap():
                self._softcap(op)
            case Route():
                self._route(op)
            case ExpertMatmul():
                self._experts(op)
            case SlotSum():
                self._slot_sum(op)
            case _:
                raise TypeError(f"no kernel for {type(op).__name__}")
        if not isinstance(op, Matmul | ExpertMatmul):
            self._prepared = ()

    def _rows(self, op: Rows) -> None:
        self._check_index(op.ids, op.table.shape[0])
        self.segment.add_rows(
            table=self._read(op.table),
            ids=self._index(op.ids),
            out=self._write(op.out),
            width=op.table.width,
            scale=op.scale,
            dtype=op.table.dtype.ggml_id,
            n=self._dim(op.ids.shape[0]),
        )

    def _rms_norm(self, op: RmsNorm) -> None:
        self.segment.add_rms_norm(
            x=self._f32(op.x),
            weight=self._optional(op.weight),
            residual=self._optional(op.residual),
            out=self._write(op.out),
            width=op.x.width,
            chunk=op.chunk,
            eps=op.eps,
            n=self._dim(op.x.shape[0]),
        )

    def _matmul(self, op: Matmul) -> None:
        is_quantized = op.weight.dtype.is_quantized
        thread_floats = _cpu.matmul_scratch(value_of(op.x.shape[0], self._binding.bounds))
        out = self._write(op.out)
        if out == self._f32(op.x):
            raise ValueError(f"{op.out} shares memory with its factor {op.x}")
        self.segment.add_matmul(
            x=self._f32(op.x),
            weight=self._read(op.weight),
            bias=self._optional(op.bias),
            residual=self._optional(op.residual),
            out=out,
            scratch=self._workspace,
            acts=self._workspace + self.segment.n_threads * thread_floats * WORD_BYTES,
            thread_floats=thread_floats,
            n_in=op.x.width,
            n_out=op.out.width,
            dtype=op.weight.dtype.ggml_id,
            row_bytes=op.weight.dtype.n_bytes(op.x.width),
            # q, k and v, or gate and up, multiply the same activations: their blocks are made once
            quantizes=is_quantized and self._prepared != (op.x,),
            n=self._dim(op.x.shape[0]),
        )
        if is_quantized:
            self._prepared = (op.x,)

    def _rope(self, op: Rope) -> None:
        self.segment.add_rope(
            x=self._f32(op.x),
            positions=self._index(op.positions),
            out=self._write(op.out),
            n_head=op.x.width // op.head_dim,
            head_dim=op.head_dim,
            rotation=_native(op.rotation),
            n=self._dim(op.x.shape[0]),
        )

    def _store_kv(self, op: StoreKV) -> None:
        self._check_index(op.cells, op.k_state.shape[0])
        self.segment.add_store_kv(
            k=self._f32(op.k),
            v=self._f32(op.v),
            positions=self._index(op.positions),
            cells=self._index(op.cells),
            k_state=self._write(op.k_state),
            v_state=self._write(op.v_state),
            cache=native_cache(op),
            rotation=_native(op.rotation),
            n=self._dim(op.k.shape[0]),
        )

    def _attention(self, op: Attention) -> None:
        self._check_tables(op)
        if op.positions is not None:
            self._check_index(op.positions, MAX_POSITION)
        self.segment.add_attention(
            q=self._f32(op.q),
            k_state=self._read(op.k_state),
            v_state=self._read(op.v_state),
            tables=self._index(op.tables),
            rows=self._index(op.rows),
            n_visible=self._index(op.n_visible),
            out=self._write(op.out),
            workspace=self._workspace,
            n_head=op.q.width // op.head_dim,
            cache=native_cache(op),
            window=op.window,
            chunk=op.chunk,
            scale=op.scale,
            softcap=op.softcap,
            temperature=op.temperature,
            temperature_length=op.temperature_length,
            bias=self._optional(op.bias),
            positions=ABSENT if op.positions is None else self._index(op.positions),
            reach=op.reach,
            max_rows=value_of(op.q.shape[0], self._binding.bounds),
            n=self._dim(op.q.shape[0]),
            n_pages=self._dim(op.tables.shape[1]),
        )

    def _short_conv(self, op: ShortConv) -> None:
        self._check_index(op.rows, op.sources.shape[0])
        for index in (op.sources, op.targets):
            self._check_index(index, op.state.shape[0])
        self.segment.add_short_conv(
            x=self._f32(op.x),
            weight=self._f32(op.weight),
            state=self._write(op.state),
            rows=self._index(op.rows),
            sources=self._index(op.sources),
            targets=self._index(op.targets),
            out=self._write(op.out),
            width=op.out.width,
            n_taps=op.weight.width,
            n=self._dim(op.x.shape[0]),
        )

    def _gate(self, op: Gate) -> None:
        self.segment.add_gate(
            gate=self._f32(op.gate),
            up=self._optional(op.up),
            out=self._write(op.out),
            activation=ACTIVATIONS.index(op.activation),
            width=op.gate.width,
            n=self._dim(op.gate.shape[0]),
        )

    def _softcap(self, op: SoftCap) -> None:
        self.segment.add_softcap(
            x=self._f32(op.x),
            out=self._write(op.out),
            cap=op.cap,
            width=op.x.width,
            n=self._dim(op.x.shape[0]),
        )

    def _route(self, op: Route) -> None:
        self.segment.add_route(
            logits=self._f32(op.logits),
            ids=self._write(op.ids),
            weights=self._write(op.weights),
            n_expert=op.n_expert,
            n_used=op.n_used,
            gating=GATINGS.index(op.gating),
            n=self._dim(op.logits.shape[0]),
        )

    def _experts(self, op: ExpertMatmul) -> None:
        layout = ExpertScratch.of(op, self._binding.bounds, self.segment.n_threads)
        out = self._write(op.out)
        if out == self._f32(op.x):
            raise ValueError(f"{op.out} shares memory with its factor {op.x}")
        prepared = (op.x, op.ids, op.n_in, op.weight.dtype.is_quantized)
        self.segment.add_experts(
            x=self._f32(op.x),
            weight=self._read(op.weight),
            ids=self._index(op.ids),
            scales=self._optional(op.scales),
            out=out,
            scratch=self._workspace,
            acts=self._workspace + layout.acts_at,
            order=self._workspace + layout.order_at,
            thread_floats=layout.thread_floats,
            n_in=op.n_in,
            n_out=op.n_out,
            n_expert=value_of(op.weight.shape[0], {}),
            n_used=op.n_used,
            max_slots=layout.max_slots,
            dtype=op.weight.dtype.ggml_id,
            row_bytes=op.weight.dtype.n_bytes(op.n_in),
            is_shared=op.is_shared,
            # gate and up multiply the same rows, sorted by the same ids
            prepares=self._prepared != prepared,
            n=self._dim(op.x.shape[0]),
        )
        self._prepared = prepared

    def _slot_sum(self, op: SlotSum) -> None:
        self.segment.add_slot_sum(
            x=self._f32(op.x),
            residual=self._optional(op.residual),
            out=self._write(op.out),
            n_slot=op.x.width // op.out.width,
            width=op.out.width,
            n=self._dim(op.x.shape[0]),
        )

    def _check_index(self, index: Tensor, limit: Dim) -> None:
        index = self._given(index)
        key = (index, limit)
        if key not in self._checked:
            self._checked.add(key)
            self.segment.check_index(
                name=index.name, data=self._index(index), limit=self._dim(limit), n=self._dim(index.shape[0])
            )

    def _check_tables(self, op: Attention) -> None:
        tables, rows, n_visible = (self._given(t) for t in (op.tables, op.rows, op.n_visible))
        n_cells = value_of(op.k_state.shape[0], self._binding.bounds)
        key = (tables, rows, n_visible, op.page_size, n_cells)
        if key in self._checked:
            return
        self._checked.add(key)
        self.segment.check_tables(
            names=[tables.name, rows.name, n_visible.name],
            tables=self._index(tables),
            rows=self._index(rows),
            n_visible=self._index(n_visible),
            page_size=op.page_size,
            n_cells=n_cells,
            max_seqs=value_of(tables.shape[0], self._binding.bounds),
            n=self._dim(rows.shape[0]),
            n_seqs=self._dim(tables.shape[0]),
            n_pages=self._dim(tables.shape[1]),
        )

    def _given(self, index: Tensor) -> Tensor:
        """An index array, which has to be there before the first op runs, so that it can be checked."""
        if index in self._computed:
            raise ValueError(
                f"{index} is computed here: an index array has to be given, so that it can be checked"
            )
        return index

    def _dim(self, dim: Dim) -> int:
        return -1 - self.symbols.index(dim.name) if isinstance(dim, Sym) else dim

    def _f32(self, tensor: Tensor) -> int:
        if tensor.dtype is not DType.F32:
            raise ValueError(f"{tensor} is not F32")
        return self._read(tensor)

    def _optional(self, tensor: Tensor | None) -> int:
        return ABSENT if tensor is None else self._f32(tensor)

    def _index(self, tensor: Tensor) -> int:
        if tensor.dtype is not DType.I32:
            raise ValueError(f"{tensor} is not I32")
        return self._read(tensor)

    def _write(self, tensor: Tensor) -> int:
        address = self._read(tensor)
        if not host_array(self._binding.memory[tensor]).flags.writeable:
            raise ValueError(f"the memory of {tensor} is read-only, and an op writes it")
        return address

    def _read(self, tensor: Tensor) -> int:
        """The address of memory that is large enough at the bounds and lies where its elements may lie."""
        address = self._addresses.get(tensor)
        if address is None:  # most tensors are read more than once
            address = self._addresses[tensor] = self._address(tensor)
        return address

    def _address(self, tensor: Tensor) -> int:
        memory = host_array(self._binding.memory[tensor])
        needed = tensor.n_bytes(self._binding.bounds)
        if memory.nbytes < needed or not memory.flags.c_contiguous:
            raise ValueError(f"the memory of {tensor} has {memory.nbytes} bytes, needs {needed}, contiguous")
        address = memory.ctypes.data
        if tensor.role is not Role.WEIGHT and address % WORD_BYTES:
            raise ValueError(f"{tensor} at {address:#x} is not aligned to {WORD_BYTES} bytes")
        return address


def native_cache(op: StoreKV | Attention) -> NativeCache:
    """The cache of an op as the native side takes it."""
    n_kv = op.k_state.width // op.head_dim
    return n_kv, op.head_dim, op.page_size, op.k_state.dtype.ggml_id


def _native(rotation: Rotation | None) -> tuple[list[float], float, bool]:
    if rotation is None:
        return [], 1.0, False
    return list(rotation.inv_freq), rotation.magnitude, rotation.style == "neox"
