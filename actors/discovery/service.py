"""The actor: measures, remembers what it told, and tells subscribers when it changes."""

import logging
import os
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Final

import msgspec
import trio

from actors.actor import not_understood
from actors.config import Config
from actors.discovery.cgroup import Read
from actors.discovery.cpu import describe_cpu
from actors.discovery.memory import measure_memory
from actors.discovery.news import is_news
from actors.discovery.probe import PERIOD_S
from actors.discovery.swap import measure_swap
from actors.link import Replies
from actors.protocol import Device, Devices, Request, SubscribeDevices

log = logging.getLogger(__name__)

MEASURE_S: Final = 2.0
PROBE_SILENCE_S: Final = 5 * PERIOD_S
"""The first line waits for the driver to wake up."""
PROBE_AGAIN_S: Final = 60.0
"""Until a driver is looked for again where none answered: it may have been loaded meanwhile."""
LINE_MAX_BYTES: Final = 1 << 20

_decode_gpus = msgspec.json.Decoder(tuple[Device, ...]).decode


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
        id="cpu",
        library="cpu",
        name=cpu.model,
        total_bytes=memory.total_bytes,
        free_bytes=memory.free_bytes,
        swap_bytes=measure_swap(read),
    )
    return Devices(cpu=cpu, devices=(host,))


class Discovery:
    """Answers SubscribeDevices; a subscriber that reads slowly gets the latest, not every step."""

    def __init__(self, config: Config) -> None:
        del config  # what exists does not depend on settings
        self._gpus: tuple[Device, ...] = ()
        self._told: Devices | None = None
        self._changed = trio.Event()
        self._n_subscribers = 0
        self._files = trio.CapacityLimiter(1)

    async def run(self, *, task_status: trio.TaskStatus[None]) -> None:
        """Measure now and every MEASURE_S."""
        await self._measure()
        task_status.started()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._watch_gpus)
            while True:
                await trio.sleep(MEASURE_S)
                await self._measure()

    async def handle(self, request: Request, replies: Replies) -> None:
        """SubscribeDevices: one Devices now, another at each change."""
        if not isinstance(request, SubscribeDevices):
            raise not_understood(request)
        self._n_subscribers += 1
        try:
            while True:
                changed = self._changed
                if self._told is not None:
                    await replies.send(self._told)
                await changed.wait()
        finally:
            self._n_subscribers -= 1

    def gauges(self) -> dict[str, float]:
        """Free and total memory by device, and who listens."""
        gauges = {"discovery_subscribers": float(self._n_subscribers)}
        for device in self._told.devices if self._told else ():
            gauges[f"device_free_bytes:{device.id}"] = float(device.free_bytes)
            gauges[f"device_total_bytes:{device.id}"] = float(device.total_bytes)
        return gauges

    async def _measure(self) -> None:
        affinity = frozenset(os.sched_getaffinity(0))
        host = await trio.to_thread.run_sync(measure_host, read_file, affinity, limiter=self._files)
        now = msgspec.structs.replace(host, devices=host.devices + self._gpus)
        if is_news(self._told, now):
            self._told = now
            self._changed.set()
            self._changed = trio.Event()

    async def _watch_gpus(self) -> None:
        """Run the probe for as long as it reports; when it ends, there are no GPUs until it reports again."""
        while True:
            await self._run_probe()
            self._gpus = ()
            await trio.sleep(PROBE_AGAIN_S)

    async def _run_probe(self) -> None:
        async with trio.open_nursery() as nursery:
            probe = partial(
                trio.run_process,
                [sys.executable, "-m", "actors.discovery.probe"],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                check=False,
            )
            process: trio.Process = await nursery.start(probe)
            if process.stdout is not None:
                await self._take_reports(process.stdout)
            nursery.cancel_scope.cancel()

    async def _take_reports(self, reports: trio.abc.ReceiveStream) -> None:
        line = bytearray()
        while len(line) < LINE_MAX_BYTES:
            data: bytes | bytearray | None = None
            with trio.move_on_after(PROBE_SILENCE_S):
                data = await reports.receive_some()
            if data is None:
                log.warning("the NVIDIA driver did not answer within %.0f s", PROBE_SILENCE_S)
                return
            if not data:
                return
            *lines, line = (line + data).split(b"\n")
            if lines:
                self._gpus = _decode_gpus(lines[-1])
                await self._measure()
