"""The actor: measures, remembers what it told, and tells subscribers when it changes."""

import logging
import os
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import Final

import msgspec
import trio

from actors.actor import not_understood
from actors.config import Config, idle_variables
from actors.discovery.absence import why_absent
from actors.discovery.cgroup import Read
from actors.discovery.cpu import describe_cpu
from actors.discovery.diagnosis import describe_host, versions, visibility
from actors.discovery.library import Library
from actors.discovery.memory import measure_memory
from actors.discovery.merge import HOST, RANK, Merged, merge
from actors.discovery.news import is_news
from actors.discovery.probes import COMMAND, Probes
from actors.discovery.swap import measure_swap
from actors.link import Replies
from actors.protocol import (
    Device,
    Devices,
    Diagnose,
    Diagnosis,
    LibraryReport,
    MeasureDevices,
    Request,
    SubscribeDevices,
)

log = logging.getLogger(__name__)

MEASURE_S: Final = 2.0
FIRST_S: Final = 10.0
"""The first answer waits so long for all libraries: no model should go to the CPU because a driver wakes up
slowly, and no driver that hangs should keep the others waiting."""
KERNELS_AFTER_S: Final = 5.0
"""The host's kernels are looked at when the start is over: it would cost half a second of it."""
READING_S: Final = 3.0
"""For an answer to MeasureDevices; a driver that takes longer keeps its last figures."""


def read_file(path: str) -> str | None:
    """The text of one of the kernel's files; None when it is not there or may not be read."""
    try:
        return Path(path).read_text(errors="replace")
    except OSError:
        return None


def measure_host(read: Read, affinity: frozenset[int]) -> Devices:
    """The host alone, as a device of its own."""
    cpu = describe_cpu(read, affinity)
    memory = measure_memory(read)
    host = Device(
        HOST,
        HOST,
        cpu.model,
        memory.total_bytes,
        memory.free_bytes,
        swap_bytes=measure_swap(read),
        memory_from="host",
    )
    return Devices(cpu=cpu, devices=(host,))


def libraries_of(config: Config) -> tuple[str, ...]:
    """The libraries to look at, the host's kernels among them."""
    wanted = tuple(name for name in RANK if config.library in ("", name) or name == HOST)
    return wanted if config.sim_dir else tuple(name for name in wanted if name != "sim")


def _off(name: str, config: Config) -> LibraryReport:
    is_unset = name == "sim" and not config.sim_dir
    reason = "no simulated machine is set" if is_unset else f'the setting library is "{config.library}"'
    return LibraryReport(name, "off", reason=reason)


def _pending(name: str) -> LibraryReport:
    return LibraryReport(name, "pending", reason="it has not been looked at yet")


