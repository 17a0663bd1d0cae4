"""Running one op on any backend, with memory that shows every overrun.

Inputs lie between NaNs, outputs between and on a known pattern; weights begin at an odd address, since a file
promises less alignment than a vector wants.
"""

import tempfile
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import fields

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st

from kernels.backend import Backend, Binding
from kernels.cpu.backend import ALIGNMENT, CpuBackend, available_isas
from kernels.dtype import DType
from kernels.executable import view
from kernels.memory import Bytes, HostMemory, Memory
from kernels.ops.op import F32, Array, Op
from kernels.program import ProgramBuilder
from kernels.reference import ReferenceBackend
from kernels.sim.backend import SimBackend
from kernels.sim.machine import SimMachine
from kernels.tensor import Role, Tensor
from tests.cuda import CUDA_BACKENDS, EMULATED, WATCHED

settings.register_profile("kernels", deadline=None, max_examples=25, derandomize=True)
settings.load_profile("kernels")

GUARD_BYTES = 512
NAN_BYTE = 0xFF  # four of them are a NaN in F32, two in F16
POISON_BYTE = 0xA5


def simulated() -> SimBackend:
    """An accelerator with the host's kernels; its folder goes with this process."""
    machine = SimMachine(SIM_FOLDER.name)
    machine.add_device("sim:0", 1 << 40)
    backend = SimBackend(machine, "sim:0", CpuBackend(2, small_bytes=0))
    backend.open()
    return backend


SIM_FOLDER = tempfile.TemporaryDirectory()

BACKENDS: Mapping[str, Backend] = {
    "reference": ReferenceBackend(),
    "sim": simulated(),
    **CUDA_BACKENDS,
    EMULATED: WATCHED,
    **{
        f"cpu-{isa}": CpuBackend(n_threads, isa, small_bytes=0)
        for isa, n_threads in zip(available_isas(), (2, 1, 3, 2), strict=False)
    },
}
CPU_BACKENDS = {name: backend for name, backend in BACKENDS.items() if name.startswith("cpu")}

ON_CUDA = {name: backend for name, backend in BACKENDS.items() if name in CUDA_BACKENDS}

each_backend = pytest.mark.parametrize("backend", BACKENDS.values(), ids=BACKENDS.keys())
each_cuda = pytest.mark.parametrize("backend", ON_CUDA.values(), ids=ON_CUDA.keys())
each_cpu = pytest.mark.parametrize("backend", CPU_BACKENDS.values(), ids=CPU_BACKENDS.keys())
seeds = st.integers(0, 2**32 - 1)


class Guarded:
    """n_bytes of memory between two guards."""

    def __init__(self, n_bytes: int, fill: int, guard: int, offset: int = 0) -> None:
        start = GUARD_BYTES + offset
        raw = np.full(n_bytes + 2 * GUARD_BYTES + ALIGNMENT + offset, guard, np.uint8)
        skip = -raw.ctypes.data % ALIGNMENT
        self._guard = guard
        self._before = raw[: skip + start]
        self.array: Bytes = raw[skip + start : skip + start + n_bytes]
        self._after = raw[skip + start + n_bytes :]
        self.array[...] = fill

    @contextmanager
    def on(self, backend: Backend) -> Generator[Memory]:
        """As the backend's kernels see it in the block: in place, or copied there and back, guards too."""
        if backend.is_host:
            yield HostMemory(self.array)
            return
        # there it begins where the device's allocator would have it begin
        n_bytes = self.array.nbytes
        whole = np.full(n_bytes + 2 * GUARD_BYTES, self._guard, np.uint8)
        whole[GUARD_BYTES : GUARD_BYTES + n_bytes] = self.array
        buffer = backend.allocate(whole.nbytes, "guarded")
        try:
            buffer.memory.upload(whole)
            yield buffer.memory.part(GUARD_BYTES, n_bytes)
            buffer.memory.download(whole)
        finally:
            buffer.free()
        self.array[...] = whole[GUARD_BYTES : GUARD_BYTES + n_bytes]
        self._before[len(self._before) - GUARD_BYTES :] = whole[:GUARD_BYTES]
        self._after[:GUARD_BYTES] = whole[GUARD_BYTES + n_bytes :]

    def expect_whole(self, what: str) -> None:
        """Fail when something was written outside."""
        assert np.all(self._before == self._guard), f"written before {what}"
        assert np.all(self._after == self._guard), f"written after {what}"


