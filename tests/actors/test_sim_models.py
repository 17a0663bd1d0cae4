"""Models split over simulated accelerators and the host: the same tokens, memory to the byte, no growth."""

import copy
import random
from dataclasses import replace
from pathlib import Path

import gguf
import numpy as np
import pytest
import trio

from actors.errors import Unsupported
from actors.protocol import Generate, LoadOptions, MemoryItem, Sampling
from actors.runner.engine import Engine
from actors.runner.memory import STAGING
from actors.runner.model import Model
from actors.runner.staging import STAGING_BYTES
from actors.scheduler.attempts import Round, attempt_of, failing
from actors.scheduler.layout import Policy
from kernels.backend import Binding, Segment
from kernels.cpu.backend import CpuBackend
from kernels.host import processor_name
from kernels.memory import OutOfMemory
from kernels.sim.backend import SimBackend
from kernels.sim.machine import SimMachine
from tests.actors.sim_models import (
    HOST,
    MIB,
    answer,
    answers,
    measured,
    placed,
    planned,
    serving,
    two_devices,
)
from tests.golden import tiny as t
from tests.golden.test_quantised import as_kind

A, B = "sim:0", "sim:1"
Q4_K = gguf.GGMLQuantizationType.Q4_K
N_LAYER = 4
OPTIONS = LoadOptions(n_ctx=64, n_batch=16, n_parallel=3)
MODELS = {
    "llama": replace(t.VARIANTS["llama"], n_layer=N_LAYER),
    "tied": replace(t.VARIANTS["qwen2-tied"], n_layer=N_LAYER),
    "qwen3": replace(t.VARIANTS["qwen3"], n_layer=N_LAYER),
    "q4_k": t.Tiny("qwen3", n_embd=256, head_dim=64, n_ff=512, n_layer=N_LAYER, seed=11),
    "gemma3": replace(t.VARIANTS["gemma3"], n_layer=N_LAYER, period=2),
    "lfm2": replace(t.VARIANTS["lfm2"], n_layer=N_LAYER),
    "llama4": replace(t.VARIANTS["llama4"], n_layer=N_LAYER, expert_step=2),
    "t5": replace(t.VARIANTS["t5"], n_encoder=N_LAYER // 2, n_layer=N_LAYER // 2),
}
LAYOUTS = {
    "all on one": (A, A, A, A, A),
    "output on the host": (A, A, A, A, HOST),
    "over two": (A, A, B, B, B),
    "first layers on the host": (HOST, HOST, A, B, B),
    "output alone on a device": (HOST, HOST, HOST, HOST, A),
    "to and fro": (A, HOST, B, A, HOST),
}


@pytest.fixture
def machine(tmp_path: Path) -> SimMachine:
    return two_devices(str(tmp_path / "sim"))


@pytest.fixture(scope="module")
def paths(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("sim-models")
    for name, tiny in MODELS.items():
        weights = t.weights(tiny)
        rng = np.random.default_rng(1)
        quantised = {n: as_kind(Q4_K, v, rng) for n, v in weights.items() if v.ndim == 2 and name == "q4_k"}
        t.write(folder / name, tiny, weights | quantised)
    return {name: folder / name for name in MODELS}


def opened(path: Path, layout: tuple[str, ...], folder: Path, options: LoadOptions = OPTIONS) -> Model:
    return planned(path, layout, options, CpuBackend(2), str(folder / "sim"))


def requests(tiny: t.Tiny) -> list[Generate]:
    """Prompts over several batches and shorter ones, greedy and seeded."""
    prompt = tuple(t.prompt(tiny, 40))
    seeded = Sampling(seed=7, temperature=0.9, repeat_penalty=1.2)
    return [
        Generate(prompt, Sampling(temperature=0), n_predict=12),
        Generate(prompt[3:], seeded, n_predict=12),
        Generate(prompt[:5], Sampling(temperature=0), n_predict=30),
        Generate(prompt[:1], seeded, n_predict=12),
    ]


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS.keys())
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("llama", OPTIONS),
        ("tied", OPTIONS),
        ("q4_k", OPTIONS),
        ("gemma3", OPTIONS),
        ("lfm2", OPTIONS),
        ("llama4", OPTIONS),
        ("t5", OPTIONS),
        ("qwen3", LoadOptions(n_ctx=64, n_batch=16, n_parallel=3, kv_type="q8_0")),
    ],
    ids=["llama", "tied", "q4_k", "gemma3", "lfm2", "llama4", "t5", "q8_0 cache"],
)
async def test_every_layout_gives_the_tokens_of_the_host_alone(
    name: str,
    options: LoadOptions,
    layout: tuple[str, ...],
    paths: dict[str, Path],
    tmp_path: Path,
    machine: SimMachine,
) -> None:
    asked = requests(MODELS[name])
    async with serving(opened(paths[name], (HOST,) * 5, tmp_path, options)) as alone:
        expected = await answers(alone, asked)
    async with serving(opened(paths[name], layout, tmp_path, options)) as split:
        assert await answers(split, asked) == expected
    assert (machine.used(A), machine.used(B)) == (0, 0)


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS.keys())
@pytest.mark.parametrize("name", ["llama", "tied"])
def test_what_is_reported_is_what_the_devices_hold_to_the_byte(
    name: str, layout: tuple[str, ...], paths: dict[str, Path], tmp_path: Path, machine: SimMachine
) -> None:
    model = opened(paths[name], layout, tmp_path)
    fitted = model.report()
    assert (machine.used(A), machine.used(B)) == (0, 0)
    assert model.allocate()
    model.load()
    report = model.report()
    held = measured(report)
    assert {d: held.get(d, 0) for d in (A, B)} == {A: machine.used(A), B: machine.used(B)}
    for before, after in zip(fitted.devices, report.devices, strict=True):
        for fit, item in zip((*before.weights, *before.cache), (*after.weights, *after.cache), strict=True):
            assert fit.planned_bytes == item.planned_bytes == item.measured_bytes
        if after.id != HOST:
            assert after.overhead.planned_bytes == after.overhead.measured_bytes > 0
        assert (before.graph.planned_bytes, before.graph.status) == (after.graph.measured_bytes, "planned")
    assert report.input_weights.measured_bytes == report.input_weights.planned_bytes > 0
    model.close()
    assert (machine.used(A), machine.used(B)) == (0, 0)


