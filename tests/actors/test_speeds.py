"""Speeds from the probes to the layout: what a device is measured at decides whether few layers go there."""

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from actors.discovery import service
from actors.discovery.service import Discovery
from actors.link import connect
from actors.protocol import Device, Devices, LoadOptions, SubscribeDevices
from kernels.sim.machine import SimMachine
from tests.actors.fake_runner import Script
from tests.actors.inside import InsideHost
from tests.actors.rig import MIB, Rig, rig

RESERVE_MIB = 457  # what the layout keeps free of each GPU
LAYER_MIB = 20
GPU = "sim:0"
SLOW_S, FAST_S = 0.5, 1e-6
"""Of a copy: far more and far less than the host takes for a layer, whoever else is at work there."""


@pytest.fixture
def machine(run_dir: Path, monkeypatch: pytest.MonkeyPatch) -> SimMachine:
    """Without devices; the probes find it in the environment."""
    monkeypatch.setenv("RUNTIME_SIM", str(run_dir / "sim"))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(run_dir))
    return SimMachine(run_dir / "sim")


@asynccontextmanager
async def discovered(run_dir: Path) -> AsyncGenerator[Rig, None]:
    """A scheduler that hears of the simulated machine from a real discovery and its probes."""
    folder = str(run_dir / "sim")
    async with rig(
        run_dir, make_host=InsideHost, make_discovery=Discovery, sim_dir=folder, library="sim"
    ) as made:
        yield made


async def n_offloaded(runtime: Rig, n_gpu: int = -1) -> int:
    """Load a model of three layers; how many lie on the simulated device."""
    model = runtime.model("m", Script(weight_bytes=LAYER_MIB * MIB))
    async with runtime.leased(model, LoadOptions(n_gpu=n_gpu)):
        report = (await runtime.loaded())["m"].report
    return sum(item.planned_bytes > 0 for part in report.devices if part.id == GPU for item in part.weights)


@pytest.mark.parametrize(
    ("copy_s", "n_gpu", "wanted"),
    [
        (SLOW_S, -1, 0),
        (SLOW_S, 1, 1),  # whoever names a number has it
        (FAST_S, -1, 1),
    ],
)
async def test_one_layer_goes_to_a_device_whose_measured_copies_are_worth_it(
    run_dir: Path, machine: SimMachine, copy_s: float, n_gpu: int, wanted: int
) -> None:
    machine.add_device(GPU, (RESERVE_MIB + LAYER_MIB + 5) * MIB, bytes_per_s=500e9, copy_s=copy_s)
    async with discovered(run_dir) as runtime:
        assert await n_offloaded(runtime, n_gpu) == wanted


async def test_the_reason_has_the_times_that_follow_from_the_measured_speeds(
    run_dir: Path, machine: SimMachine
) -> None:
    machine.add_device(GPU, (RESERVE_MIB + LAYER_MIB + 5) * MIB, bytes_per_s=500e9, copy_s=SLOW_S)
    async with discovered(run_dir) as runtime:
        assert await n_offloaded(runtime) == 0
        assert "1 of 3 layers on GPUs would take 100" in await runtime.why()  # two copies: above 1000 ms


async def test_the_host_is_measured_once_the_start_is_over(
    run_dir: Path, machine: SimMachine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service, "KERNELS_AFTER_S", 0.2)
    machine.add_device(GPU, MIB, bytes_per_s=7e9, copy_s=0.25)
    told: list[dict[str, Device]] = []
    async with (
        discovered(run_dir) as runtime,
        connect(runtime.config.socket_address("discovery"), name="test") as link,
        link.request(SubscribeDevices()) as items,
    ):
        async for item in items:
            assert isinstance(item, Devices)
            told.append({device.id: device for device in item.devices})
            if told[-1]["cpu"].bytes_per_s:
                break
    assert told[-1]["cpu"].free_bytes > 0
    assert told[-1]["cpu"].bytes_per_s > 1e8
    assert (told[-1][GPU].bytes_per_s, told[-1][GPU].copy_s) == (7e9, 0.25)