class OneOp:
    """A program under construction together with the values of its inputs, weights and states."""

    def __init__(self) -> None:
        self.program = ProgramBuilder(n_layer=1)
        self.given: dict[Tensor, Bytes] = {}

    def input(self, array: Array) -> Tensor:
        """An input that holds this array."""
        dtype = {np.dtype(np.float32): DType.F32, np.dtype(np.int32): DType.I32}[array.dtype]
        return self._given(self.program.input(f"input{len(self.given)}", array.shape, dtype), array)

    def weight(self, raw: Array, shape: tuple[int, ...] | None = None, dtype: DType = DType.F32) -> Tensor:
        """A weight with these bytes."""
        return self._given(self.program.weight(f"weight{len(self.given)}", shape or raw.shape, dtype), raw)

    def state(self, array: Array, shape: tuple[int, ...] | None = None) -> Tensor:
        """A state that begins as this array; bytes are those of a Q8_0 state of this shape."""
        dtype = {
            np.dtype(np.float32): DType.F32, np.dtype(np.float16): DType.F16, np.dtype(np.uint8): DType.Q8_0
        }[array.dtype]  # fmt: skip
        return self._given(self.program.state(f"state{len(self.given)}", shape or array.shape, dtype), array)

    def _given(self, tensor: Tensor, array: Array) -> Tensor:
        self.given[tensor] = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
        return tensor


def run_one_op(backend: Backend, build: Callable[[OneOp], Tensor]) -> F32:
    """The value of the tensor that `build` returns."""
    return run_ops(backend, lambda g: [build(g)])[0].astype(np.float32, copy=False)


def run_ops(backend: Backend, build: Callable[[OneOp], Sequence[Tensor]]) -> list[Array]:
    """Build, bind with a backend, run once; the arrays of the tensors that `build` returns."""
    one = OneOp()
    results = build(one)
    ops: Sequence[Op] = one.program._ops
    for op in ops:
        assert backend.refuses(op) is None, backend.refuses(op)
    memory = {tensor: _fill(tensor, one.given.get(tensor)) for op in ops for tensor in tensors_of(op)}
    n_scratch = max((backend.workspace_bytes(op, {}) for op in ops), default=0)
    workspace = Guarded(n_scratch, POISON_BYTE, POISON_BYTE)
    with ExitStack() as stack:
        there = {t: stack.enter_context(m.on(backend)) for t, m in memory.items()}
        scratch = stack.enter_context(workspace.on(backend))
        backend.bind(Binding(ops, there, {}, scratch)).run({})
    workspace.expect_whole("the workspace")
    for tensor, guarded in memory.items():
        guarded.expect_whole(repr(tensor))
        if tensor.role in (Role.INPUT, Role.WEIGHT):
            np.testing.assert_array_equal(guarded.array, one.given[tensor], err_msg=f"{tensor} was written")
    return [view(memory[t].array, t, {}).copy() for t in results]


def on_host(memory: Mapping[Tensor, Bytes]) -> dict[Tensor, Memory]:
    """Arrays as a binding wants them."""
    return {tensor: HostMemory(array) for tensor, array in memory.items()}


def tensors_of(op: Op) -> list[Tensor]:
    """All tensors of an op, states among them."""
    return [value for f in fields(op) if isinstance(value := getattr(op, f.name), Tensor)]


def _fill(tensor: Tensor, given: Bytes | None) -> Guarded:
    n_bytes = tensor.n_bytes({})
    if given is None:
        return Guarded(n_bytes, POISON_BYTE, POISON_BYTE)
    guarded = Guarded(n_bytes, 0, NAN_BYTE, offset=1 if tensor.role is Role.WEIGHT else 0)
    guarded.array[...] = given
    return guarded


def normal(seed: int, *shape: int) -> F32:
    """Standard normal values."""
    return np.random.default_rng(seed).standard_normal(shape, np.float32)


def worst_ulp(got: F32, want: F32) -> float:
    """Largest distance in units of the last place of `want`."""
    if got.size == 0:
        return 0.0
    spacing = np.maximum(np.spacing(np.abs(want)), np.finfo(np.float32).tiny).astype(np.float64)
    return float(np.max(np.abs(got.astype(np.float64) - want) / spacing))
