"""Tiny models on simulated accelerators, in the test's own process."""

import time
from collections.abc import AsyncGenerator, Callable, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from functools import partial

import trio

from actors.protocol import (
    Finished,
    Generate,
    LayerPlacement,
    LoadOptions,
    MemoryReport,
    ModelSpec,
    Sampling,
)
from actors.runner.devices import open_backends
from actors.runner.engine import Engine
from actors.runner.model import Model
from kernels.backend import Backend
from kernels.sim.machine import SimMachine
from tests.golden import tiny as t

HOST = "cpu"
MIB = 1 << 20


def two_devices(folder: str) -> SimMachine:
    """A large one, and one that rounds otherwise and has a larger context."""
    machine = SimMachine(folder)
    machine.add_device("sim:0", 64 * MIB, context_bytes=3 * MIB, granularity_bytes=4096)
    machine.add_device("sim:1", 32 * MIB, context_bytes=5 * MIB, granularity_bytes=64 << 10)
    return machine


def placed(devices: Sequence[str]) -> tuple[LayerPlacement, ...]:
    """Layer i on devices[i], the output layer last."""
    parts: dict[str, list[int]] = {}
    for layer, device in enumerate(devices):
        parts.setdefault(device, []).append(layer)
    return tuple(LayerPlacement(device, tuple(layers)) for device, layers in parts.items())


def planned(path: object, devices: Sequence[str], options: LoadOptions, host: Backend, sim_dir: str) -> Model:
    """The model with its layers on these devices; nothing is allocated."""
    layers = placed(devices)
    spec = ModelSpec("tiny", "sha256:0", str(path), 0)
    return Model.open(spec, options, layers, open_backends(host, layers, sim_dir))


@asynccontextmanager
async def serving(model: Model, clock: Callable[[], float] = time.perf_counter) -> AsyncGenerator[Engine]:
    """An engine on a model that is allocated and loaded here, and closed at the end.

    clock: by which it is measured at the load what is faster.
    """
    assert model.allocate(), model.report().failure
    await trio.to_thread.run_sync(partial(model.load, clock=clock))
    engine = Engine(model, max_queue=64)
    async with trio.open_nursery() as nursery:
        await nursery.start(engine.run)
        yield engine
        await engine.stop()
    model.close()


def long_and_short(tiny: t.Tiny, n_long: int, n_short: int, n_predict: int) -> list[Generate]:
    """Two requests: a long prompt, greedy, and its beginning, drawn with penalties."""
    prompt = tuple(t.prompt(tiny, n_long))
    seeded = Sampling(seed=7, temperature=0.9, repeat_penalty=1.2)
    return [
        Generate(prompt, Sampling(temperature=0), n_predict=n_predict),
        Generate(prompt[:n_short], seeded, n_predict=n_predict),
    ]


async def answer(engine: Engine, request: Generate) -> list[int]:
    """The tokens of one request."""
    tokens: list[int] = []
    async with engine.open(request) as sequence:
        while not isinstance(item := await sequence.receive(), Finished):
            engine.resume()
            tokens += item.tokens
    return tokens


async def answers(engine: Engine, requests: Iterable[Generate]) -> list[list[int]]:
    """The tokens of requests that are served together."""
    got: dict[int, list[int]] = {}

    async def one(index: int, request: Generate) -> None:
        got[index] = await answer(engine, request)

    async with trio.open_nursery() as nursery:
        for index, request in enumerate(requests):
            nursery.start_soon(one, index, request)
    return [got[index] for index in sorted(got)]


def measured(report: MemoryReport) -> Mapping[str, int]:
    """Measured bytes of each device, all kinds together."""
    return {
        d.id: sum(i.measured_bytes for i in (*d.weights, *d.cache, d.graph, d.overhead))
        for d in report.devices
    }
