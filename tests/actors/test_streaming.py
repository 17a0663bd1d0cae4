"""Layers of the host computed by a device: the host's tokens, memory as planned, from which batches on."""

from collections.abc import Sequence
from ctypes import memmove
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from actors.protocol import Generate, LayerPlacement, LoadOptions, ModelSpec, Sampling
from actors.runner.memory import STAGING, STREAM
from actors.runner.model import NEVER, Model
from actors.runner.progress import Phase
from actors.runner.staging import CHUNK_BYTES, STAGING_BYTES
from actors.runner.streaming import WeightStream
from actors.runner.weights import Block
from kernels.cpu.backend import CpuBackend
from kernels.cuda.backend import CudaBackend
from kernels.cuda.emulator.driver import WORK, EmulatedDriver, EmulatedEvent
from kernels.cuda.memory import CudaMemory
from kernels.dtype import DType
from kernels.memory import Bytes
from kernels.tensor import Role, Tensor
from tests.actors.sim_models import answers, long_and_short, serving
from tests.cuda import COMPILED
from tests.golden import tiny as t
from tests.unit.test_crossover import scripted

DEVICE = "cuda:0"
OPTIONS = LoadOptions(n_ctx=96, n_batch=20, n_parallel=2)
FROM = 5  # inputs from which on the tests stream: all batches of prompts, none of decoding


def written(folder: Path, tiny: t.Tiny) -> Path:
    t.write(folder / "tiny.gguf", tiny, t.weights(tiny))
    return folder / "tiny.gguf"


def opened(
    path: Path, layers: Sequence[int], stream_from: int, driver: EmulatedDriver | None = None
) -> tuple[Model, CudaBackend]:
    """Planned with these layers on the device, the rest on the host."""
    cuda = CudaBackend(DEVICE, driver or EmulatedDriver(COMPILED))
    placement = (LayerPlacement(DEVICE, tuple(layers)),)
    spec = ModelSpec("tiny", "sha256:0", str(path), 0)
    backends = {"cpu": CpuBackend(2), DEVICE: cuda}
    return Model.open(spec, OPTIONS, placement, backends, stream_from), cuda


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return written(tmp_path, replace(t.VARIANTS["qwen3"], n_layer=5))


@pytest.mark.parametrize(
    ("variant", "layers", "seed"),
    [
        ("qwen3", (3, 4), 1),
        ("qwen3", (2,), 2),
        ("qwen3", (0, 4), 3),
        ("lfm2", (4,), 4),
        ("lfm2", (0, 2), 5),
        ("gemma3", (3, 4), 6),
        ("qwen3moe", (3, 4), 7),
        ("llama4-interleaved", (4,), 8),
    ],
)
async def test_streamed_prompts_and_tokens_of_the_host_are_those_of_the_host_alone(
    variant: str, layers: tuple[int, ...], seed: int, tmp_path: Path
) -> None:
    tiny = replace(t.VARIANTS[variant], n_layer=5)
    path = written(tmp_path, tiny)
    prompt = tuple(t.prompt(tiny, 26))  # of two batches
    asked = long_and_short(tiny, len(prompt), 9, n_predict=4)
    alone, _ = opened(path, (), NEVER)
    async with serving(alone) as engine:
        first = await answers(engine, asked)
        again = [Generate((*prompt, *first[0], *prompt[:7]), Sampling(temperature=0), n_predict=3)]
        second = await answers(engine, again)  # goes on from what is in the cache
    model, cuda = opened(path, layers, FROM, EmulatedDriver(COMPILED, seed))
    async with serving(model) as engine:
        assert await answers(engine, asked) == first
        n_first = model.gauges()["streamed_layers_total"]
        assert await answers(engine, again) == second
        assert model.gauges()["streamed_layers_total"] > n_first > 0
    assert cuda.held_bytes() == cuda.allocations.given_bytes == 0


async def test_batches_below_the_crossover_stay_on_the_host(path: Path) -> None:
    model, _ = opened(path, (3, 4), FROM)
    async with serving(model) as engine:
        await answers(engine, [Generate((1, 2, 3, 4), Sampling(temperature=0), n_predict=6)])
        assert model.gauges()["streamed_layers_total"] == 0
        assert model.gauges()["streamed_from_inputs"] == FROM


def planned_overhead_bytes(model: Model) -> int:
    """Of the device; the emulator has no context."""
    return next(one for one in model.report().devices if one.id == DEVICE).overhead.planned_bytes


async def test_slots_are_planned_and_nothing_is_taken_while_batches_run(path: Path) -> None:
    model, cuda = opened(path, (3, 4), FROM)
    without, _ = opened(path, (3, 4), NEVER)
    planned_bytes = planned_overhead_bytes(model)
    assert planned_bytes > planned_overhead_bytes(without) == 0
    async with serving(model) as engine:
        assert cuda.allocations.by_label[STREAM] == planned_bytes
        assert model.host.allocations.by_label[STAGING] == STAGING_BYTES
        n_before = cuda.allocations.n_allocations, model.host.allocations.n_allocations
        held_bytes = cuda.held_bytes()
        await answers(engine, [Generate(tuple(range(40)), Sampling(temperature=0), n_predict=3)])
        assert (cuda.allocations.n_allocations, model.host.allocations.n_allocations) == n_before
        assert cuda.held_bytes() == held_bytes
        report = next(device for device in model.report().devices if device.id == DEVICE)
        items = (*report.weights, *report.cache, report.graph, report.overhead)
        assert sum(item.measured_bytes for item in items) == held_bytes
        assert report.overhead.measured_bytes == report.overhead.planned_bytes == planned_bytes


