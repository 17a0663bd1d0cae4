"""What the probes make of drivers: packages that imitate them, and made-up buses.  No real driver is met."""

import importlib
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from actors.config import Config
from actors.pci import AMD, NVIDIA, find_cards, normal_pci_id
from actors.protocol import Device, FreeMemory, LibraryReport
from actors.runner.probe import cupy as cupy_probe
from actors.runner.probe import nvml
from actors.runner.probe.cpu import READ_BYTES, READ_MAX_BYTES, Cpu, cache_bytes, streamed_bytes
from actors.runner.probe.cuda import Cuda
from actors.runner.probe.report import Surroundings
from actors.runner.probe.rocm import Rocm
from actors.runner.probe.sim import Sim
from kernels.sim.machine import SimMachine

FAKES = Path(__file__).resolve().parent.parent / "fake_drivers"
UUID = "00112233445566778899aabbccddeeff"
GPU_ID = "GPU-00112233-4455-6677-8899-aabbccddeeff"
GPU = {"uuid": GPU_ID, "busId": "00000000:01:00.0", "total": 8 << 30, "free": 5 << 30}
GPU_2 = {"uuid": "GPU-2", "busId": "00000000:02:00.0", "total": 8 << 30, "free": 6 << 30}

Drivers = Callable[..., Surroundings]


@pytest.fixture
def drivers(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Drivers:
    """Install fake drivers that follow a script; gives what a probe looks at."""
    (tmp_path / "pci").mkdir()
    (tmp_path / "dev").mkdir()
    monkeypatch.syspath_prepend(str(FAKES))
    for name in ("CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES"):
        monkeypatch.delenv(name, raising=False)

    def install(variables: dict[str, str] | None = None, **script: object) -> Surroundings:
        (tmp_path / "script.json").write_text(json.dumps(script))
        monkeypatch.setenv("FAKE_DRIVERS", str(tmp_path / "script.json"))
        for name, value in (variables or {}).items():
            monkeypatch.setenv(name, value)
        for name in ("cupy", "amdsmi", "pynvml"):
            monkeypatch.delitem(sys.modules, name, raising=False)
        monkeypatch.setattr(nvml, "pynvml", importlib.import_module("pynvml"))
        return Surroundings(Config(), variables or {}, tmp_path / "pci", tmp_path / "dev")

    return install


def test_what_a_process_holds_is_what_the_management_library_says_of_it(drivers: Drivers) -> None:
    processes = [{"pid": 7, "used": 5 << 20}, {"pid": 8, "used": None}]
    drivers(nvml={"gpus": [GPU | {"processes": processes}]})
    assert nvml.process_bytes(GPU_ID, 7) == 5 << 20
    assert nvml.process_bytes(GPU_ID, 8) is None  # it does not know
    assert nvml.process_bytes(GPU_ID, 9) is None  # another name space of processes
    assert nvml.process_bytes("GPU-other", 7) is None
    drivers(nvml={"error": 12})
    assert nvml.process_bytes(GPU_ID, 7) is None


def plug(around: Surroundings, pci_id: str, vendor: str, **files: str) -> None:
    """Put a card into the bus."""
    folder = around.pci / pci_id
    folder.mkdir()
    for name, text in {"vendor": vendor, "class": "0x030000", "device": "0x1234", **files}.items():
        (folder / name).write_text(text + "\n")


def only(report: LibraryReport) -> Device:
    (device,) = report.devices
    return device


# --- CUDA --------------------------------------------------------------------------------------------------


def test_a_gpu_is_known_by_the_uuid_and_the_memory_of_the_management_library(drivers: Drivers) -> None:
    report = Cuda().look(drivers(cupy={"devices": [{"uuid": UUID}]}, nvml={"gpus": [GPU]}))
    device = only(report)
    assert (report.state, report.unchecked) == ("found", (GPU_ID,))
    assert (device.id, device.pci_id, device.compute) == (GPU_ID, "0000:01:00.0", "8.6")
    assert (device.total_bytes, device.free_bytes, device.memory_from) == (8 << 30, 5 << 30, "nvml")
    assert report.facts["driver"] == "560.35"
    assert report.facts["cupy"] == "99.0"
    assert report.facts["NVRTC"] == "12.4"
    assert (report.reason, report.mend) == ("", "")


@pytest.mark.parametrize(
    ("versions", "reason", "mend"),
    [
        (
            {"runtime": 13000, "driver": 12080, "nvrtc": [13, 0], "error": "cudaErrorInsufficientDriver"},
            "CuPy is built for CUDA 13, the driver serves CUDA 12",
            'update NVIDIA\'s driver, or pip uninstall cupy-cuda13x and pip install "cupy-cuda12x[ctk]"',
        ),
        (
            {"nvrtc": None},
            "NVRTC, which compiles the kernels, is missing",
            'pip install "cupy-cuda12x[ctk]"',
        ),
        (
            {"nvrtc": [11, 8]},
            "NVRTC is of CUDA 11, CuPy is built for CUDA 12",
            'pip install "cupy-cuda12x[ctk]"',
        ),
    ],
)
def test_versions_that_do_not_fit_are_named(
    versions: dict[str, object], reason: str, mend: str, drivers: Drivers
) -> None:
    report = Cuda().look(drivers(cupy={"devices": [{"uuid": UUID}], **versions}, nvml={"gpus": [GPU]}))
    assert (report.reason, report.mend) == (reason, mend)


def test_a_newer_driver_serves_an_older_cupy(drivers: Drivers) -> None:
    report = Cuda().look(drivers(cupy={"devices": [{"uuid": UUID}], "driver": 13000}, nvml={"gpus": [GPU]}))
    assert report.reason == ""


def test_a_gpu_that_works_is_used(drivers: Drivers) -> None:
    around = drivers(cupy={"devices": [{}]}, nvml={"gpus": [GPU]})
    checked = only(Cuda().check(around, GPU_ID))
    assert (checked.is_usable, checked.reason) == (True, "")


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        ({"wrong": [0]}, "it computes wrong results"),
        ({"uncompilable": [0]}, "it does not compute: nvrtc: error: invalid value for --gpu-architecture"),
    ],
)
def test_a_gpu_that_does_not_compute_is_refused_in_its_own_words(
    drivers: Drivers, fault: dict[str, Any], reason: str
) -> None:
    around = drivers(cupy={"devices": [{}], **fault}, nvml={"gpus": [GPU]})
    assert only(Cuda().check(around, GPU_ID)).reason == reason