def test_a_tied_embedding_is_charged_to_the_host_and_to_the_output_of_a_device(
    paths: dict[str, Path], tmp_path: Path, machine: SimMachine
) -> None:
    tiny = MODELS["tied"]
    embedding_bytes = tiny.n_vocab * tiny.n_embd * 4
    report = opened(paths["tied"], (HOST, HOST, HOST, HOST, A), tmp_path).report()
    device = next(d for d in report.devices if d.id == A)
    assert report.input_weights.planned_bytes == embedding_bytes
    assert device.weights[N_LAYER].planned_bytes >= embedding_bytes
    alone = opened(paths["tied"], (HOST,) * 5, tmp_path).report()
    assert alone.devices[0].weights[N_LAYER].planned_bytes < embedding_bytes


def test_a_report_names_the_devices_as_their_makers_do(
    paths: dict[str, Path], tmp_path: Path, machine: SimMachine
) -> None:
    machine.add_device(A, 64 * MIB, name="A card")
    report = opened(paths["llama"], (A, A, A, A, B), tmp_path).report()
    names = {device.id: device.name for device in report.devices}
    assert names == {HOST: processor_name(), A: "A card", B: "Simulated accelerator"}


def test_a_device_without_layers_is_left_alone(
    paths: dict[str, Path], tmp_path: Path, machine: SimMachine
) -> None:
    model = opened(paths["llama"], (A, A, A, A, HOST), tmp_path)
    assert model.allocate()
    assert (machine.holders(B), len(machine.holders(A))) == ((), 1)
    assert [d.id for d in model.report().devices] == [HOST, A]
    model.close()
    assert machine.holders(A) == ()


def test_a_device_that_is_not_there_is_refused_by_name(
    paths: dict[str, Path], tmp_path: Path, machine: SimMachine
) -> None:
    with pytest.raises(Unsupported, match="sim:9"):
        opened(paths["llama"], ("sim:9",) * 5, tmp_path)


def test_more_sequences_or_inputs_at_once_never_need_less(
    paths: dict[str, Path], tmp_path: Path, machine: SimMachine
) -> None:
    """The compute buffer is that of the larger of the two plans, whichever it is."""

    def graph_bytes(n_batch: int, n_parallel: int) -> int:
        options = LoadOptions(n_ctx=64, n_batch=n_batch, n_parallel=n_parallel)
        report = opened(paths["llama"], (A,) * 5, tmp_path, options).report()
        return report.devices[1].graph.planned_bytes

    assert graph_bytes(32, 1) > graph_bytes(8, 1)
    assert graph_bytes(8, 8) >= graph_bytes(8, 1)


