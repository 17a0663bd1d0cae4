"""The CPU backend as a device: memory, threads, binding, refusals."""

import threading
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kernels.backend import Binding
from kernels.cpu.backend import EMULATED, ROWS_AT_ONCE, CpuBackend, CpuSegment, available_isas
from kernels.cpu.memory import PAGE_BYTES
from kernels.dtype import DType
from kernels.memory import HostMemory, OutOfMemory
from kernels.ops.op import Op
from kernels.program import ProgramBuilder
from kernels.reference import ReferenceBackend
from kernels.tensor import N_TOKENS, Tensor
from tests.kernels.conftest import normal, on_host

WIDTH = 48
NOTHING = HostMemory(np.empty(0, np.uint8))


@dataclass
class Chain:
    """norm, then eight times matmul, gate and norm, of up to `bound` tokens, bound to memory."""

    segment: CpuSegment
    x: np.ndarray
    out: np.ndarray

    def run(self, x: np.ndarray) -> np.ndarray:
        self.x[: len(x)] = x
        self.segment.run({"n_tokens": len(x)})
        return self.out[: len(x)].copy()


def chain(backend: CpuBackend, bound: int = 16) -> Chain:
    program = ProgramBuilder(n_layer=1)
    x = program.input("x", (N_TOKENS, WIDTH), DType.F32)
    norm_weight = program.weight("norm", (WIDTH,), DType.F32)
    weight = program.weight("w", (WIDTH, WIDTH), DType.F32)
    y = program.rms_norm(x, norm_weight, 1e-5)
    for _ in range(8):
        gate = program.matmul(y, weight)
        y = program.rms_norm(program.gate(gate, gate, "silu"), norm_weight, 1e-5)
    ops: list[Op] = program._ops
    bounds = {"n_tokens": bound}
    memory = {t: np.zeros(t.n_bytes(bounds), np.uint8) for op in ops for t in (*op.reads, *op.writes)}
    memory[norm_weight][...] = np.ones(WIDTH, np.float32).view(np.uint8)
    memory[weight][...] = normal(5, WIDTH * WIDTH).view(np.uint8)
    workspace = backend.allocate(max(backend.workspace_bytes(op, bounds) for op in ops), "workspace").memory
    segment = backend.bind(Binding(ops, on_host(memory), bounds, workspace))
    f32 = {t: memory[t].view(np.float32).reshape(bound, WIDTH) for t in (x, y)}
    return Chain(segment, f32[x], f32[y])


@pytest.fixture
def backend() -> CpuBackend:
    return CpuBackend(2, small_bytes=0)


def test_results_do_not_depend_on_the_number_of_threads() -> None:
    x = normal(1, 16, WIDTH)
    results = [chain(CpuBackend(n_threads, small_bytes=0)).run(x) for n_threads in (1, 2, 3, 8)]
    for result in results[1:]:
        np.testing.assert_array_equal(result, results[0])


def test_many_short_runs_neither_hang_nor_differ() -> None:
    many, x = chain(CpuBackend(4, small_bytes=0)), normal(1, 3, WIDTH)
    first = many.run(x)
    for _ in range(500):
        np.testing.assert_array_equal(many.run(x), first)


def test_what_is_small_is_told_from_what_is_read() -> None:
    weight_bytes = 8 * WIDTH * WIDTH * 4
    segment = chain(CpuBackend(3, small_bytes=2 * weight_bytes)).segment
    for n in (16, 4, 5, 3, 16, 1):
        assert segment.is_small({"n_tokens": n}) == (n <= ROWS_AT_ONCE)
    assert not chain(CpuBackend(3, small_bytes=0)).segment.is_small({"n_tokens": 0})


