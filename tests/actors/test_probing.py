"""Discovery with real probe processes that crash, hang, are late, speak rubbish, or find something else."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import pytest
import trio

from actors.config import Config
from actors.discovery import service
from actors.discovery.probes import COMMAND, Probes
from actors.discovery.service import Discovery
from actors.link import ItemStream, Link
from actors.protocol import (
    Device,
    Devices,
    Diagnose,
    Diagnosis,
    LibraryReport,
    MeasureDevices,
    SubscribeDevices,
)
from kernels.sim.machine import SimMachine
from kernels.sim.state import ProbeScript
from tests.actors.test_link import linked
from tests.processes import ROOT, environment, is_alive, kill, started, wait_stats, wait_until

FAKES = ROOT / "tests" / "fake_drivers"
MIB = 1 << 20
CEILING_S = 60.0
"""For broken builds; nothing here waits for it."""


@pytest.fixture
def machine(tmp_path: Path) -> SimMachine:
    """A simulated machine with two accelerators."""
    made = SimMachine(tmp_path / "sim")
    made.add_device("sim:0", 64 * MIB, uuid="SIM-A")
    made.add_device("sim:1", 32 * MIB)
    return made


@pytest.fixture
def sim_config(tmp_path: Path, machine: SimMachine, monkeypatch: pytest.MonkeyPatch) -> Config:
    """Settings with that machine; the probes find it in the environment."""
    monkeypatch.setenv("RUNTIME_SIM", str(tmp_path / "sim"))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    return Config(sim_dir=str(tmp_path / "sim"), library="sim")


def may_be_here(library: str) -> None:
    """For the machine on which the tests run says nothing about the drivers that they bring."""


class Subscriber:
    """Hears what discovery tells, and asks it."""

    def __init__(self, link: Link, items: ItemStream) -> None:
        self._link, self._items = link, items

    async def until(self, is_so: Callable[[dict[str, Device]], bool]) -> dict[str, Device]:
        """The devices beside the host, by id, once they are so."""
        async for item in self._items:
            assert isinstance(item, Devices)
            devices = {device.id: device for device in item.devices[1:]}
            if is_so(devices):
                return devices
        raise AssertionError("discovery ended the subscription")

    async def measure(self) -> dict[str, Device]:
        """Measured now."""
        devices = await self._link.ask(MeasureDevices(), Devices)
        return {device.id: device for device in devices.devices[1:]}

    async def diagnose(self, *, is_cached: bool = True) -> Diagnosis:
        """As the doctor is told."""
        return await self._link.ask(Diagnose(is_cached=is_cached), Diagnosis)

    async def report(self, name: str) -> LibraryReport:
        """Of one library."""
        return next(r for r in (await self.diagnose()).libraries if r.library == name)


@asynccontextmanager
async def discovering(
    config: Config, *, command: tuple[str, ...] = COMMAND, measure_every_s: float = 0.05
) -> AsyncGenerator[Subscriber, None]:
    """A discovery with a subscriber; its probes are gone afterwards.  Fails after CEILING_S."""
    # nothing counts as absent: the tests' drivers have no files in /dev
    discovery = Discovery(config, command=command, absent=may_be_here, measure_every_s=measure_every_s)
    with trio.fail_after(CEILING_S):
        async with trio.open_nursery() as nursery:
            await nursery.start(discovery.run)
            async with linked(discovery.handle) as link, link.request(SubscribeDevices()) as items:
                yield Subscriber(link, items)
            nursery.cancel_scope.cancel()


def are(*ids: str) -> Callable[[dict[str, Device]], bool]:
    return lambda devices: set(devices) == set(ids)


async def test_simulated_devices_are_found_with_their_uuids_and_memory(
    sim_config: Config, machine: SimMachine
) -> None:
    machine.take("game", "sim:0", 16 * MIB)
    async with discovering(sim_config) as subscriber:
        devices = await subscriber.until(are("SIM-A", "sim:1"))
    assert (devices["SIM-A"].total_bytes, devices["SIM-A"].free_bytes) == (64 * MIB, 48 * MIB)
    assert devices["sim:1"].is_usable


async def test_memory_that_another_program_takes_is_told(sim_config: Config, machine: SimMachine) -> None:
    async with discovering(sim_config) as subscriber:
        await subscriber.until(are("SIM-A", "sim:1"))
        machine.take("game", "sim:1", 20 * MIB)
        await subscriber.until(lambda devices: devices["sim:1"].free_bytes == 12 * MIB)
        machine.give_back("game", "sim:1")
        await subscriber.until(lambda devices: devices["sim:1"].free_bytes == 32 * MIB)


async def test_memory_is_measured_at_once_for_those_who_ask(sim_config: Config, machine: SimMachine) -> None:
    async with discovering(sim_config, measure_every_s=1000) as subscriber:
        await subscriber.until(are("SIM-A", "sim:1"))
        for taken in (1, 2, 3):
            machine.take("game", "sim:1", MIB)
            devices = await subscriber.measure()
            assert devices["sim:1"].free_bytes == (32 - taken) * MIB


async def test_devices_that_come_and_go_are_told(sim_config: Config, machine: SimMachine) -> None:
    async with discovering(sim_config) as subscriber:
        await subscriber.until(are("SIM-A", "sim:1"))
        machine.remove_device("sim:1")
        await subscriber.until(are("SIM-A"))
        machine.add_device("sim:7", MIB)
        await subscriber.until(are("SIM-A", "sim:7"))


async def test_a_probe_that_crashes_is_named_and_tried_again(sim_config: Config, machine: SimMachine) -> None:
    machine.script_probe(ProbeScript(is_crashing=True))
    async with discovering(sim_config) as subscriber:
        await subscriber.until(are())
        report = await subscriber.report("sim")
        assert (report.state, report.reason) == ("failed", "the sim probe crashed by SIGSEGV")
        assert report.next_try_s is not None
        machine.script_probe(ProbeScript())
        await subscriber.until(are("SIM-A", "sim:1"))  # nobody restarted anything


async def test_a_probe_that_hangs_is_ended_and_harms_nobody_else(
    sim_config: Config, machine: SimMachine, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine.script_probe(ProbeScript(is_hanging=True))
    monkeypatch.setattr(service, "FIRST_S", 0.1)
    config = Config(sim_dir=sim_config.sim_dir, library="sim", probe_timeout_s=5.0)
    async with discovering(config) as subscriber:
        await subscriber.until(are())  # the host is told long before the probe is given up
        assert (await subscriber.report("sim")).state == "pending"
        assert (await subscriber.diagnose(is_cached=False)).libraries[2].reason == (
            "the sim probe did not answer within 5 s"
        )
        machine.script_probe(ProbeScript())
        await subscriber.until(are("SIM-A", "sim:1"))


async def test_a_probe_that_answers_late_is_waited_for(sim_config: Config, machine: SimMachine) -> None:
    machine.script_probe(ProbeScript(late_s=1.0))
    async with discovering(sim_config) as subscriber:
        item = await subscriber.until(lambda _: True)
        assert set(item) == {"SIM-A", "sim:1"}  # the first that is told


async def test_a_driver_that_crashes_later_loses_its_devices_and_gets_them_back(
    sim_config: Config, machine: SimMachine
) -> None:
    async with discovering(sim_config) as subscriber:
        await subscriber.until(are("SIM-A", "sim:1"))
        machine.script_probe(ProbeScript(is_crashing=True))
        await subscriber.until(are())
        machine.script_probe(ProbeScript())
        await subscriber.until(are("SIM-A", "sim:1"))


async def test_a_device_reported_twice_is_told_once(sim_config: Config, machine: SimMachine) -> None:
    machine.script_probe(ProbeScript(has_duplicates=True))
    async with discovering(sim_config) as subscriber:
        await subscriber.until(are("SIM-A", "sim:1"))
        diagnosis = await subscriber.diagnose()
    assert [(d.id, d.reason) for d in diagnosis.filtered] == [
        ("SIM-A", "listed twice"),
        ("sim:1", "listed twice"),
    ]


async def test_a_uuid_outlives_other_numbers(sim_config: Config, machine: SimMachine) -> None:
    async with discovering(sim_config) as subscriber:
        await subscriber.until(are("SIM-A", "sim:1"))
        machine.script_probe(ProbeScript(other_ids={"sim:0": "sim:1", "sim:1": "sim:0"}))
        devices = await subscriber.until(are("SIM-A", "sim:0"))
    assert devices["SIM-A"].total_bytes == 64 * MIB
    assert devices["sim:0"].total_bytes == 32 * MIB


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        ("print('[NVRM] hello')", "the sim probe spoke rubbish: b'[NVRM] hello'"),
        ('print(\'{"type":"LibraryReport"}\')', "the sim probe spoke rubbish"),
        ("print('x' * (2 << 20))", "the sim probe said more than 1 MiB"),
        ("raise SystemExit('no driver')", "the sim probe ended with status 1: no driver"),
        ("pass", "the sim probe ended with status 0"),
        ("import os, time; os.close(1); time.sleep(60)", "the sim probe closed its output without an answer"),
    ],
)
async def test_rubbish_costs_the_probe_alone(code: str, reason: str) -> None:
    with trio.fail_after(CEILING_S):
        report = await Probes((sys.executable, "-c", code), timeout_s=20).look("sim")
    assert report.state == "failed"
    assert report.reason.startswith(reason)


# --- Drivers that imitate real ones ------------------------------------------------------------------------


@pytest.fixture
def fake_drivers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Put them before everything else in the probes' path, following a script."""
    monkeypatch.setenv("PYTHONPATH", str(FAKES))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    monkeypatch.setenv("FAKE_DRIVERS", str(tmp_path / "script.json"))

    def script(**says: object) -> None:
        (tmp_path / "script.json").write_text(json.dumps(says))

    return script