def test_a_gpu_that_went_away_before_its_check_is_refused(drivers: Drivers) -> None:
    report = Cuda().check(drivers(cupy={"devices": [{}]}, nvml={"gpus": [GPU]}), "GPU-other")
    assert (report.state, report.reason) == ("failed", "the device is gone")


def test_a_gpu_too_old_for_the_kernels_is_named_and_not_tried(drivers: Drivers) -> None:
    report = Cuda().look(drivers(cupy={"devices": [{"major": 5, "minor": 2}]}, nvml={"gpus": [GPU]}))
    assert only(report).reason == "its compute capability is 5.2, kernels need 7.5"
    assert report.unchecked == ()


@pytest.mark.parametrize(("cuda", "package"), [(12060, "cupy-cuda12x"), (13000, "cupy-cuda13x")])
def test_without_cupy_the_package_for_the_driver_is_named(drivers: Drivers, cuda: int, package: str) -> None:
    report = Cuda().look(drivers(nvml={"gpus": [GPU], "cuda": cuda}))
    assert (report.state, report.mend) == ("missing", f"pip install {package}")
    assert only(report).reason == "CuPy is not installed in this Python environment"


def test_a_cupy_built_for_rocm_is_not_taken_for_cuda(drivers: Drivers) -> None:
    report = Cuda().look(drivers(cupy={"is_hip": True}, nvml={"gpus": [GPU]}))
    assert report.reason == "the CuPy installed here is built for rocm"


def test_a_cupy_that_does_not_start_says_why(drivers: Drivers) -> None:
    around = drivers(cupy={"import_error": "\n=====\nlibnvrtc.so.12: cannot open"}, nvml={"gpus": [GPU]})
    assert Cuda().look(around).reason == "CuPy does not start: libnvrtc.so.12: cannot open"


def test_a_card_without_a_driver_is_found_on_the_bus(drivers: Drivers) -> None:
    around = drivers()
    plug(around, "0000:01:00.0", NVIDIA)
    report = Cuda().look(around)
    assert (report.state, only(report).pci_id) == ("missing", "0000:01:00.0")
    assert "does not answer" in only(report).reason
    assert "driver" in report.mend