def test_runs_of_one_thread_and_of_all_in_turn_neither_hang_nor_differ() -> None:
    turns, x = chain(CpuBackend(4, small_bytes=0)), normal(1, 5, WIDTH)
    first = turns.run(x)
    for _ in range(1000):
        turns.x[:5] = x
        turns.segment.native.run([2], is_alone=True)
        np.testing.assert_array_equal(turns.out[:2], first[:2])
        np.testing.assert_array_equal(turns.run(x), first)


def test_two_python_threads_may_run_segments_of_one_backend(backend: CpuBackend) -> None:
    chains = [chain(backend) for _ in range(2)]
    want = chains[0].run(normal(1, 4, WIDTH))
    wrong: list[int] = []

    def loop(own: Chain) -> None:
        x = normal(1, 4, WIDTH)
        wrong.extend(i for i in range(100) if not np.array_equal(own.run(x), want))

    threads = [threading.Thread(target=loop, args=(own,)) for own in chains]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    assert not wrong


@given(sizes=st.lists(st.integers(0, 16), min_size=1, max_size=6))
def test_one_segment_runs_any_size_up_to_its_bound(sizes: list[int]) -> None:
    one, x = chain(CpuBackend(2, small_bytes=0)), normal(1, 16, WIDTH)
    whole = one.run(x)
    for n in sizes:
        np.testing.assert_array_equal(one.run(x[:n]), whole[:n])


def test_a_size_over_the_bound_is_refused(backend: CpuBackend) -> None:
    with pytest.raises(ValueError, match=r"n_tokens is 17, this plan was made for 0\.\.16"):
        chain(backend).segment.run({"n_tokens": 17})


def test_a_missing_symbol_is_named(backend: CpuBackend) -> None:
    with pytest.raises(KeyError, match="n_tokens"):
        chain(backend).segment.run({})


def test_threads_have_names(backend: CpuBackend) -> None:
    chain(backend).run(normal(1, 1, WIDTH))
    names = {path.read_text().strip() for path in Path("/proc/self/task").glob("*/comm")}
    assert "kernels-1" in names


def test_threads_end_with_their_backend() -> None:
    def n_named() -> int:
        return sum(p.read_text().startswith("kernels-6") for p in Path("/proc/self/task").glob("*/comm"))

    seven = CpuBackend(7, small_bytes=0)
    chain(seven).run(normal(1, 1, WIDTH))
    before = n_named()
    del seven
    assert n_named() == before - 1


@pytest.mark.parametrize("isa", ["avx1024", "", "AVX2"])
def test_an_unknown_instruction_set_is_refused_with_those_there_are(isa: str) -> None:
    with pytest.raises(ValueError, match=f"{isa}.*generic"):
        CpuBackend(1, isa)


def test_the_emulated_path_is_there_and_never_chosen() -> None:
    assert EMULATED in available_isas()
    assert CpuBackend(1).isa != EMULATED


@pytest.mark.parametrize("n_threads", [0, -1, 100_000])
def test_a_number_of_threads_out_of_range_is_refused(n_threads: int) -> None:
    with pytest.raises(ValueError, match="n_threads"):
        CpuBackend(n_threads, small_bytes=0)


def test_memory_is_zeroed_aligned_and_counted(backend: CpuBackend) -> None:
    buffer = backend.allocate(5000, "cache")
    assert buffer.memory.array.nbytes == 5000
    assert not buffer.memory.array.any()
    assert buffer.memory.array.ctypes.data % backend.alignment == 0
    assert backend.allocations.asked_bytes == 5000
    assert backend.allocations.given_bytes == backend.round_up(5000) == 2 * PAGE_BYTES
    assert backend.allocations.by_label == {"cache": 2 * PAGE_BYTES}


def test_freeing_twice_gives_back_once(backend: CpuBackend) -> None:
    first, second = backend.allocate(100, "a"), backend.allocate(100, "a")
    first.free()
    first.free()
    assert backend.allocations.given_bytes == PAGE_BYTES
    second.free()
    assert backend.allocations.given_bytes == 0
    assert backend.allocations.high_water_bytes == 2 * PAGE_BYTES