GPUS = [
    {"uuid": f"GPU-{n}", "busId": f"00000000:0{n}:00.0", "total": 8 << 30, "free": 7 << 30} for n in (1, 2)
]


async def test_a_device_whose_driver_crashes_or_hangs_costs_that_device_only(
    fake_drivers: Callable[..., None],
) -> None:
    fake_drivers(cupy={"devices": [{}, {}, {}], "crashes": [0], "hangs": [1]})
    with trio.fail_after(CEILING_S):
        report = await Probes(COMMAND, 8, may_be_here).look("cuda")
    assert [(d.pci_id, d.reason) for d in report.devices] == [
        ("0000:01:00.0", "the cuda probe crashed by SIGSEGV"),
        ("0000:02:00.0", "the cuda probe did not answer within 8 s"),
        ("0000:03:00.0", ""),
    ]


async def test_gpus_that_are_hidden_are_the_doctors_and_not_the_schedulers(
    fake_drivers: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_drivers(cupy={"devices": [{}, {}]}, nvml={"gpus": GPUS})
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    async with discovering(Config(library="cuda")) as subscriber:
        await subscriber.until(are("GPU-1"))
        diagnosis = await subscriber.diagnose()
    assert [(d.id, d.reason) for d in diagnosis.filtered] == [("GPU-2", 'hidden by CUDA_VISIBLE_DEVICES="0"')]
    assert diagnosis.variables == {"CUDA_VISIBLE_DEVICES": "0"}
    assert [r.state for r in diagnosis.libraries[:3]] == ["found", "off", "off"]


async def test_the_doctor_sees_a_package_that_was_installed_meanwhile(
    fake_drivers: Callable[..., None],
) -> None:
    fake_drivers(nvml={"gpus": GPUS})
    async with discovering(Config(library="cuda"), measure_every_s=1000) as subscriber:
        await subscriber.until(are())
        assert (await subscriber.report("cuda")).mend == "pip install cupy-cuda12x"
        fake_drivers(cupy={"devices": [{}, {}]}, nvml={"gpus": GPUS})
        await subscriber.diagnose(is_cached=False)
        await subscriber.until(are("GPU-1", "GPU-2"))


# --- Leaving nothing behind --------------------------------------------------------------------------------


def children(pid: int) -> list[int]:
    """Pids of a process's children that live; threads start children of their own, and come and go."""
    listed: set[int] = set()
    for task in Path(f"/proc/{pid}/task").iterdir():
        with suppress(FileNotFoundError, ProcessLookupError):
            listed |= {int(word) for word in (task / "children").read_text().split()}
    return [child for child in listed if is_alive(child)]


def watches() -> list[int]:
    """Pids of our own watching probes."""
    found: list[int] = []
    for pid in children(os.getpid()):
        with suppress(FileNotFoundError, ProcessLookupError):
            if b"--watch" in Path(f"/proc/{pid}/cmdline").read_bytes():
                found.append(pid)
    return found


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
async def test_a_discovery_that_ends_leaves_no_probe_behind(
    run_dir: Path, machine: SimMachine, tmp_path: Path, number: signal.Signals
) -> None:
    machine.script_probe(ProbeScript(is_hanging=True))
    environ = environment(run_dir, RUNTIME_SIM=str(tmp_path / "sim"), RUNTIME_LIBRARY="sim")
    async with started("actors.discovery", environ=environ) as process:
        await wait_stats(run_dir, "discovery")
        await wait_until(lambda: len(children(process.pid)) > 0)
        probes = children(process.pid)
        os.kill(process.pid, number)
        await process.wait()
        await wait_until(lambda: not any(map(is_alive, probes)))


async def test_a_killed_watch_is_started_again(sim_config: Config, machine: SimMachine) -> None:
    async with discovering(sim_config) as subscriber:
        await subscriber.until(are("SIM-A", "sim:1"))
        await wait_until(lambda: bool(watches()))
        for pid in watches():
            kill(pid)
        machine.take("game", "sim:0", 32 * MIB)
        devices = await subscriber.until(lambda found: found["SIM-A"].free_bytes == 32 * MIB)
        assert set(devices) == {"SIM-A", "sim:1"}


async def test_a_question_that_hangs_ends_the_probe_even_if_nobody_else_does(
    machine: SimMachine, tmp_path: Path
) -> None:
    machine.script_probe(ProbeScript(is_hanging=True))
    code = "import actors.runner.probe.main as m; m.GRACE_S = 0; m.answer('sim')"
    environ = environment(tmp_path, RUNTIME_SIM=str(tmp_path / "sim"), RUNTIME_PROBE_TIMEOUT="0.5")
    with trio.fail_after(CEILING_S):
        probe = await trio.lowlevel.open_process(
            [sys.executable, "-c", code], env=environ, cwd=ROOT, stdin=subprocess.PIPE
        )
        await probe.wait()
    assert probe.stdin is not None
    await probe.stdin.aclose()
    assert probe.returncode == -signal.SIGALRM
