"""The discovery actor as a process, and its service on made-up machines."""

import os
from pathlib import Path

import pytest
import trio.testing

from actors.config import Config
from actors.discovery import service
from actors.discovery.service import Discovery, measure_host, read_file
from actors.link import connect
from actors.protocol import Devices, LibraryReport, SubscribeDevices
from tests.actors.test_link import linked
from tests.processes import environment, started, wait_stats


async def test_a_subscriber_hears_at_once_what_there_is(run_dir: Path) -> None:
    async with started("actors.discovery", environ=environment(run_dir)):
        await wait_stats(run_dir, "discovery")
        async with (
            connect(f"unix:{run_dir}/discovery.sock", name="test") as link,
            link.request(SubscribeDevices()) as items,
        ):
            devices = await items.receive()
    assert isinstance(devices, Devices)
    cpu = devices.devices[0]
    assert (cpu.id, cpu.library, cpu.is_usable) == ("cpu", "cpu", True)
    assert 0 < cpu.free_bytes <= cpu.total_bytes
    assert 1 <= devices.cpu.n_cores <= devices.cpu.n_threads


def test_this_machine_can_be_measured() -> None:
    devices = measure_host(read_file, frozenset(os.sched_getaffinity(0)))
    assert devices.devices[0].total_bytes > 0


async def test_every_change_is_told_and_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    available_kib = iter((800, 800, 795, 700))
    current = [800]

    def read(path: str) -> str | None:
        return f"MemTotal: 1000 kB\nMemAvailable: {current[0]} kB\n" if path == "/proc/meminfo" else None

    monkeypatch.setattr(service, "read_file", read)
    discovery = Discovery(Config())
    for library in discovery._libraries:
        library.report = LibraryReport(library.name, "none")
    await discovery._measure_host()
    async with linked(discovery.handle) as link, link.request(SubscribeDevices()) as items:
        told: list[int] = []
        for kib in available_kib:
            current[0] = kib
            await discovery._measure_host()
            await trio.testing.wait_all_tasks_blocked()
        for _ in range(2):
            item = await items.receive()
            assert isinstance(item, Devices)
            told.append(item.devices[0].free_bytes // 1024)
    assert told == [800, 700]
