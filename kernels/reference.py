"""The reference backend: interprets programs with the numpy references of `ops/`.

Slow, exact, and everywhere: it judges the other backends, and the runtime works on it.
"""

import numpy as np

from kernels.backend import Binding
from kernels.dtype import DType
from kernels.executable import view
from kernels.host import HostBackend, HostBuffer
from kernels.memory import OutOfMemory, host_array
from kernels.ops.attention import Attention, StoreKV, attention_ref, store_kv_ref
from kernels.ops.conv import ShortConv, short_conv_ref
from kernels.ops.experts import ExpertMatmul, Route, SlotSum, expert_matmul_ref, route_ref, slot_sum_ref
from kernels.ops.gate import Gate, gate_ref
from kernels.ops.matmul import Matmul, matmul_ref
from kernels.ops.norm import RmsNorm, rms_norm_ref
from kernels.ops.op import F32, Array, Op
from kernels.ops.quant import dequantize
from kernels.ops.rope import Rope, rope_ref
from kernels.ops.rows import Rows, rows_ref
from kernels.ops.softcap import SoftCap, softcap_ref
from kernels.tensor import Bounds, Role, Tensor, shape_of

ALIGNMENT = 64
KNOWN_OPS = (
    Rows,
    RmsNorm,
    Matmul,
    Rope,
    StoreKV,
    Attention,
    ShortConv,
    Gate,
    SoftCap,
    Route,
    ExpertMatmul,
    SlotSum,
)


class ReferenceBackend(HostBackend):
    """Satisfies `kernels.backend.Backend` with numpy."""

    def __init__(self, name: str = "reference", capacity_bytes: int | None = None) -> None:
        super().__init__(name)
        self._capacity_bytes = capacity_bytes

    @property
    def alignment(self) -> int:
        """Byte alignment of tensors."""
        return ALIGNMENT

    def refuses(self, op: Op) -> str | None:
        """Everything with a reference runs."""
        return None if isinstance(op, KNOWN_OPS) else f"no reference for {type(op).__name__}"

    def workspace_bytes(self, op: Op, bounds: Bounds) -> int:
        """Numpy brings its own scratch; it is not the device's memory."""
        del op, bounds
        return 0

    def round_up(self, n_bytes: int) -> int:
        """Nothing is rounded."""
        return n_bytes

    def allocate(self, n_bytes: int, label: str) -> HostBuffer:
        """Zeroed host memory; OutOfMemory over the capacity it was made with."""
        used = self.allocations.given_bytes
        if self._capacity_bytes is not None and used + n_bytes > self._capacity_bytes:
            raise OutOfMemory(self.name, n_bytes, label)
        try:
            array = np.zeros(n_bytes, np.uint8)
        except MemoryError as exc:
            raise OutOfMemory(self.name, n_bytes, label) from exc
        return HostBuffer(array, n_bytes, label, self.allocations)

    def bind(self, binding: Binding) -> "ReferenceSegment":
        """Nothing to compile."""
        return ReferenceSegment(binding)