def nth_failures(path: Path, folder: Path, machine: SimMachine) -> int:
    before = machine.n_allocations(A)
    model = opened(path, (A, A, A, A, A), folder)
    assert model.allocate()
    model.close()
    return machine.n_allocations(A) - before


def test_whichever_allocation_fails_it_is_named_and_everything_is_given_back(
    paths: dict[str, Path], tmp_path: Path, machine: SimMachine
) -> None:
    n = nth_failures(paths["llama"], tmp_path, machine)
    assert n == (N_LAYER + 1) + 2 * N_LAYER + 1  # weights, keys and values, compute buffer
    for nth in range(1, n + 1):
        machine.fail_allocation(A, nth)
        model = opened(paths["llama"], (A, A, A, A, A), tmp_path)
        assert not model.allocate()
        report = model.report()
        device = report.devices[1]
        items = (*device.weights, *device.cache, device.graph)
        expected = nth - 1 if nth <= 5 else 5 + (nth - 6) // 2 if nth < n else len(items) - 1
        assert [i for i, item in enumerate(items) if item.status == "failed"] == [expected]
        assert items[expected].planned_bytes > 0
        assert "sim:0 could not allocate" in report.failure
        assert " are free" in report.failure
        assert machine.used(A) == 0
        model.close()


def assert_fails_on(device: str, model: Model, machine: SimMachine) -> None:
    """One item of this device and no other is named, and the scheduler blames the device alone."""
    used = machine.used(A), machine.used(B)
    assert not model.allocate()
    report = model.report()
    failed = {
        d.id: [i.status for i in (*d.weights, *d.cache, d.graph, d.overhead)].count("failed")
        for d in report.devices
    }
    assert failed == {d.id: int(d.id == device) for d in report.devices}
    assert f"{device} could not allocate" in report.failure
    assert failing(attempt_of(Round.ALLOC, placed(SPLIT), report), (), Policy()) == {device}
    assert (machine.used(A), machine.used(B)) == used
    model.close()


SPLIT = LAYOUTS["first layers on the host"]


@pytest.mark.parametrize("name", ["llama", "tied"])
@pytest.mark.parametrize("device", [A, B])
def test_whichever_allocation_fails_on_one_of_two_devices_an_item_of_it_is_named(
    name: str, device: str, paths: dict[str, Path], tmp_path: Path, machine: SimMachine
) -> None:
    before = machine.n_allocations(device)
    model = opened(paths[name], SPLIT, tmp_path)
    assert model.allocate()
    n = machine.n_allocations(device) - before
    model.close()
    assert n > 3
    for nth in range(1, n + 1):
        machine.fail_allocation(device, nth)
        assert_fails_on(device, opened(paths[name], SPLIT, tmp_path), machine)


def test_whichever_allocation_fails_on_the_host_an_item_of_it_is_named(
    paths: dict[str, Path], tmp_path: Path, machine: SimMachine
) -> None:
    for nth in range(1, 2 * 2 + 2):  # keys and values of two layers, compute buffer
        host = CpuBackend(2, fail_allocation=nth)
        assert_fails_on(HOST, planned(paths["llama"], SPLIT, OPTIONS, host, str(tmp_path / "sim")), machine)