def test_nothing_is_planned_where_no_layer_or_no_batch_would_be_streamed(path: Path) -> None:
    whole, two_left = (0, 1, 2, 3, 4, 5), (0, 1, 2)
    for layers, stream_from in (((), 0), (whole, 0), (two_left, FROM), ((3, 4), OPTIONS.n_batch + 1)):
        model, _ = opened(path, layers, stream_from)
        assert planned_overhead_bytes(model) == 0
        model.close()


def test_from_which_inputs_on_is_measured_at_the_load(path: Path) -> None:
    model, cuda = opened(path, (3, 4), 0)
    assert model.allocate()
    # a copy; 8 and 20 rows on the host: 1 s a row; the same on the device: half a second each
    clock = scripted(9.5, 9.5, 8.0, 8.5, 20.0, 20.0, 0.5, 0.5, 0.5, 0.5)
    model.load(clock=clock)
    assert model.streamed_rows == 10
    assert cuda.allocations.by_label[STREAM] > 0
    model.close()


def test_what_streaming_would_need_is_given_back_where_it_does_not_pay(path: Path) -> None:
    driver = EmulatedDriver(COMPILED)
    model, cuda = opened(path, (3, 4), 0, driver)
    assert model.allocate()
    model.load(clock=scripted(99.0, 99.0, 8.0, 8.0, 20.0, 20.0, 0.5, 0.5, 0.5, 0.5))
    assert model.streamed_rows == NEVER
    assert cuda.allocations.by_label[STREAM] == model.host.allocations.by_label[STAGING] == 0
    assert driver.pinned_bytes == 0
    device = next(one for one in model.report().devices if one.id == DEVICE)
    assert device.overhead.planned_bytes == device.overhead.measured_bytes == 0
    model.close()


def test_who_gives_a_load_up_is_heard_between_any_two_measurements(path: Path) -> None:
    class GivenUp(Exception):
        pass

    def load(n_calls: int) -> bool:
        """Whether it came to an end, when it is given up at a call after everything was read."""
        calls = 0

        def tell(phase: Phase, done_bytes: int, total_bytes: int) -> None:
            nonlocal calls
            del done_bytes, total_bytes
            calls += phase == "finalising"
            if calls > n_calls:
                raise GivenUp

        driver = EmulatedDriver(COMPILED)
        model, cuda = opened(path, (3, 4), 0, driver)
        assert model.allocate()
        try:
            model.load(tell, clock=lambda: float(calls))
        except GivenUp:
            return False
        finally:
            model.close()
            assert driver.pinned_bytes == driver.n_waiting == cuda.held_bytes() == 0
            assert model.host.allocations.given_bytes == 0
        return True

    # two copies; two runs of each of two sizes on both sides, and one before them
    assert not any(load(n) for n in range(12))
    assert load(99)


class Rig:
    """Layers of random bytes, streamed to an emulated device that reads them when it likes."""

    def __init__(self, n_layer: int, driver: EmulatedDriver, seed: int = 1) -> None:
        rng = np.random.default_rng(seed)
        n_bytes = 11 * CHUNK_BYTES + 4 * 77  # more than all buffers
        self.driver = driver
        self.device = CudaBackend(DEVICE, driver)
        self.content: dict[int, Bytes] = {i: rng.integers(0, 256, n_bytes, np.uint8) for i in range(n_layer)}
        slots = [self.device.allocate(n_bytes, STREAM).memory for _ in range(2)]
        blocks: list[Block] = []
        for i in range(n_layer):
            tensor = Tensor(f"w{i}", (n_bytes // 4,), DType.F32, Role.WEIGHT, i)
            blocks.append(Block(DEVICE, i, (tensor,), (0,), n_bytes, is_mapped=False))
        staging = np.zeros(STAGING_BYTES, np.uint8)
        self.device.pin(staging)
        sources = {f"w{i}": raw for i, raw in self.content.items()}
        self.stream = WeightStream(self.device, blocks, slots, sources, staging)

    def read(self, layer: int) -> Bytes:
        """What work sees of a layer that is given to the device now and done later."""
        seen = np.zeros_like(self.content[layer])
        memory = self.stream.weights[f"w{layer}", DEVICE]
        assert isinstance(memory, CudaMemory)
        self.driver.queues.put(WORK, partial(memmove, seen.ctypes.data, memory.pointer, seen.nbytes))
        return seen


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("n_layer", [1, 2, 3, 4])
def test_work_finds_the_weights_of_its_layer_also_after_a_batch_that_broke_off(
    n_layer: int, seed: int
) -> None:
    rig = Rig(n_layer, EmulatedDriver(COMPILED, seed), seed)
    whole = list(range(n_layer))
    seen: list[tuple[int, Bytes]] = []
    for layer in (*whole, *whole, *whole[: n_layer // 2], *whole):
        rig.stream.take(layer, {})
        seen.append((layer, rig.read(layer)))
    rig.device.mark().wait()
    rig.stream.close()
    assert all(np.array_equal(got, rig.content[layer]) for layer, got in seen)


def test_layers_that_stay_in_their_slots_are_brought_once() -> None:
    rig = Rig(2, EmulatedDriver(COMPILED))
    for _ in range(3):
        rig.stream.take(0, {})
        rig.stream.take(1, {})
    rig.stream.close()
    assert rig.stream.n_brought == 2


def test_an_error_of_a_copy_reaches_who_takes_the_layer() -> None:
    class Broken(EmulatedDriver):
        def start_upload(self, pointer: int, data: Bytes) -> EmulatedEvent:
            raise RuntimeError("the device is gone")

    rig = Rig(2, Broken(COMPILED))
    with pytest.raises(RuntimeError, match="the device is gone"):
        rig.stream.take(0, {})
    rig.stream.close()
