"""Random sequences of loads, unloads, cancels, kills and restarts leave nothing behind.

The scheduler, its sockets and messages are real; runners are tasks, so that hundreds of lives take seconds.
"""

import os
import random
from collections import Counter
from contextlib import AbstractAsyncContextManager
from pathlib import Path

import pytest
import trio

from actors.errors import RuntimeFault
from actors.link import Link, connect
from actors.protocol import Acquire, Lease, LoadOptions, ModelSpec, Unload
from actors.scheduler.service import Scheduler
from tests.actors.fake_runner import Script
from tests.actors.inside import InsideHost
from tests.actors.rig import MIB, Rig, Running, rig

N_SEQUENCES = 20  # in each of the tests below
N_STEPS = 12
TOTAL_MIB = {"cpu": 1000, "gpu:0": 1500, "gpu:1": 1200}
SIZES_MIB = {"tiny": 3, "small": 150, "middle": 500, "large": 900, "huge": 5000}


class Chaos:
    """One seeded run: asks, cancels, unloads and kills at random, and tells discovery the truth."""

    def __init__(self, runtime: Rig, host: InsideHost, seed: int) -> None:
        self._runtime = runtime
        self._host = host
        self._random = random.Random(seed)
        self._scheduler: Running
        self._clients: list[trio.CancelScope] = []
        self._models = [
            runtime.model(name, Script(weight_bytes=n_mib * MIB // 3, gate=str(runtime.directory / "open")))
            for name, n_mib in SIZES_MIB.items()
        ]
        self.n_leases = 0
        self.n_refused = 0

    async def run(self) -> None:
        """A sequence, from nothing to nothing."""
        gate = self._runtime.directory / "open"
        open_gate(gate)
        await self.start_scheduler()
        async with trio.open_nursery() as nursery:
            for _ in range(N_STEPS):
                await self._step(nursery, gate)
                await self._tell_discovery()
            open_gate(gate)
            for scope in self._clients:
                scope.cancel()
        await self._until_nothing_is_left()
        await self._scheduler.stop()

    async def start_scheduler(self) -> None:
        self._scheduler = await self._runtime.start("scheduler", Scheduler(self._runtime.config))

    async def _step(self, nursery: trio.Nursery, gate: Path) -> None:
        draw = self._random.random()
        if draw < 0.5:
            await nursery.start(self._client, self._random.choice(self._models))
        elif draw < 0.65 and self._clients:
            self._random.choice(self._clients).cancel()
        elif draw < 0.75 and self._host.runners:
            self._host.kill(self._random.choice(sorted(self._host.runners)))
        elif draw < 0.85:
            await self._unload(self._random.choice(self._models))
        elif draw < 0.93:
            (open_gate if self._random.random() < 0.6 else close_gate)(gate)
        else:
            await self._scheduler.stop()  # its runners live on, and its successor hears of them
            await self.start_scheduler()
        for _ in range(self._random.choice((0, 1, 10, 100, 400))):
            await trio.lowlevel.checkpoint()

    async def _client(self, model: ModelSpec, *, task_status: trio.TaskStatus[None]) -> None:
        options = LoadOptions(n_gpu=self._random.choice((-1, -1, 0)), n_ctx=self._random.choice((0, 0, 512)))
        request = Acquire(model, options, self._random.choice((None, 0.0, 60.0, -1.0)))
        with trio.CancelScope() as scope:
            self._clients.append(scope)
            task_status.started()
            try:
                async with self._linked() as link, link.request(request) as items:
                    async for item in items:
                        self.n_leases += isinstance(item, Lease)
            except RuntimeFault:
                self.n_refused += 1  # killed, unloaded, restarted or refused: told, not silent

    async def _unload(self, model: ModelSpec) -> None:
        async with self._linked() as link, link.request(Unload(model.digest)) as items:
            async for item in items:
                raise AssertionError(item)

    def _linked(self) -> AbstractAsyncContextManager[Link]:
        return connect(self._runtime.config.socket_address("scheduler"), name="chaos")

    async def _tell_discovery(self) -> None:
        """What is free: all but what living runners have allocated.  Never less than nothing."""
        taken = Counter[str]()
        for runner in self._host.runners.values():
            taken.update(runner.held_bytes())
        for device, n_mib in TOTAL_MIB.items():
            assert taken[device] <= n_mib * MIB, f"{device} was promised twice: {taken[device] / MIB} MiB"
            # mapped weights count as free to the kernel
            free = n_mib * MIB if device == "cpu" else n_mib * MIB - taken[device]
            self._runtime.discovery.set_free(free, device)

    async def _until_nothing_is_left(self) -> None:
        """Every lease is gone; what is idle is unloaded; then nothing may be left."""
        async with self._linked() as link:
            self._runtime.link = link
            while await self._n_held(("leases", "queued")):
                await self._runtime.pause()
            while await self._n_held(("held_bytes:", "models_")) or self._host.gauges()["runners"]:
                for model in self._models:
                    await self._unload(model)
                await self._tell_discovery()
                await self._runtime.pause()
        assert self._host.gauges() == {"runners": 0, "runners_starting": 0}
        assert set(os.listdir(self._runtime.config.run_dir)) == {
            "discovery.sock", "host.sock", "scheduler.sock"
        }  # fmt: skip

    async def _n_held(self, gauges: tuple[str, ...]) -> float:
        found = await self._runtime.gauges()
        return sum(n for name, n in found.items() if name.startswith(gauges))


def open_gate(gate: Path) -> None:
    """Loads that wait for it go on."""
    gate.touch()


def close_gate(gate: Path) -> None:
    """Loads stop before they are ready, though they go on talking."""
    gate.unlink(missing_ok=True)


@pytest.mark.parametrize("start", range(0, 10 * N_SEQUENCES, N_SEQUENCES))
async def test_random_lives_leave_nothing_behind_and_promise_nothing_twice(run_dir: Path, start: int) -> None:
    async with rig(run_dir, with_scheduler=False, make_host=InsideHost, max_loaded=3) as runtime:
        host = runtime.host
        assert isinstance(host, InsideHost)
        n_files = len(os.listdir("/proc/self/fd"))
        n_leases = 0
        for device, n_mib in TOTAL_MIB.items():
            runtime.discovery.add(device, n_mib * MIB, n_mib * MIB)
        for seed in range(start, start + N_SEQUENCES):
            chaos = Chaos(runtime, host, seed)
            await chaos.run()
            n_leases += chaos.n_leases
        assert n_leases > N_SEQUENCES
        assert host.n_spawned > N_SEQUENCES
        assert len(os.listdir("/proc/self/fd")) <= n_files
