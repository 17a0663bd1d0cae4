"""Of streamed layers with experts, those come that a batch uses: the host's tokens, bytes counted."""

import ctypes
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from actors.protocol import Generate, LayerPlacement, ModelSpec, Sampling
from actors.runner.devices import open_backends
from actors.runner.memory import STREAM
from actors.runner.model import NEVER, Model
from actors.runner.staging import CHUNK_BYTES, STAGING_BYTES
from actors.runner.streaming import WeightStream
from actors.runner.weights import Block
from kernels.cpu.backend import CpuBackend
from kernels.cuda.backend import CudaBackend
from kernels.cuda.driver import Launch, Work
from kernels.cuda.emulator.driver import WORK, EmulatedDriver, EmulatedEvent
from kernels.cuda.memory import CudaMemory
from kernels.dtype import DType
from kernels.memory import Bytes, Memory
from kernels.ops.experts import ExpertMatmul, Route
from kernels.ops.op import Op
from kernels.tensor import N_TOKENS, Role, Tensor
from tests.actors.sim_models import MIB, answers, long_and_short, serving, two_devices
from tests.actors.test_streaming import DEVICE, FROM, OPTIONS, opened, planned_overhead_bytes
from tests.cuda import COMPILED
from tests.golden import tiny as t
from tests.unit.test_crossover import scripted

POISON = 0xFF  # four of them are a NaN


class Poisoned(EmulatedDriver):
    """Buffers of one size are full of NaNs, until something else is put there."""

    def __init__(self, poisoned_bytes: int, seed: int) -> None:
        super().__init__(COMPILED, seed)
        self._poisoned_bytes = poisoned_bytes

    def allocate(self, n_bytes: int) -> int:
        pointer = super().allocate(n_bytes)
        if n_bytes == self._poisoned_bytes:
            ctypes.memset(pointer, POISON, n_bytes)
        return pointer


def scaled(copy_s: float, device_s: float) -> tuple[float, ...]:
    """Of one kind of layers: a copy, 8 and 20 rows on the host, and on the device, two runs of each."""
    return (*[copy_s] * 2, *[8.0] * 2, *[20.0] * 2, *[device_s] * 4)


AHEAD, CHOSEN, BOTH = scaled(0.001, 1.0), scaled(1000.0, 0.1), scaled(10.0, 3.6)


def written(folder: Path, tiny: t.Tiny, *, is_alike: bool = False) -> Path:
    """is_alike: every row chooses the first experts."""
    weights = t.weights(tiny)
    for name in weights:
        if is_alike and "ffn_gate_inp" in name:
            weights[name] = np.zeros_like(weights[name])
    path = folder / f"{tiny.arch}.gguf"
    t.write(path, tiny, weights)
    return path


