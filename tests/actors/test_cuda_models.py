"""Models with layers on a CUDA device, in the emulator: the tokens of the host alone, memory as planned."""

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from actors.errors import ModelError
from actors.protocol import Generate, LayerPlacement, LoadOptions, ModelSpec, Sampling
from actors.runner.engine import Engine
from actors.runner.memory import STAGING
from actors.runner.model import Model
from actors.runner.progress import Phase
from actors.runner.staging import STAGING_BYTES
from kernels.cpu.backend import CpuBackend
from kernels.cuda.backend import CudaBackend
from kernels.cuda.emulator.driver import EmulatedDriver
from tests.actors.sim_models import answers, long_and_short, serving
from tests.cuda import COMPILED
from tests.golden import tiny as t

# one plan is recorded, the other is not; with a cache of f16 a prompt's queries and weights would be rounded
# to f16 on the device alone, and random weights make tokens that are nearly as likely as others
OPTIONS = LoadOptions(n_ctx=64, n_batch=20, n_parallel=2, kv_type="f32")
DEVICE = "cuda:0"


def opened(
    path: Path, layers: tuple[int, ...], driver: EmulatedDriver | None = None
) -> tuple[Model, CudaBackend]:
    """Planned with these layers on the device, the rest on the host."""
    cuda = CudaBackend(DEVICE, driver or EmulatedDriver(COMPILED))
    placement = (LayerPlacement(DEVICE, layers),)
    spec = ModelSpec("tiny", "sha256:0", str(path), 0)
    model = Model.open(spec, OPTIONS, placement, {"cpu": CpuBackend(2), DEVICE: cuda})
    return model, cuda


@pytest.mark.parametrize("layers", [(0, 1, 2), (1, 2), (0,)], ids=["all", "upper", "lower"])
@pytest.mark.parametrize("variant", ["qwen3", "lfm2-last", "qwen3moe", "llama4", "t5"])
async def test_layers_on_a_device_give_the_tokens_of_the_host_alone(
    variant: str, layers: tuple[int, ...], tmp_path: Path
) -> None:
    tiny = t.VARIANTS[variant]
    path = tmp_path / "tiny.gguf"
    t.write(path, tiny, t.weights(tiny))
    asked = long_and_short(tiny, 26, 5, n_predict=6)
    alone, _ = opened(path, ())
    async with serving(alone) as engine:
        expected = await answers(engine, asked)
    model, cuda = opened(path, layers)
    async with serving(model) as engine:
        assert isinstance(engine, Engine)
        assert await answers(engine, asked) == expected
    assert cuda.held_bytes() == cuda.allocations.given_bytes == 0


@pytest.mark.parametrize("has_peers", [True, False])
@pytest.mark.parametrize("seed", range(2))
async def test_two_devices_hand_values_over_directly_where_they_reach_each_other(
    seed: int, has_peers: bool, tmp_path: Path
) -> None:
    tiny = replace(t.VARIANTS["qwen3"], n_layer=3)
    path = tmp_path / "tiny.gguf"
    t.write(path, tiny, t.weights(tiny))
    asked = [Generate(tuple(t.prompt(tiny, 26)), Sampling(temperature=0), n_predict=4)]
    alone, _ = opened(path, ())
    async with serving(alone) as engine:
        expected = await answers(engine, asked)
    drivers = [EmulatedDriver(COMPILED, seed + i, has_peers=has_peers) for i in range(2)]
    devices = {f"cuda:{i}": CudaBackend(f"cuda:{i}", driver) for i, driver in enumerate(drivers)}
    placement = (LayerPlacement("cuda:0", (0, 2)), LayerPlacement("cuda:1", (1, 3)))
    spec = ModelSpec("tiny", "sha256:0", str(path), 0)
    model = Model.open(spec, OPTIONS, placement, {"cpu": CpuBackend(2), **devices})
    async with serving(model) as engine:
        assert await answers(engine, asked) == expected
    assert all((driver.received_bytes > 0) == has_peers for driver in drivers)


