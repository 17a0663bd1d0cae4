"""A runner process on simulated accelerators: what it holds at every step, and after every way to end."""

import os
import signal
from collections.abc import Mapping
from pathlib import Path

import pytest
import trio

from actors.errors import RequestError
from actors.link import Link, connect
from actors.protocol import (
    Alloc,
    Commit,
    Fit,
    Generate,
    GetStats,
    LoadOptions,
    LoadProgress,
    MemoryReport,
    ModelSpec,
    Sampling,
    Stats,
)
from kernels.sim.machine import SimMachine
from tests.actors.runner_process import CEILING_S, close, generate, report_of, runner, told
from tests.actors.sim_models import HOST, measured, placed, two_devices
from tests.actors.test_model import write_header
from tests.golden import tiny as t

A, B = "sim:0", "sim:1"
TINY = t.VARIANTS["llama"]
OPTIONS = LoadOptions(n_ctx=64, n_batch=16, n_parallel=2, n_thread=1)
SPLIT = placed((A, B, HOST))
GREEDY = Generate("hello", Sampling(temperature=0), n_predict=8)


@pytest.fixture
def machine(tmp_path: Path) -> SimMachine:
    return two_devices(str(tmp_path / "sim"))


@pytest.fixture
def settings(tmp_path: Path) -> Mapping[str, str]:
    return {"RUNTIME_SIM": str(tmp_path / "sim")}


@pytest.fixture(scope="module")
def spec(tmp_path_factory: pytest.TempPathFactory) -> ModelSpec:
    path = tmp_path_factory.mktemp("runner") / "tiny.gguf"
    t.write(path, TINY, t.weights(TINY))
    return ModelSpec("tiny:latest", "sha256:0", str(path), path.stat().st_size)


@pytest.fixture(scope="module")
def huge(tmp_path_factory: pytest.TempPathFactory) -> ModelSpec:
    """A file of 38 GB, most of it a hole: reading all of it would take a while."""
    path = tmp_path_factory.mktemp("huge") / "huge.gguf"
    write_header(path, n_layer=80, n_embd=8192, n_ff=28672)
    return ModelSpec("huge:latest", "sha256:1", str(path), path.stat().st_size)


def used(machine: SimMachine) -> tuple[int, int]:
    return machine.used(A), machine.used(B)


def allocators(stats: Stats) -> dict[str, float]:
    return {name: value for name, value in stats.gauges.items() if name.startswith("device_")}


async def test_each_step_of_a_load_holds_what_it_reports_and_closing_holds_nothing(
    tmp_path: Path, spec: ModelSpec, machine: SimMachine, settings: Mapping[str, str]
) -> None:
    async with runner(tmp_path, **settings) as link:
        fitted = await link.ask(Fit(spec, OPTIONS, SPLIT), MemoryReport)
        assert used(machine) == (0, 0)
        allocating, allocated = await told(link, Alloc(spec, OPTIONS, SPLIT))
        assert {item.phase for item in allocating} == {"allocating"}
        held = measured(allocated)
        assert used(machine) == (held[A], held[B])
        n_before = machine.n_allocations(A), machine.n_allocations(B)
        reading, loaded = await told(link, Commit())
        assert [item.phase for item in reading] == sorted((i.phase for i in reading), reverse=True)
        assert {item.phase for item in reading} == {"reading", "finalising"}
        assert (machine.n_allocations(A), machine.n_allocations(B)) == n_before
        assert (measured(loaded)[A], measured(loaded)[B]) == used(machine)
        before = allocators(await link.ask(GetStats(), Stats))
        assert before["device_allocations_total:sim:0"] > 0
        await generate(link, GREEDY)
        assert allocators(await link.ask(GetStats(), Stats)) == before
        planned = {d.id: [w.planned_bytes for w in d.weights] for d in fitted.devices}
        assert {d.id: [w.measured_bytes for w in d.weights] for d in loaded.devices} == planned
        await close(link)
        assert used(machine) == (0, 0)