def test_memory_is_resident_when_it_is_given(backend: CpuBackend) -> None:
    def resident_bytes() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * PAGE_BYTES

    before = resident_bytes()
    buffer = backend.allocate(64 << 20, "cache")
    assert resident_bytes() - before >= 60 << 20
    buffer.free()
    assert resident_bytes() - before < 16 << 20


@pytest.mark.parametrize("n_bytes", [1 << 45, 1 << 62, 1 << 70])
def test_an_impossible_size_is_out_of_memory_with_the_numbers(backend: CpuBackend, n_bytes: int) -> None:
    with pytest.raises(OutOfMemory) as caught:
        backend.allocate(n_bytes, "weights")
    assert (caught.value.device, caught.value.n_bytes, caught.value.label) == ("cpu", n_bytes, "weights")
    assert backend.allocations.n_allocations == 0


@pytest.mark.parametrize("n_bytes", [1 << 46, 1 << 62])
def test_the_reference_runs_out_of_memory_by_the_same_error(n_bytes: int) -> None:
    with pytest.raises(OutOfMemory, match=f"reference could not allocate {n_bytes} bytes for weights.0"):
        ReferenceBackend().allocate(n_bytes, "weights.0")


def test_the_chosen_allocation_fails_and_no_other() -> None:
    backend = CpuBackend(1, fail_allocation=2)
    backend.allocate(1, "a")
    with pytest.raises(OutOfMemory, match="1 bytes for b"):
        backend.allocate(1, "b")
    backend.allocate(1, "c")


def norm_op(x_dtype: DType = DType.F32) -> tuple[Op, Tensor, Tensor, Tensor]:
    program = ProgramBuilder(n_layer=1)
    x, w = program.input("x", (2, 8), x_dtype), program.weight("w", (8,), DType.F32)
    out = program.rms_norm(x, w, 1e-5)
    return program._ops[0], x, w, out


def test_memory_that_is_too_small_is_refused_by_name(backend: CpuBackend) -> None:
    op, x, w, out = norm_op()
    memory = {x: np.zeros(63, np.uint8), w: np.zeros(32, np.uint8), out: np.zeros(64, np.uint8)}
    with pytest.raises(ValueError, match=r"x: F32\[2, 8\] has 63 bytes, needs 64"):
        backend.bind(Binding([op], on_host(memory), {}, NOTHING))


def test_read_only_memory_may_be_read_but_not_written(backend: CpuBackend) -> None:
    op, x, w, out = norm_op()
    memory = {x: np.zeros(64, np.uint8), w: np.zeros(32, np.uint8), out: np.zeros(64, np.uint8)}
    memory[w].flags.writeable = False
    backend.bind(Binding([op], on_host(memory), {}, NOTHING))
    memory[out].flags.writeable = False
    with pytest.raises(ValueError, match="read-only"):
        backend.bind(Binding([op], on_host(memory), {}, NOTHING))


def test_an_input_of_another_type_is_refused(backend: CpuBackend) -> None:
    op, x, w, out = norm_op(DType.I32)
    memory = {t: np.zeros(64, np.uint8) for t in (x, w, out)}
    with pytest.raises(ValueError, match="is not F32"):
        backend.bind(Binding([op], on_host(memory), {}, NOTHING))


def test_a_workspace_that_is_too_small_is_refused(backend: CpuBackend) -> None:
    program = ProgramBuilder(n_layer=1)
    x, w = program.input("x", (3, 300 * 32), DType.F32), program.weight("w", (1, 300 * 32), DType.Q8_0)
    out = program.matmul(x, w)
    memory = {t: np.zeros(t.n_bytes({}), np.uint8) for t in (x, w, out)}
    with pytest.raises(ValueError, match="workspace has 100 bytes, needs"):
        backend.bind(Binding(program._ops, on_host(memory), {}, HostMemory(np.zeros(100, np.uint8))))