@pytest.mark.parametrize("device", [A, B])
def test_a_context_or_kernels_without_room_and_a_device_that_is_gone_are_named(
    device: str,
    paths: dict[str, Path],
    tmp_path: Path,
    machine: SimMachine,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def bind(backend: SimBackend, binding: Binding) -> Segment:
        """As with a real device, where a library of kernels takes memory, too."""
        if backend.name == device:
            raise OutOfMemory(device, MIB, "kernels")
        return bind_all(backend, binding)

    bind_all = SimBackend.bind
    with monkeypatch.context() as patched:
        patched.setattr(SimBackend, "bind", bind)
        assert_fails_on(device, opened(paths["llama"], SPLIT, tmp_path), machine)
    machine.take("game", device, machine.free(device))
    assert_fails_on(device, opened(paths["llama"], SPLIT, tmp_path), machine)
    machine.add_device(device, MIB, context_bytes=0)
    model = opened(paths["llama"], SPLIT, tmp_path)
    machine.remove_device(device)
    assert not model.allocate()
    report = model.report()
    assert failing(attempt_of(Round.ALLOC, placed(SPLIT), report), (), Policy()) == {device}
    model.close()


def test_memory_taken_between_fit_and_alloc_is_a_refusal_with_the_numbers(
    paths: dict[str, Path], tmp_path: Path, machine: SimMachine
) -> None:
    model = opened(paths["llama"], (A, A, A, A, A), tmp_path)
    machine.take_before_allocation("game", A, 61 * MIB)
    assert not model.allocate()
    assert "sim:0 could not allocate" in model.report().failure
    assert machine.used(A) == 61 * MIB
    model.close()


def test_a_device_that_is_pulled_out_between_fit_and_alloc_is_a_refusal(
    paths: dict[str, Path], tmp_path: Path, machine: SimMachine
) -> None:
    model = opened(paths["llama"], (A, A, B, B, HOST), tmp_path)
    machine.remove_device(B)
    assert not model.allocate()
    assert "sim:1 could not allocate 0 bytes for context: the device is gone" in model.report().failure
    assert machine.used(A) == 0
    model.close()


def test_a_context_without_room_is_a_refusal_of_the_overhead(
    paths: dict[str, Path], tmp_path: Path, machine: SimMachine
) -> None:
    machine.take("game", A, 62 * MIB)
    model = opened(paths["llama"], (A, A, A, A, HOST), tmp_path)
    assert not model.allocate()
    overhead = next(d for d in model.report().devices if d.id == A).overhead
    assert overhead == MemoryItem(3 * MIB, 0, "failed")
    assert machine.used(A) == 62 * MIB
    model.close()


class Given(Exception):
    """A load is not wanted any more."""


@pytest.mark.parametrize("at", [0, 3, 13])
def test_an_allocation_that_is_given_up_leaves_nothing(
    at: int, paths: dict[str, Path], tmp_path: Path, machine: SimMachine
) -> None:
    model = opened(paths["llama"], (A, A, B, B, HOST), tmp_path)
    n_told = 0

    def tell(*_: object) -> None:
        nonlocal n_told
        n_told += 1
        if n_told > at:
            raise Given

    with pytest.raises(Given):
        model.allocate(tell)
    assert (machine.used(A), machine.used(B)) == (0, 0)
    model.close()


async def test_mixed_work_after_a_load_allocates_nothing_on_any_device(
    paths: dict[str, Path], tmp_path: Path, machine: SimMachine
) -> None:
    tiny, rng = MODELS["llama"], random.Random(3)
    model = opened(paths["llama"], (HOST, A, A, B, B), tmp_path)
    async with serving(model) as engine:
        loaded = {name: copy.deepcopy(b.allocations) for name, b in model.backends.items()}
        ledger = [(machine.used(d), machine.n_allocations(d)) for d in (A, B)]
        machine.take("game", A, machine.free(A))  # nothing is left for anyone
        machine.take("game", B, machine.free(B))
        for n_prompt in range(1, 64):
            prompt = tuple(t.prompt(tiny, n_prompt))
            batch = [
                Generate(
                    prompt[rng.randrange(n_prompt) :],
                    Sampling(seed=i, temperature=rng.choice([0, 1])),
                    n_predict=rng.randrange(40),
                    n_logprobs=rng.choice([-1, 2]),
                )
                for i in range(rng.randrange(1, 6))
            ]
            if n_prompt % 3:
                await answers(engine, batch)
            else:
                await cancelled(engine, batch, rng.randrange(30))
        machine.give_back("game", A)
        machine.give_back("game", B)
        assert {name: b.allocations for name, b in model.backends.items()} == loaded
        assert [(machine.used(d), machine.n_allocations(d)) for d in (A, B)] == ledger


async def cancelled(engine: Engine, batch: list[Generate], n_steps: int) -> None:
    """Give requests up after a while."""
    async with trio.open_nursery() as nursery:
        for request in batch:
            nursery.start_soon(answer, engine, request)
        for _ in range(n_steps):
            await trio.lowlevel.checkpoint()
        nursery.cancel_scope.cancel()


def test_an_identical_layout_takes_nothing_more_to_commit(
    paths: dict[str, Path], tmp_path: Path, machine: SimMachine
) -> None:
    model = opened(paths["llama"], (A, A, B, B, HOST), tmp_path)
    assert model.allocate()
    before = {name: copy.deepcopy(b.allocations) for name, b in model.backends.items()}
    n_before = machine.n_allocations(A), machine.n_allocations(B)
    model.load()
    before[HOST].take(STAGING, STAGING_BYTES, STAGING_BYTES)  # which only a load needs
    assert {name: b.allocations for name, b in model.backends.items()} == before
    assert (machine.n_allocations(A), machine.n_allocations(B)) == n_before
    model.close()