@pytest.mark.parametrize(
    ("variant", "layers", "n_kinds"),
    [("qwen3moe", (3, 4), 1), ("qwen3moe", (0,), 1), ("llama4", (4,), 1), ("llama4-interleaved", (2,), 2)],
)
@pytest.mark.parametrize(("times", "whole_from"), [(AHEAD, 1), (CHOSEN, 21), (BOTH, None)])
async def test_streams_are_those_of_the_host_alone_whichever_experts_come(
    variant: str,
    layers: tuple[int, ...],
    n_kinds: int,
    times: tuple[float, ...],
    whole_from: int | None,
    tmp_path: Path,
) -> None:
    tiny = replace(t.VARIANTS[variant], n_layer=5)
    path = written(tmp_path, tiny)
    asked = long_and_short(tiny, 28, 9, n_predict=4)  # the first is of two batches
    alone, _ = opened(path, (), NEVER)
    async with serving(alone) as engine:
        expected = await answers(engine, asked)
    planned, _ = opened(path, layers, FROM)
    model, cuda = opened(
        path, layers, FROM, Poisoned(planned_overhead_bytes(planned) // 2, seed=len(variant))
    )
    planned.close()
    async with serving(model, scripted(*times * n_kinds)) as engine:
        assert await answers(engine, asked) == expected
        gauges = model.gauges()
        assert gauges["streamed_layers_total"] > 0
        if whole_from is not None:
            assert gauges["experts_ahead_from_rows"] == whole_from
    assert cuda.held_bytes() == cuda.allocations.given_bytes == 0


@pytest.mark.parametrize("times", [AHEAD, CHOSEN])
async def test_a_simulated_device_gives_the_tokens_of_the_host_alone(
    times: tuple[float, ...], tmp_path: Path
) -> None:
    tiny = replace(t.VARIANTS["qwen3moe"], n_layer=5)
    path = written(tmp_path, tiny)
    asked = [Generate(tuple(t.prompt(tiny, 28)), Sampling(temperature=0), n_predict=6)]
    alone, _ = opened(path, (), NEVER)
    async with serving(alone) as engine:
        expected = await answers(engine, asked)
    machine = two_devices(str(tmp_path / "sim"))
    placement = (LayerPlacement("sim:0", (3,)),)
    backends = open_backends(CpuBackend(2), placement, str(tmp_path / "sim"))
    spec = ModelSpec("tiny", "sha256:0", str(path), 0)
    model = Model.open(spec, OPTIONS, placement, backends, FROM)
    async with serving(model, scripted(*times)) as engine:
        assert await answers(engine, asked) == expected
        assert model.gauges()["streamed_bytes_total"] > 0
    assert machine.held("sim:0") == (0, 0)
    assert machine.used("sim:0") < MIB


def sizes_of(tiny: t.Tiny) -> tuple[int, int]:
    """Bytes of a layer without its experts, and of one expert."""
    n_floats = {
        name: int(np.prod(shape)) for name, shape in t.shapes(tiny).items() if name.startswith("blk.0.")
    }
    experts = sum(n for name, n in n_floats.items() if "_exps" in name)
    return 4 * (sum(n_floats.values()) - experts), 4 * experts // tiny.n_expert


@pytest.mark.parametrize(("variant", "n_used"), [("qwen3moe", 3), ("llama4", 1)])
@pytest.mark.parametrize(("times", "is_whole"), [(AHEAD, True), (CHOSEN, False)])
async def test_bytes_that_come_are_those_of_the_experts_that_are_used(
    variant: str, n_used: int, times: tuple[float, ...], is_whole: bool, tmp_path: Path
) -> None:
    tiny = replace(t.VARIANTS[variant], n_layer=5)
    path = written(tmp_path, tiny, is_alike=True)
    asked = [Generate(tuple(t.prompt(tiny, 12)), Sampling(temperature=0), n_predict=3)]
    alone, _ = opened(path, (), NEVER)
    async with serving(alone) as engine:
        expected = await answers(engine, asked)
    model, _ = opened(path, (3, 4), FROM)
    async with serving(model, scripted(*times)) as engine:
        assert model.gauges()["streamed_bytes_total"] == 0  # what was measured is not counted
        assert await answers(engine, asked) == expected
        shared_bytes, expert_bytes = sizes_of(tiny)
        n_experts = tiny.n_expert if is_whole else n_used
        assert model.gauges()["streamed_layers_total"] == 3
        assert model.gauges()["streamed_bytes_total"] == 3 * (shared_bytes + n_experts * expert_bytes)


async def test_the_last_layer_gets_the_experts_of_the_rows_that_are_wanted(tmp_path: Path) -> None:
    tiny = replace(t.VARIANTS["qwen3moe"], n_layer=5)
    path = written(tmp_path, tiny, is_alike=True)
    model, _ = opened(path, (0, 1), FROM)  # layers 2, 3, 4 come, of the last of which one row is wanted
    async with serving(model, scripted(*BOTH)) as engine:
        assert 1 < model.gauges()["experts_ahead_from_rows"] <= 12
        await answers(engine, [Generate(tuple(t.prompt(tiny, 12)), Sampling(temperature=0), n_predict=2)])
        shared_bytes, expert_bytes = sizes_of(tiny)
        n_experts = 2 * tiny.n_expert + tiny.n_expert_used
        assert model.gauges()["streamed_bytes_total"] == 3 * shared_bytes + n_experts * expert_bytes


def test_from_which_inputs_on_is_measured_for_layers_with_experts_and_without(tmp_path: Path) -> None:
    path = written(tmp_path, replace(t.VARIANTS["llama4-interleaved"], n_layer=5))
    model, cuda = opened(path, (4,), 0)  # of the others two have experts
    assert planned_overhead_bytes(model) > 0
    assert model.allocate()
    # on the host 1 s a row; without experts a copy takes 6 s, with them 21 s
    dense = (6.0, 6.0, 8.0, 8.0, 20.0, 20.0, 0.5, 0.5, 0.5, 0.5)
    mixed = (21.0, 21.0, 8.0, 8.0, 20.0, 20.0, 0.5, 0.5, 0.5, 0.5)
    model.load(clock=scripted(*dense, *mixed))
    # of 128 experts few come for few rows: that is sooner than with all of them at (6 + 21) / 2
    assert 3 < model.streamed_rows < 7
    assert cuda.allocations.by_label[STREAM] > 0
    model.close()


def test_experts_are_measured_as_rows_choose_them_and_not_all_the_same(tmp_path: Path) -> None:
    """The emulator notes which parts of the first layer's weights its products read."""
    tiny = replace(t.VARIANTS["qwen3moe"], n_layer=5)
    path = written(tmp_path, tiny)
    driver = Watching(COMPILED)
    model, _ = opened(path, (3, 4), FROM, driver)
    assert model.allocate()
    model.load()
    assert driver.chosen, "products with experts ran"
    assert all(0 <= expert < tiny.n_expert for rows in driver.chosen for row in rows for expert in row)
    assert all(len(set(row)) == tiny.n_expert_used for rows in driver.chosen for row in rows)
    many = [rows for rows in driver.chosen if len(rows) == OPTIONS.n_batch]
    assert {expert for row in many[0] for expert in row} == set(range(tiny.n_expert))
    model.close()


class Watching(EmulatedDriver):
    """Notes the ids that products with experts are given, when they run."""

    def __init__(self, cache_dir: Path) -> None:
        super().__init__(cache_dir)
        self.chosen: list[list[list[int]]] = []

    def run(self, works: Sequence[Work]) -> None:
        for work in works:
            if isinstance(work, Launch) and work.kernel == "expert_matvec":
                self.queues.put(
                    WORK, partial(self._note, int(work.args[5]), work.grid[0], int(work.args[11]))
                )
            super().run([work])

    def _note(self, ids: int, n_slots: int, n_used: int) -> None:
        found = np.ctypeslib.as_array(ctypes.cast(ids, ctypes.POINTER(ctypes.c_int32)), (n_slots,))
        self.chosen.append(found.reshape(-1, n_used).tolist())


N_EXPERT, N_USED = 5, 2
WHOLE_FROM = 6  # rows, of the rig
Rows = Sequence[Sequence[int]]  # experts of each


class Rig:
    """Layers of random bytes on an emulated device that reads them when it likes; experts as it is told."""

    def __init__(self, n_layer: int, driver: EmulatedDriver, seed: int = 1) -> None:
        rng = np.random.default_rng(seed)
        self.driver = driver
        self.device = CudaBackend(DEVICE, driver)
        shapes = {"d": (3 * CHUNK_BYTES // 4 + 7,), "e": (N_EXPERT, 320, 512), "f": (N_EXPERT, 4, 32)}
        self.content: dict[str, Bytes] = {}
        self.routes: list[Route] = []
        ops: list[Op] = []
        blocks: list[Block] = []
        for i in range(n_layer):
            logits, weights, x = (Tensor(n, (N_TOKENS, 1), DType.F32, Role.VALUE, i) for n in "lwx")
            ids = Tensor("ids", (N_TOKENS, N_USED), DType.I32, Role.VALUE, i)
            tensors = {n: Tensor(f"{n}{i}", s, DType.F32, Role.WEIGHT, i) for n, s in shapes.items()}
            self.routes.append(Route(i, logits, ids, weights, "softmax"))
            ops.append(self.routes[-1])
            for name in "ef":
                n_out = shapes[name][1]
                out = Tensor("out", (N_TOKENS, N_USED * n_out), DType.F32, Role.VALUE, i)
                ops.append(ExpertMatmul(i, x, tensors[name], ids, out))
            offsets: list[int] = []
            end = 0
            for tensor in tensors.values():
                offsets.append(-(-end // 256) * 256)
                end = offsets[-1] + tensor.n_bytes({})
                self.content[tensor.name] = rng.integers(0, POISON, tensor.n_bytes({}), np.uint8)
            blocks.append(Block(DEVICE, i, tuple(tensors.values()), tuple(offsets), end, is_mapped=False))
        slots = [self.device.allocate(blocks[0].n_bytes, STREAM).memory for _ in range(2)]
        for slot in slots:
            slot.upload(np.full(slot.n_bytes, POISON, np.uint8))
        self.ids: Memory = self.device.allocate(4 * N_USED * 64, "ids").memory
        staging = np.zeros(STAGING_BYTES, np.uint8)
        self.device.pin(staging)
        self.stream = WeightStream(self.device, blocks, slots, self.content, staging, ops)
        self.stream.whole_from = WHOLE_FROM

    def run(self, layer: int, rows: Rows) -> "Mapping[str, Bytes]":
        """A layer of a batch whose rows choose these experts; what work sees of each weight, once done."""
        values = {N_TOKENS.name: len(rows)}
        self.stream.before(layer).run(values)
        self.ids.upload(np.array(rows, np.int32).reshape(-1).view(np.uint8))
        self.stream.after(self.routes[layer], self.ids).run(values)
        seen: dict[str, Bytes] = {}
        for name in (f"{n}{layer}" for n in "def"):
            memory = self.stream.weights[name, DEVICE]
            assert isinstance(memory, CudaMemory)
            found = seen[name] = np.zeros(memory.n_bytes, np.uint8)
            self.driver.queues.put(WORK, partial(_read, found, memory.pointer))
        return seen

    def has(self, seen: Mapping[str, Bytes], experts: Collection[int]) -> bool:
        """Whether work found what it would have used."""
        for name, found in seen.items():
            parts = 1 if name[0] == "d" else N_EXPERT
            used = {0} if name[0] == "d" else experts
            got, expected = (each.reshape(parts, -1) for each in (found, self.content[name]))
            if not all(np.array_equal(got[part], expected[part]) for part in used):
                return False
        return True

    def n_bytes(self, n_experts: int) -> int:
        """Of a layer with so many experts."""
        d, e, f = (self.content[f"{name}0"].nbytes for name in "def")
        return d + (e + f) // N_EXPERT * n_experts


def _read(into: Bytes, pointer: int) -> None:
    ctypes.memmove(into.ctypes.data, pointer, into.nbytes)


def chosen(rng: np.random.Generator, n_rows: int) -> Rows:
    return [rng.permutation(N_EXPERT)[:N_USED].tolist() for _ in range(n_rows)]


def used(rows: Rows) -> set[int]:
    return {expert for row in rows for expert in row}


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("n_layer", [1, 2, 3, 4])
def test_work_finds_the_experts_of_its_batch_whatever_came_before(n_layer: int, seed: int) -> None:
    rig = Rig(n_layer, EmulatedDriver(COMPILED, seed), seed)
    rng = np.random.default_rng(seed)
    seen: list[tuple[Mapping[str, Bytes], set[int]]] = []
    for _ in range(7):  # small and large ones, of which some break off
        n_rows = int(rng.choice([0, 1, 2, WHOLE_FROM - 1, WHOLE_FROM, 9]))
        for layer in range(n_layer if rng.random() < 0.7 else n_layer // 2):
            rows = chosen(rng, n_rows)
            seen.append((rig.run(layer, rows), used(rows)))
    rig.device.mark().wait()
    rig.stream.close()
    assert len(seen) > n_layer
    assert all(rig.has(found, experts) for found, experts in seen)


@pytest.mark.parametrize(
    ("rows", "n_experts"),
    [
        ([], 0),
        ([[3, 3]], 1),
        ([[0, 4], [4, 0]], 2),
        ([[0, 1], [2, 3], [4, 0]], N_EXPERT),
        ([[0, 1]] * WHOLE_FROM, N_EXPERT),  # all come ahead
    ],
    ids=["none", "one", "two", "all", "ahead"],
)
def test_what_comes_is_what_all_rows_need_and_the_experts_that_some_row_chose(
    rows: Rows, n_experts: int
) -> None:
    rig = Rig(3, EmulatedDriver(COMPILED))
    seen = [rig.run(layer, rows) for layer in range(3)]
    rig.device.mark().wait()
    rig.stream.close()
    assert rig.stream.brought_bytes == 3 * rig.n_bytes(n_experts)  # the last one's slot is the first one's
    assert all(rig.has(found, used(rows)) for found in seen)
    if n_experts < N_EXPERT:
        for name in ("e0", "f0"):  # the first in its slot: the rest is as it was
            parts = seen[0][name].reshape(N_EXPERT, -1)
            assert all((parts[i] == POISON).all() for i in set(range(N_EXPERT)) - used(rows))


def test_a_larger_batch_completes_what_came_for_a_smaller_one() -> None:
    rig = Rig(2, EmulatedDriver(COMPILED, seed=3))
    small = [[0, 1]]
    rig.run(0, small)
    rig.run(1, small)
    large = [rig.run(0, [[2, 3]] * WHOLE_FROM), rig.run(1, [[2, 3]] * WHOLE_FROM)]
    again = [rig.run(0, small), rig.run(1, small)]
    rig.device.mark().wait()
    rig.stream.close()
    assert rig.stream.n_brought == 2
    assert rig.stream.brought_bytes == 2 * (rig.n_bytes(2) + rig.n_bytes(N_EXPERT) - rig.n_bytes(0))
    assert all(rig.has(seen, range(N_EXPERT)) for seen in (*large, *again))


class Failing(EmulatedDriver):
    """The n-th copy from the host beside work breaks, and no other."""

    def __init__(self, n: int) -> None:
        super().__init__(COMPILED)
        self.n_copies = n

    def start_upload(self, pointer: int, data: Bytes) -> EmulatedEvent:
        self.n_copies -= 1
        if self.n_copies == 0:
            raise RuntimeError("the device is gone")
        return super().start_upload(pointer, data)


def test_an_error_of_any_copy_of_a_layer_reaches_who_runs_it() -> None:
    rows = [[0, 3]]
    counting = Failing(0)
    rig = Rig(1, counting)
    rig.run(0, rows)
    rig.stream.close()
    n_copies = -counting.n_copies
    assert (
        n_copies == 4 + 2 * 3
    )  # pieces of what all need; of each expert two of one weight and one of the other
    for n in range(1, n_copies + 1):
        rig = Rig(1, Failing(n))
        with pytest.raises(RuntimeError, match="the device is gone"):
            rig.run(0, rows)
        rig.stream.close()


def test_what_broke_ahead_for_a_small_batch_is_not_forgotten_by_a_large_one() -> None:
    rig = Rig(2, Failing(4 + 1))  # the first copy for the layer after
    rig.stream.take(0, {N_TOKENS.name: 1})
    with pytest.raises(RuntimeError, match="the device is gone"):
        rig.run(1, [[0, 1]] * WHOLE_FROM)
    rig.stream.close()
