"""A scheduler and a runner host in the test's own process, over real sockets; fake runners are processes."""

import os
import sys
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from pathlib import Path

import msgspec
import trio

from actors.actor import Service
from actors.config import Config
from actors.errors import PeerGone
from actors.inherited import bind_unix, listener_of, make_run_dir
from actors.link import ItemStream, Link, Replies, connect, serve
from actors.protocol import (
    Acquire,
    CpuInfo,
    Device,
    Devices,
    Explain,
    Explanation,
    GetStats,
    Lease,
    ListLoaded,
    LoadDecision,
    Loaded,
    LoadedModel,
    LoadOptions,
    LoadProgress,
    MeasureDevices,
    ModelSpec,
    Request,
    Stats,
    SubscribeDevices,
    Unload,
    WaitingModel,
)
from actors.runner.host.service import RunnerHost
from actors.scheduler.service import Scheduler
from tests.actors.fake_runner import Script

FAKE_RUNNER = (sys.executable, "-m", "tests.actors.fake_runner")
MIB = 1 << 20


class FakeDiscovery:
    """A CPU, and GPUs if the test adds some, with as much free memory as the test says."""

    def __init__(self, free_bytes: int) -> None:
        self._devices: dict[str, Device] = {}
        self._changed = trio.Event()
        self.add("cpu", 1 << 40, free_bytes)

    def add(self, device: str, total_bytes: int, free_bytes: int) -> None:
        """A device; one whose id is not "cpu" is a discrete GPU."""
        library = "cpu" if device == "cpu" else "fake"
        self._devices[device] = Device(device, library, device, total_bytes, free_bytes)
        self._tell()

    def set_free(self, free_bytes: int, device: str = "cpu") -> None:
        """Tell all subscribers."""
        self.set_free_in_silence(free_bytes, device)
        self._tell()

    def set_free_in_silence(self, free_bytes: int, device: str) -> None:
        """For whoever asks."""
        self._devices[device] = msgspec.structs.replace(self._devices[device], free_bytes=free_bytes)

    def _tell(self) -> None:
        self._changed.set()
        self._changed = trio.Event()

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        task_status.started()
        await trio.sleep_forever()

    async def handle(self, request: Request, replies: Replies) -> None:
        assert isinstance(request, SubscribeDevices | MeasureDevices)
        while True:
            changed = self._changed
            cpu = CpuInfo(model="fake", n_cores=1, n_threads=1, instruction_sets=())
            await replies.send(Devices(cpu, tuple(self._devices.values())))
            if isinstance(request, MeasureDevices):
                return
            await changed.wait()

    def gauges(self) -> dict[str, float]:
        return {}