class Discovery:
    """Answers SubscribeDevices; a subscriber that reads slowly gets the latest, not every step."""

    def __init__(
        self,
        config: Config,
        *,
        command: Sequence[str] = COMMAND,
        absent: Callable[[str], str | None] = why_absent,
        environ: Mapping[str, str] = os.environ,
        measure_every_s: float = MEASURE_S,
    ) -> None:
        self._config, self._environ = config, environ
        self._measure_every_s = measure_every_s
        probes = Probes(command, config.probe_timeout_s, absent)
        self._libraries = [
            Library(
                name,
                probes,
                self._publish,
                measure_every_s=measure_every_s,
                first_after_s=KERNELS_AFTER_S if name == HOST else 0.0,
            )
            for name in libraries_of(config)
        ]
        self._host: Devices | None = None
        self._merged = Merged((), ())
        self._told: Devices | None = None
        self._is_late = False  # FIRST_S are over
        self._changed = trio.Event()
        self._n_subscribers = 0
        self._files = trio.CapacityLimiter(1)

    async def run(self, *, task_status: trio.TaskStatus[None]) -> None:
        """Look at all libraries, side by side, and measure the host now and every `measure_every_s`."""
        for name, value in visibility(self._environ).items():
            log.warning('%s="%s" decides which devices there are', name, value)
        await self._measure_host()
        task_status.started()
        async with trio.open_nursery() as nursery:
            for library in self._libraries:
                nursery.start_soon(library.run)
            nursery.start_soon(self._stop_waiting)
            while True:
                await trio.sleep(self._measure_every_s)
                await self._measure_host()

    async def handle(self, request: Request, replies: Replies) -> None:
        """SubscribeDevices, MeasureDevices and Diagnose; see `protocol`."""
        match request:
            case SubscribeDevices():
                await self._serve_subscriber(replies)
            case MeasureDevices():
                await self._within(READING_S, [library.measure for library in self._libraries])
                await self._measure_host()
                await replies.send(await self._devices())
            case Diagnose():
                await replies.send(await self.diagnose(is_cached=request.is_cached))
            case _:
                raise not_understood(request)

    def gauges(self) -> dict[str, float]:
        """Free and total memory by device, who listens, and how often probes failed."""
        gauges = {"discovery_subscribers": float(self._n_subscribers)}
        gauges["probe_failures_total"] = float(sum(library.n_failures_total for library in self._libraries))
        for device in self._told.devices if self._told else ():
            gauges[f"device_free_bytes:{device.id}"] = float(device.free_bytes)
            gauges[f"device_total_bytes:{device.id}"] = float(device.total_bytes)
        return gauges

    async def _serve_subscriber(self, replies: Replies) -> None:
        self._n_subscribers += 1
        try:
            while True:
                changed = self._changed
                if self._told is not None:
                    await replies.send(self._told)
                await changed.wait()
        finally:
            self._n_subscribers -= 1

    async def _measure_host(self) -> None:
        affinity = frozenset(os.sched_getaffinity(0))
        self._host = await trio.to_thread.run_sync(measure_host, read_file, affinity, limiter=self._files)
        self._publish()

    async def _stop_waiting(self) -> None:
        await trio.sleep(FIRST_S)
        self._is_late = True
        self._publish()

    def _publish(self) -> None:
        """Tell everybody, if there is news and all libraries have been looked at."""
        known = [library.report for library in self._libraries if library.report is not None]
        is_awaited = any(library.report is None and library.name != HOST for library in self._libraries)
        if self._host is None or (is_awaited and not self._is_late):
            return
        self._merged = merge(self._host.devices[0], known)
        now = Devices(self._host.cpu, self._merged.usable)
        if is_news(self._told, now):
            self._told = now
            self._tell()

    def _tell(self) -> None:
        self._changed.set()
        self._changed = trio.Event()

    async def _devices(self) -> Devices:
        """As they are now, after the first look."""
        while self._told is None or self._host is None:
            await self._changed.wait()
        return Devices(self._host.cpu, self._merged.usable)

    async def _look_again(self) -> None:
        usable = {device.library for device in self._merged.usable if device.is_usable}
        wanted = [library.look_again for library in self._libraries if library.name not in usable]
        # a device's check comes after the look at its library, and has as long
        await self._within(2 * self._config.probe_timeout_s, wanted)

    async def _within(self, at_most_s: float, ask: Sequence[Callable[[], Awaitable[None]]]) -> None:
        with trio.move_on_after(at_most_s):
            async with trio.open_nursery() as nursery:
                for each in ask:
                    nursery.start_soon(each)

    async def diagnose(self, *, is_cached: bool = False) -> Diagnosis:
        """Everything there is to say, after another look at the libraries that offer nothing."""
        if not is_cached:
            await self._look_again()
        devices = await self._devices()
        report = await trio.to_thread.run_sync(describe_host, read_file, limiter=self._files)
        told = {library.name: library.told() or _pending(library.name) for library in self._libraries}
        return Diagnosis(
            cpu=devices.cpu,
            host=report,
            devices=devices.devices,
            filtered=self._merged.filtered,
            libraries=tuple(told.get(name) or _off(name, self._config) for name in RANK),
            variables=visibility(self._environ),
            idle_variables=idle_variables(self._environ),
            versions=versions(),
        )


async def diagnose(config: Config, environ: Mapping[str, str]) -> Diagnosis:
    """What a discovery that has just started would say; takes as long as its slowest probe."""
    discovery = Discovery(config, environ=environ)
    async with trio.open_nursery() as nursery:
        await nursery.start(discovery.run)
        diagnosis = await discovery.diagnose()
        nursery.cancel_scope.cancel()
    # we end here, so nothing will be looked at again
    ended = (msgspec.structs.replace(report, next_try_s=None) for report in diagnosis.libraries)
    return msgspec.structs.replace(diagnosis, libraries=tuple(ended))