async def test_a_split_model_answers_as_the_host_alone(
    tmp_path: Path, spec: ModelSpec, machine: SimMachine, settings: Mapping[str, str]
) -> None:
    async with runner(tmp_path, **settings) as link:
        texts: list[str] = []
        for layers in ((), SPLIT, placed((B, B, B))):
            await told(link, Alloc(spec, OPTIONS, layers))
            await told(link, Commit())
            texts.append((await generate(link, GREEDY))[0])
            await close(link)
    assert len(texts[0]) > 0
    assert texts[1:] == texts[:1] * 2


async def test_a_refused_layout_leaves_nothing_and_the_next_one_loads(
    tmp_path: Path, spec: ModelSpec, machine: SimMachine, settings: Mapping[str, str]
) -> None:
    async with runner(tmp_path, **settings) as link:
        machine.fail_allocation(B, 2)
        report = await report_of(link, Alloc(spec, OPTIONS, SPLIT))
        assert "sim:1 could not allocate" in report.failure
        assert used(machine) == (0, 0)
        assert not (await report_of(link, Alloc(spec, OPTIONS, placed((A, A, A))))).failure
        assert machine.holders(B) == ()


async def test_a_killed_runner_holds_nothing(
    tmp_path: Path, spec: ModelSpec, machine: SimMachine, settings: Mapping[str, str]
) -> None:
    async with runner(tmp_path, **settings) as link:
        await report_of(link, Alloc(spec, OPTIONS, SPLIT))
        assert min(used(machine)) > 0
        (pid,) = machine.holders(A)
        os.kill(pid, signal.SIGKILL)
        with trio.fail_after(CEILING_S):
            while used(machine) != (0, 0):  # noqa: ASYNC110  # the kernel tells nobody but its parent
                await trio.sleep(0.001)


async def until_reading(link: Link, huge: ModelSpec, *, task_status: trio.TaskStatus[None]) -> None:
    """Commit the huge model; started when its data is being read."""
    async with link.request(Commit()) as stream:
        async for item in stream:
            assert isinstance(item, LoadProgress)
            task_status.started()
            async for _ in stream:
                continue


async def test_closing_a_load_that_is_being_read_ends_it(
    tmp_path: Path, huge: ModelSpec, spec: ModelSpec, machine: SimMachine, settings: Mapping[str, str]
) -> None:
    ended: list[RequestError] = []

    async def commit(link: Link, *, task_status: trio.TaskStatus[None]) -> None:
        try:
            await until_reading(link, huge, task_status=task_status)
        except* RequestError as group:
            ended.extend(e for e in group.exceptions if isinstance(e, RequestError))

    async with runner(tmp_path, **settings) as link:
        layers = placed((*[HOST] * 80, A))  # the output layer has a device's memory
        await report_of(link, Alloc(huge, OPTIONS, layers))
        assert machine.used(A) > 0
        with trio.fail_after(CEILING_S):
            async with trio.open_nursery() as nursery:
                await nursery.start(commit, link)
                await close(link)
        assert used(machine) == (0, 0)
        assert "closed while it loaded" in str(ended)
        await told(link, Alloc(spec, OPTIONS, SPLIT))
        await told(link, Commit())
        assert (await generate(link, GREEDY))[1].predicted_tokens == 8


async def test_a_load_whose_asker_is_gone_ends_and_leaves_the_runner_empty(
    tmp_path: Path, huge: ModelSpec, spec: ModelSpec, machine: SimMachine, settings: Mapping[str, str]
) -> None:
    async with runner(tmp_path, **settings) as link:
        async with connect(f"unix:{tmp_path}/runner-t.sock", name="asker") as asker:
            await report_of(asker, Alloc(huge, OPTIONS, placed((*[HOST] * 80, A))))
            async with asker.request(Commit()) as stream:
                assert isinstance(await stream.receive(), LoadProgress)
        with trio.fail_after(CEILING_S):
            while used(machine) != (0, 0):  # noqa: ASYNC110  # another process gives no event to wait for
                await trio.sleep(0.001)
            await report_of(link, Alloc(spec, OPTIONS, SPLIT))
        assert (await link.ask(GetStats(), Stats)).name == "runner-t"