class ReferenceSegment:
    """Interprets one op after the other."""

    def __init__(self, binding: Binding) -> None:
        self._binding = binding

    def run(self, values: Bounds) -> None:
        """Execute every op with these values of the symbols."""
        for op in self._binding.ops:
            self._run(op, values)

    def _run(self, op: Op, values: Bounds) -> None:
        match op:
            case Rows():
                table, ids = self._f32(op.table, values), self._i32(op.ids, values)
                self._write(op.out, values, rows_ref(table, ids, op.scale))
            case RmsNorm():
                x, weight = self._f32(op.x, values), self._optional(op.weight, values)
                residual = self._optional(op.residual, values)
                self._write(op.out, values, rms_norm_ref(x, weight, op.chunk, op.eps, residual))
            case Matmul():
                bias, residual = (self._optional(t, values) for t in (op.bias, op.residual))
                x, weight = self._f32(op.x, values), self._f32(op.weight, values)
                self._write(op.out, values, matmul_ref(x, weight, bias, residual))
            case Rope():
                x, positions = self._f32(op.x, values), self._i32(op.positions, values)
                self._write(op.out, values, rope_ref(x, positions, op.head_dim, op.rotation))
            case StoreKV():
                self._store(op, values)
            case Attention():
                self._attend(op, values)
            case ShortConv():
                self._convolve(op, values)
            case Gate():
                gate, up = self._f32(op.gate, values), self._optional(op.up, values)
                self._write(op.out, values, gate_ref(gate, up, op.activation))
            case SoftCap():
                self._write(op.out, values, softcap_ref(self._f32(op.x, values), op.cap))
            case Route():
                self._route(op, values)
            case ExpertMatmul():
                self._multiply_experts(op, values)
            case SlotSum():
                x, residual = self._f32(op.x, values), self._optional(op.residual, values)
                self._write(op.out, values, slot_sum_ref(x, op.out.width, residual))
            case _:
                raise TypeError(f"no reference for {type(op).__name__}")

    def _store(self, op: StoreKV, values: Bounds) -> None:
        k, v = self._f32(op.k, values), self._f32(op.v, values)
        positions, cells = self._i32(op.positions, values), self._i32(op.cells, values)
        states = self._raw(op.k_state, values), self._raw(op.v_state, values)
        store_kv_ref(k, v, positions, cells, *states, op)

    def _attend(self, op: Attention, values: Bounds) -> None:
        k_state, v_state = self._raw(op.k_state, values), self._raw(op.v_state, values)
        tables, rows, n_visible = (self._i32(t, values) for t in (op.tables, op.rows, op.n_visible))
        q = self._f32(op.q, values)
        bias = None
        if op.bias is not None and op.positions is not None:
            bias = self._f32(op.bias, values), self._i32(op.positions, values)
        self._write(op.out, values, attention_ref(q, k_state, v_state, tables, rows, n_visible, op, bias))

    def _convolve(self, op: ShortConv, values: Bounds) -> None:
        x, weight, state = (self._f32(t, values) for t in (op.x, op.weight, op.state))
        rows, sources, targets = (self._i32(t, values) for t in (op.rows, op.sources, op.targets))
        self._write(op.out, values, short_conv_ref(x, weight, state, rows, sources, targets))

    def _route(self, op: Route, values: Bounds) -> None:
        ids, weights = route_ref(self._f32(op.logits, values), op.n_used, op.gating)
        self._raw(op.ids, values)[...] = ids
        self._write(op.weights, values, weights)

    def _multiply_experts(self, op: ExpertMatmul, values: Bounds) -> None:
        x, weight = self._f32(op.x, values), self._f32(op.weight, values)
        ids, scales = self._i32(op.ids, values), self._optional(op.scales, values)
        self._write(op.out, values, expert_matmul_ref(x, weight, ids, scales))

    def _raw(self, tensor: Tensor, values: Bounds) -> Array:
        return view(host_array(self._binding.memory[tensor]), tensor, values)

    def _i32(self, tensor: Tensor, values: Bounds) -> np.ndarray[tuple[int, ...], np.dtype[np.int32]]:
        return self._raw(tensor, values).astype(np.int32, copy=False)

    def _f32(self, tensor: Tensor, values: Bounds) -> F32:
        """The tensor as float32, dequantised when it is a weight in a block format."""
        if tensor.role is Role.WEIGHT and tensor.dtype is not DType.F32:
            shape = shape_of(tensor.shape, values)
            n_elements = int(np.prod(shape))
            raw = host_array(self._binding.memory[tensor])
            return dequantize(raw, tensor.dtype, n_elements).reshape(shape)
        return self._raw(tensor, values).astype(np.float32, copy=False)

    def _optional(self, tensor: Tensor | None, values: Bounds) -> F32 | None:
        return None if tensor is None else self._f32(tensor, values)

    def _write(self, out: Tensor, values: Bounds, value: F32) -> None:
        self._raw(out, values)[...] = value