class Running:
    """A service that serves its socket until stopped."""

    def __init__(self) -> None:
        self.scope = trio.CancelScope()
        self.ended = trio.Event()

    async def stop(self) -> None:
        """As if the actor was told to stop; returns when it has."""
        self.scope.cancel()
        await self.ended.wait()

    async def run(
        self,
        name: str,
        service: Service,
        config: Config,
        *,
        task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        async def handle(request: Request, replies: Replies) -> None:
            if isinstance(request, GetStats):
                await replies.send(Stats(name, 0, "test", 0.0, service.gauges()))
            else:
                await service.handle(request, replies)

        async def run_service(*, task_status: trio.TaskStatus[None]) -> None:
            await service.run(task_status=task_status)

        path = config.socket_address(name).removeprefix("unix:")
        try:
            with self.scope:
                async with listener_of(bind_unix(path)) as listener, trio.open_nursery() as nursery:
                    await nursery.start(run_service)
                    task_status.started()
                    await serve(listener, handle, name=name)
        finally:
            os.unlink(path)
            self.ended.set()


class Rig:
    """What a test drives."""

    def __init__(
        self,
        directory: Path,
        config: Config,
        nursery: trio.Nursery,
        make_host: Callable[[Config], Service],
    ) -> None:
        self._make_host = make_host
        self.directory = directory
        self.config = config
        self.discovery = FakeDiscovery(100 * MIB)
        self._nursery = nursery
        self.link: Link
        self.discovery_running: Running
        self.host: Service
        self.host_running: Running

    async def start(self, name: str, service: Service) -> Running:
        """Serve `service` at the socket of that name."""
        running = Running()
        await self._nursery.start(running.run, name, service, self.config)
        return running

    def model(self, name: str, script: Script | None = None) -> ModelSpec:
        """A model file with this script."""
        path = self.directory / f"{name}.json"
        path.write_bytes(msgspec.json.encode(script or Script()))
        return ModelSpec(name=name, digest=f"sha256:{name}", path=str(path), size_bytes=1)

    def acquiring(
        self,
        model: ModelSpec,
        options: LoadOptions | None = None,
        keep_alive_s: float | None = None,
        over: Link | None = None,
    ) -> "Asking":
        """An Acquire, for the length of a block or until `release`."""
        request = Acquire(model=model, options=options or LoadOptions(), keep_alive_s=keep_alive_s)
        return Asking(over or self.link, request)

    @asynccontextmanager
    async def leased(
        self,
        model: ModelSpec,
        options: LoadOptions | None = None,
        keep_alive_s: float | None = None,
        over: Link | None = None,
    ) -> AsyncGenerator[Lease, None]:
        """A lease, for the length of the block."""
        async with self.acquiring(model, options, keep_alive_s, over) as asking:
            yield await asking.lease()

    @asynccontextmanager
    async def connected(self) -> AsyncGenerator[None, None]:
        """`link` to a scheduler that is coming up."""
        address = self.config.socket_address("scheduler")
        while True:
            try:
                async with connect(address, name="test"):
                    break
            except PeerGone:
                await self.pause()
        async with connect(address, name="test") as self.link:
            yield

    async def restart_host(self) -> None:
        """End the host, its runners with it, and start another."""
        await self.host_running.stop()
        await self.start_host()

    async def start_host(self) -> None:
        """The runner host, with fake runners."""
        self.host = self._make_host(self.config)
        self.host_running = await self.start("host", self.host)

    async def pause(self) -> None:
        """Between two looks at another process."""
        await trio.sleep(0.01)

    async def waiting(self) -> dict[str, WaitingModel]:
        """What somebody waits for, by name."""
        answer = await self.link.ask(ListLoaded(), Loaded)
        return {each.model.name: each for each in answer.waiting}

    async def decision(self, model: ModelSpec) -> LoadDecision:
        """The latest load of a model."""
        (decision,) = (await self.link.ask(Explain(digest=model.digest), Explanation)).loads
        return decision

    async def unload(self, model: ModelSpec) -> None:
        """Ask to unload; returns when the scheduler has accepted it."""
        async with self.link.request(Unload(model.digest)) as items:
            assert [item async for item in items] == []

    def other_link(self) -> AbstractAsyncContextManager[Link]:
        """A second client's link to the scheduler."""
        return connect(self.config.socket_address("scheduler"), name="other")

    async def loaded(self) -> dict[str, LoadedModel]:
        """What is loaded, by name."""
        answer = await self.link.ask(ListLoaded(), Loaded)
        return {model.model.name: model for model in answer.models}

    async def gauges(self) -> dict[str, float]:
        """The scheduler's."""
        return (await self.link.ask(GetStats(), Stats)).gauges

    async def why(self) -> str:
        """The scheduler's decisions, joined."""
        return "\n".join((await self.link.ask(Explain(), Explanation)).decisions)

    async def until_waiting(self, model: ModelSpec, words: str) -> None:
        """Wait until those who wait for this model are told these words."""

        async def holds() -> bool:
            waiting = await self.waiting()
            return model.name in waiting and words in waiting[model.name].reason

        await until(holds)

    async def until_loaded(self, *names: str) -> None:
        """Wait for exactly these to be loaded."""

        async def holds() -> bool:
            return set(await self.loaded()) == set(names)

        await until(holds)

    async def until_runners(self, n: int) -> None:
        """Wait for so many runner processes."""

        async def holds() -> bool:
            gauges = self.host.gauges()
            return gauges["runners"] + gauges["runners_starting"] == n

        await until(holds)

    async def until_gauge(self, gauge: str, value: float) -> None:
        """Wait for a gauge of the scheduler."""

        async def holds() -> bool:
            return (await self.gauges()).get(gauge) == value

        await until(holds)


async def until(holds: Callable[[], Awaitable[bool]]) -> None:
    """Look until it holds; the rig's own deadline is the limit."""
    while not await holds():  # noqa: ASYNC110  # other processes give no event to wait for
        await trio.sleep(0.01)


class Asking:
    """An Acquire under way."""

    def __init__(self, link: Link, request: Acquire) -> None:
        self._link, self._request = link, request
        self._stack = AsyncExitStack()
        self.items: ItemStream

    async def __aenter__(self) -> "Asking":
        self.items = await self._stack.enter_async_context(self._link.request(self._request))
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.release()

    async def release(self) -> None:
        """Close the stream: the lease, or the wait for it, is over."""
        await self._stack.aclose()

    async def lease(self) -> Lease:
        """The lease that follows the news."""
        async for item in self.items:
            if isinstance(item, Lease):
                return item
        raise AssertionError("an Acquire ended without a lease")

    async def until_phase(self, phase: str) -> LoadProgress:
        """Read news until the load is in this phase."""
        async for item in self.items:
            if isinstance(item, LoadProgress) and item.phase == phase:
                return item
        raise AssertionError(f"an Acquire ended before {phase}")


@asynccontextmanager
async def rig(
    directory: Path,
    *,
    with_scheduler: bool = True,
    make_host: Callable[[Config], Service] | None = None,
    make_discovery: Callable[[Config], Service] | None = None,
    command: tuple[str, ...] = FAKE_RUNNER,
    **settings: object,
) -> AsyncGenerator[Rig, None]:
    """Discovery, host and scheduler, started; all ended at the end of the block.  Fails after 30 s.

    `command` starts a runner of the ordinary host; `make_host` brings a host of another kind, and
    `make_discovery` a discovery in place of the fake one.
    """
    run_dir = directory / "run"
    make_run_dir(str(run_dir))
    config = msgspec.convert({"run_dir": str(run_dir)} | settings, Config)
    with trio.fail_after(30):
        async with trio.open_nursery() as nursery:
            made = Rig(directory, config, nursery, make_host or (lambda config: RunnerHost(config, command)))
            discovery = made.discovery if make_discovery is None else make_discovery(config)
            made.discovery_running = await made.start("discovery", discovery)
            await made.start_host()
            if with_scheduler:
                await made.start("scheduler", Scheduler(config))
                async with connect(config.socket_address("scheduler"), name="test") as made.link:
                    yield made
            else:
                yield made
            await made.host_running.stop()
            nursery.cancel_scope.cancel()