def test_a_driver_too_old_for_cupy_is_named(drivers: Drivers) -> None:
    around = drivers(cupy={"error": "cudaErrorInsufficientDriver: too old"}, nvml={"gpus": [GPU]})
    report = Cuda().look(around)
    assert (report.state, report.mend) == ("missing", "update NVIDIA's driver")
    assert only(report).reason == "cudaErrorInsufficientDriver: too old"


def test_nothing_of_nvidias_is_none(drivers: Drivers) -> None:
    report = Cuda().look(drivers())
    assert (report.state, report.devices) == ("none", ())


@pytest.mark.parametrize("hiding", ["-1", ""])
def test_gpus_that_a_variable_hides_are_named_with_it(drivers: Drivers, hiding: str) -> None:
    around = drivers({"CUDA_VISIBLE_DEVICES": hiding}, cupy={"devices": [{}]}, nvml={"gpus": [GPU]})
    report = Cuda().look(around)
    assert report.state == "found"
    assert only(report).reason == f'hidden by CUDA_VISIBLE_DEVICES="{hiding}"'


def test_one_gpu_of_two_may_be_hidden(drivers: Drivers) -> None:
    cupy = {"devices": [{}, {"pciBusID": 2}]}
    around = drivers({"CUDA_VISIBLE_DEVICES": "1"}, cupy=cupy, nvml={"gpus": [GPU, GPU_2]})
    seen, hidden = Cuda().look(around).devices
    assert (seen.id, seen.is_usable) == ("GPU-2", True)
    assert (hidden.id, hidden.reason) == (GPU_ID, 'hidden by CUDA_VISIBLE_DEVICES="1"')
    assert Cuda().check(around, "GPU-2").devices[0].id == "GPU-2"


def test_ids_do_not_depend_on_the_order_of_the_runtime(drivers: Drivers) -> None:
    cupy = {"devices": [{"pciBusID": 2}, {"pciBusID": 1}]}
    report = Cuda().look(drivers(cupy=cupy, nvml={"gpus": [GPU, GPU_2]}))
    assert [(d.id, d.pci_id) for d in report.devices] == [("GPU-2", "0000:02:00.0"), (GPU_ID, "0000:01:00.0")]


@pytest.mark.parametrize(
    ("uuid", "id_"), [({"uuid": UUID}, GPU_ID), ({"uuid": UUID[:14]}, "0000:01:00.0"), ({}, "0000:01:00.0")]
)
def test_without_the_management_library_cupys_uuid_counts_if_it_is_whole(
    drivers: Drivers, uuid: dict[str, str], id_: str
) -> None:
    around = drivers(cupy={"devices": [uuid]})
    device = only(Cuda().look(around))
    assert (device.id, device.memory_from) == (id_, "library")
    assert only(Cuda().check(around, id_)).free_bytes == 3 << 30


@pytest.mark.parametrize("integrated", [0, 1])
def test_unified_memory_is_the_hosts(drivers: Drivers, integrated: int) -> None:
    shared = {key: GPU[key] for key in ("uuid", "busId")}
    around = drivers(cupy={"devices": [{"integrated": integrated}]}, nvml={"gpus": [shared]})
    device = only(Cuda().look(around))
    assert (device.memory_from, device.is_integrated) == ("host", bool(integrated))
    assert Cuda().measure(around) == ()


def test_a_gpu_that_is_lost_costs_itself_only(drivers: Drivers) -> None:
    around = drivers(cupy={"devices": [{"pciBusID": 2}]}, nvml={"gpus": [GPU | {"lost": True}, GPU_2]})
    plug(around, "0000:01:00.0", NVIDIA)
    works, lost = Cuda().look(around).devices
    assert (works.id, works.is_usable) == ("GPU-2", True)
    assert (lost.pci_id, lost.reason) == ("0000:01:00.0", "no driver answers for it")


def test_memory_is_measured_without_cupy(drivers: Drivers) -> None:
    assert Cuda().measure(drivers(nvml={"gpus": [GPU]})) == (FreeMemory(GPU_ID, 8 << 30, 5 << 30),)
    assert Cuda().measure(drivers()) == ()


# --- ROCm --------------------------------------------------------------------------------------------------

CARD = {"unique_id": "1f2e3d", "mem_info_vram_total": "1000", "mem_info_vram_used": "400"}