def test_what_is_planned_is_what_the_device_gives(tmp_path: Path) -> None:
    tiny = t.VARIANTS["qwen3"]
    path = tmp_path / "tiny.gguf"
    t.write(path, tiny, t.weights(tiny))
    model, cuda = opened(path, (0, 1, 2))
    assert model.allocate()
    n_allocations = cuda.allocations.n_allocations
    model.load()
    device = next(one for one in model.report().devices if one.id == DEVICE)
    items = (*device.weights, *device.cache, device.graph)
    assert [item.planned_bytes for item in items] == [item.measured_bytes for item in items]
    assert cuda.allocations.given_bytes == sum(item.measured_bytes for item in items)
    assert cuda.allocations.n_allocations == n_allocations
    model.close()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    tiny = t.VARIANTS["qwen3"]
    t.write(tmp_path / "tiny.gguf", tiny, t.weights(tiny))
    return tmp_path / "tiny.gguf"


class GivenUp(Exception):
    """The load is not wanted any more."""


def give_up_at(phase: str) -> Callable[[str, int, int], None]:
    def tell(now: str, done_bytes: int, total_bytes: int) -> None:
        if now == phase:
            raise GivenUp

    return tell


def test_what_a_load_copies_through_is_pinned_planned_and_given_back(path: Path) -> None:
    driver = EmulatedDriver(COMPILED)
    model, _ = opened(path, (0, 1, 2), driver)
    alone, _ = opened(path, ())
    host = model.host.allocations
    assert model.allocate()
    assert driver.pinned_bytes == host.by_label[STAGING] == STAGING_BYTES
    planned = next(one for one in model.report().devices if one.id == "cpu").overhead.planned_bytes
    assert planned >= STAGING_BYTES
    assert alone.report().devices[0].overhead.planned_bytes >= STAGING_BYTES
    model.load()
    assert driver.pinned_bytes == host.by_label[STAGING] == 0
    model.close()


@pytest.mark.parametrize("phase", ["allocating", "reading", "finalising"])
def test_a_load_that_is_given_up_gives_back_all_it_took(phase: Phase, path: Path) -> None:
    driver = EmulatedDriver(COMPILED)
    model, cuda = opened(path, (0, 1, 2), driver)
    try:
        assert model.allocate(give_up_at(phase))
        model.load(give_up_at(phase))
    except GivenUp:
        model.close()
    assert driver.pinned_bytes == driver.n_waiting == cuda.held_bytes() == 0
    assert model.host.allocations.given_bytes == 0


def test_an_error_of_the_file_gives_back_all_that_was_taken(path: Path) -> None:
    driver = EmulatedDriver(COMPILED)
    model, cuda = opened(path, (0, 1, 2), driver)
    assert model.allocate()
    os.utime(path, ns=(1, 1))
    with pytest.raises(ModelError, match="was replaced or written to"):
        model.load()
    model.close()
    assert driver.pinned_bytes == driver.n_waiting == cuda.held_bytes() == 0
    assert model.host.allocations.given_bytes == 0


async def test_memory_that_cannot_be_pinned_is_told_and_used(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    asked = [Generate(tuple(range(5)), Sampling(temperature=0), n_predict=4)]
    pinned, _ = opened(path, (0, 1, 2))
    async with serving(pinned) as engine:
        expected = await answers(engine, asked)
    assert not caplog.records
    pageable, _ = opened(path, (0, 1, 2), EmulatedDriver(COMPILED, can_pin=False))
    async with serving(pageable) as engine:
        assert await answers(engine, asked) == expected
    assert "cuda:0 loads slowly" in caplog.text
    assert "cannot be locked" in caplog.text


@pytest.mark.parametrize("said_bytes", [None, 1, 123 << 20])
def test_measured_memory_is_what_is_said_of_this_process_where_that_is_said(
    said_bytes: int | None, path: Path
) -> None:
    cuda = CudaBackend(DEVICE, EmulatedDriver(COMPILED), lambda: said_bytes)
    spec = ModelSpec("tiny", "sha256:0", str(path), 0)
    placement = (LayerPlacement(DEVICE, (0, 1, 2)),)
    model = Model.open(spec, OPTIONS, placement, {"cpu": CpuBackend(2), DEVICE: cuda})
    assert model.allocate()
    device = next(one for one in model.report().devices if one.id == DEVICE)
    items = (*device.weights, *device.cache, device.graph, device.overhead)
    given_bytes = cuda.allocations.given_bytes
    held_bytes = given_bytes if said_bytes in (None, 1) else said_bytes  # 1: of somebody else
    assert sum(item.measured_bytes for item in items) == held_bytes
    model.close()
