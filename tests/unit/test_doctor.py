"""What `runtime doctor` says, without a runtime."""

import click.testing
import msgspec
import pytest

from actors.cli import doctor
from actors.cli.doctor import doctor_text
from actors.cli.main import root
from actors.errors import PeerGone
from actors.protocol import CpuInfo, Device, Diagnosis, HostReport, LibraryReport, MemoryLimit

GIB = 1 << 30
HOST = Device("cpu", "cpu", "A CPU", 16 * GIB, 8 * GIB, memory_from="host")
GPU = Device("GPU-1", "cuda", "A GPU", 24 * GIB, 20 * GIB, False, "no backend for cuda yet", compute="8.9")
DIAGNOSIS = Diagnosis(
    cpu=CpuInfo(model="A CPU", n_cores=4, n_threads=8, instruction_sets=("avx2", "avxvnni")),
    host=HostReport(16 * GIB, 8 * GIB, 2 * GIB, GIB, (MemoryLimit("/sys/fs/cgroup/a", 16 * GIB, 9 * GIB),)),
    devices=(HOST,),
    filtered=(GPU,),
    libraries=(
        LibraryReport("cuda", "found", (GPU,), facts={"driver": "560.35", "cupy": "13.3"}),
        LibraryReport(
            "rocm", "missing", reason="CuPy is not installed", mend="pip install x", next_try_s=59.7
        ),
        LibraryReport("cpu", "found"),
    ),
    variables={"CUDA_VISIBLE_DEVICES": "0"},
    idle_variables={"OLLAMA_VULKAN": "there is no Vulkan backend"},
    versions={"runtime": "1.2", "python": "3.11"},
)


def lines(diagnosis: Diagnosis = DIAGNOSIS) -> list[str]:
    return [" ".join(line.split()) for line in doctor_text(diagnosis, "seen now").splitlines()]


@pytest.mark.parametrize(
    "line",
    [
        "runtime 1.2 python 3.11",
        "seen now",
        "cpu A CPU, 8.0 GiB free of 16.0 GiB",
        "GPU-1 A GPU with 24.0 GiB (cuda): no backend for cuda yet",
        "cuda found",
        "driver 560.35, cupy 13.3",
        "rocm missing: CuPy is not installed",
        "to mend it: pip install x",
        "is looked at again in 60 s",
        "cores 4 that do work, 8 threads",
        "instructions avx2, avxvnni",
        "free 8.0 GiB of 16.0 GiB",
        "free swap 1.0 GiB of 2.0 GiB, not counted on",
        "limit 16.0 GiB for the control group /sys/fs/cgroup/a, 9.0 GiB used, page cache included",
        'CUDA_VISIBLE_DEVICES="0" NVIDIA GPUs that programs may see; AMD\'s runtime obeys it, too',
        "OLLAMA_VULKAN is set, and decides nothing: there is no Vulkan backend",
    ],
)
def test_everything_that_was_found_is_said_in_words(line: str) -> None:
    assert line in lines()


def test_integrated_devices_and_old_figures_are_marked() -> None:
    shared = msgspec.structs.replace(GPU, is_usable=True, reason="", is_integrated=True, memory_from="host")
    stale = msgspec.structs.replace(shared, id="GPU-2", is_integrated=False, memory_from="library")
    text = lines(msgspec.structs.replace(DIAGNOSIS, devices=(HOST, shared, stale), filtered=()))
    assert "GPU-1 A GPU, 20.0 GiB free of 24.0 GiB (the host's), integrated, compute 8.9" in text
    assert "GPU-2 A GPU, 20.0 GiB free of 24.0 GiB (as of the last look), compute 8.9" in text
    assert "Found, and not used" not in text


def test_a_speed_is_told_where_it_was_measured() -> None:
    host = msgspec.structs.replace(HOST, bytes_per_s=14.26e9)
    gpu = Device("sim:0", "sim", "A GPU", GIB, GIB, bytes_per_s=5e11, copy_s=0.00012)
    text = lines(msgspec.structs.replace(DIAGNOSIS, devices=(host, gpu)))
    assert "cpu A CPU, 8.0 GiB free of 16.0 GiB, reads 14.3 GB/s" in text
    assert "sim:0 A GPU, 1.0 GiB free of 1.0 GiB, reads 500 GB/s, a copy takes 0.12 ms" in text


def test_names_from_drivers_cannot_steer_the_terminal() -> None:
    nasty = msgspec.structs.replace(GPU, name="A\x1b[2JGPU", reason="\x07")
    assert "\x1b" not in doctor_text(msgspec.structs.replace(DIAGNOSIS, filtered=(nasty,)), "")


def diagnose(monkeypatch: pytest.MonkeyPatch, diagnosis: Diagnosis, *arguments: str) -> click.testing.Result:
    monkeypatch.setattr(doctor, "look", lambda _: diagnosis)
    monkeypatch.setenv("RUNTIME_RUN_DIR", "/nowhere")
    return click.testing.CliRunner().invoke(root, ["doctor", *arguments], standalone_mode=False)


def test_json_is_the_whole_diagnosis(monkeypatch: pytest.MonkeyPatch) -> None:
    result = diagnose(monkeypatch, DIAGNOSIS, "--json")
    assert msgspec.json.decode(result.output, type=Diagnosis) == DIAGNOSIS


def test_a_machine_where_nothing_can_run_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    broken = msgspec.structs.replace(HOST, is_usable=False, reason="the cpu probe crashed by SIGILL")
    result = diagnose(monkeypatch, msgspec.structs.replace(DIAGNOSIS, devices=(broken,)))
    assert result.return_value == 1
    assert "not usable: the cpu probe crashed by SIGILL" in result.output
    assert diagnose(monkeypatch, DIAGNOSIS).return_value == 0


def test_a_look_that_fails_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "COMMAND", ("sh", "-c", "echo oh >&2; exit 1"))
    with pytest.raises(PeerGone, match="failed: oh"):
        doctor.look(10)
    monkeypatch.setattr(doctor, "COMMAND", ("sleep", "60"))
    with pytest.raises(PeerGone, match=r"longer than 0\.1 s"):
        doctor.look(0.1)