def amd(
    around: Surroundings, files: dict[str, str] | None = None, *, has_driver: bool = True
) -> Surroundings:
    """A machine with one AMD card."""
    plug(around, "0000:03:00.0", AMD, **(files or {}))
    if has_driver:
        (around.dev / "kfd").touch()
    return around


ROCM = {"is_hip": True, "devices": [{"pciBusID": 3, "gcnArchName": "gfx1100:xnack-"}]}


def test_an_amd_gpu_is_known_by_its_serial_number_and_the_kernels_memory(drivers: Drivers) -> None:
    report = Rocm().look(amd(drivers(cupy=ROCM), CARD))
    device = only(report)
    assert (device.id, device.compute, device.memory_from) == ("GPU-1f2e3d", "gfx1100", "sysfs")
    assert (device.total_bytes, device.free_bytes) == (1000, 600)
    assert report.unchecked == ("GPU-1f2e3d",)


def test_an_amd_gpu_that_works_is_refused_for_want_of_a_backend(drivers: Drivers) -> None:
    around = amd(drivers(cupy=ROCM), CARD)
    assert only(Rocm().check(around, "GPU-1f2e3d")).reason == "no backend for rocm yet"


def test_amdsmi_is_asked_where_the_kernel_does_not_say(drivers: Drivers) -> None:
    around = amd(drivers(cupy=ROCM, amdsmi={"0000:03:00.0": [2000, 500]}))
    device = only(Rocm().look(around))
    assert (device.id, device.memory_from) == ("0000:03:00.0", "amdsmi")
    assert Rocm().measure(around) == (FreeMemory("0000:03:00.0", 2000, 1500),)


def test_where_nobody_says_the_check_measures(drivers: Drivers) -> None:
    around = amd(drivers(cupy=ROCM))
    device = only(Rocm().look(around))
    assert device.memory_from == "library"
    assert only(Rocm().check(around, device.id)).free_bytes == 3 << 30


def test_an_integrated_amd_gpu_has_the_hosts_memory(drivers: Drivers) -> None:
    cupy = {"is_hip": True, "devices": [{"pciBusID": 3, "integrated": 1}]}
    device = only(Rocm().look(amd(drivers(cupy=cupy), CARD)))
    assert (device.memory_from, device.is_integrated) == ("host", True)


def test_a_missing_compute_driver_is_named_and_hip_is_not_asked(drivers: Drivers) -> None:
    report = Rocm().look(amd(drivers(cupy={"import_error": "must not be asked"}), has_driver=False))
    assert (report.state, only(report).reason) == (
        "missing",
        "the AMD compute driver is not loaded: /dev/kfd is missing",
    )


def test_without_cupy_for_rocm_that_is_named(drivers: Drivers) -> None:
    report = Rocm().look(amd(drivers(), CARD))
    assert (report.state, only(report).reason) == (
        "missing",
        "CuPy is not installed in this Python environment",
    )
    assert "AMD" in report.mend


@pytest.mark.parametrize("variable", ["ROCR_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES", "CUDA_VISIBLE_DEVICES"])
def test_amd_gpus_that_a_variable_hides_are_named_with_it(drivers: Drivers, variable: str) -> None:
    around = amd(drivers({variable: "7"}, cupy={"is_hip": True, "devices": []}), CARD)
    reason = only(Rocm().look(around)).reason
    assert reason == f'hidden by {variable}="7"'


# --- Speed -------------------------------------------------------------------------------------------------

COPYTO_S, TO_HOST_S = 0.02, 0.01


@pytest.mark.parametrize("library", ["cuda", "rocm"])
def test_a_check_waits_for_the_device_and_measures_it(drivers: Drivers, library: str) -> None:
    """The imitation does its work when somebody waits for it, as devices do."""
    times = {"copyto_s": COPYTO_S, "to_host_s": TO_HOST_S}
    if library == "cuda":
        around = drivers(cupy={"devices": [{}], **times}, nvml={"gpus": [GPU]})
        checked = only(Cuda().check(around, GPU_ID))
    else:
        checked = only(Rocm().check(amd(drivers(cupy=ROCM | times), CARD), "GPU-1f2e3d"))
    most = 2 * cupy_probe.STREAM_BYTES / COPYTO_S  # each byte is read and written
    assert 0.2 * most < checked.bytes_per_s <= most
    assert TO_HOST_S / 2 <= checked.copy_s < 5 * TO_HOST_S  # one way of two


@pytest.mark.parametrize("fault", [{"full": [0]}, {"free": 1 << 30, "full": [0]}, {"free": 1000}])
def test_a_device_without_room_to_measure_works_all_the_same(drivers: Drivers, fault: dict[str, Any]) -> None:
    checked = only(Cuda().check(drivers(cupy={"devices": [{}], **fault}, nvml={"gpus": [GPU]}), GPU_ID))
    assert (checked.bytes_per_s, checked.reason) == (0, "")


def test_a_device_that_cannot_copy_is_refused_in_its_own_words(drivers: Drivers) -> None:
    around = drivers(cupy={"devices": [{}], "uncopyable": [0]}, nvml={"gpus": [GPU]})
    reason = "it does not copy: cudaErrorECCUncorrectable: uncorrectable ECC error encountered"
    assert only(Cuda().check(around, GPU_ID)).reason == reason


def test_a_simulated_device_is_as_fast_as_it_claims(tmp_path: Path) -> None:
    SimMachine(tmp_path).add_device("sim:0", 1 << 20, bytes_per_s=3e9, copy_s=0.25)
    device = only(Sim().look(Surroundings(Config(sim_dir=str(tmp_path)), {})))
    assert (device.bytes_per_s, device.copy_s) == (3e9, 0.25)


def test_the_host_is_measured_by_the_kernels_that_runners_use(tmp_path: Path) -> None:
    report = Cpu().look(Surroundings(Config(), {}, cpus=tmp_path))
    assert (report.state, only(report).id, only(report).copy_s) == ("found", "cpu", 0)
    assert 1e8 < only(report).bytes_per_s < 1e13


def test_the_reference_is_not_measured() -> None:
    assert Cpu().look(Surroundings(Config(cpu_isa="reference"), {})).devices == ()


def put_cache(cpus: Path, cpu: int, index: int, *texts: str) -> None:
    """Its level, size and sharers."""
    folder = cpus / f"cpu{cpu}" / "cache" / f"index{index}"
    folder.mkdir(parents=True)
    for name, text in zip(("level", "size", "shared_cpu_list"), texts, strict=True):
        (folder / name).write_text(text + "\n")


def test_caches_are_counted_once_for_all_that_share_them(tmp_path: Path) -> None:
    assert cache_bytes(tmp_path) == 0
    for cpu, shared in enumerate(("0-1", "0-1", "2-3", "2-3")):
        put_cache(tmp_path, cpu, 2, "2", "512K", str(cpu))
        put_cache(tmp_path, cpu, 3, "3", "32768K", shared)
    assert cache_bytes(tmp_path) == 64 << 20


@pytest.mark.parametrize(
    ("cached_bytes", "free_bytes", "n_bytes"),
    [
        (0, None, READ_BYTES),
        (READ_BYTES, None, 2 * READ_BYTES),  # not the caches' own speed
        (READ_MAX_BYTES, None, 0),
        (0, 4 * READ_BYTES, READ_BYTES),
        (0, 4 * READ_BYTES - 1, 0),
    ],
)
def test_more_than_the_caches_hold_is_read_or_nothing(
    cached_bytes: int, free_bytes: int | None, n_bytes: int
) -> None:
    assert streamed_bytes(cached_bytes, free_bytes) == n_bytes


# --- The bus -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "pci_id"),
    [
        ("00000000:01:00.0", "0000:01:00.0"),
        ("0001:C1:00.1", "0001:c1:00.1"),
        ("0000:01:00", "0000:01:00.0"),
        ("01:00.0", "0000:01:00.0"),
    ],
)
def test_pci_ids_are_written_as_the_kernel_does(text: str, pci_id: str) -> None:
    assert normal_pci_id(text) == pci_id


def test_only_graphics_cards_and_accelerators_of_the_vendor_count(drivers: Drivers) -> None:
    around = drivers()
    plug(around, "0000:01:00.0", NVIDIA, **{"class": "0x030200"})
    plug(around, "0000:01:00.1", NVIDIA, **{"class": "0x040300"})  # its sound
    plug(around, "0000:02:00.0", AMD, **{"class": "0x120000"})
    assert [card.pci_id for card in find_cards(around.pci, NVIDIA)] == ["0000:01:00.0"]
    assert [card.pci_id for card in find_cards(around.pci, AMD)] == ["0000:02:00.0"]
