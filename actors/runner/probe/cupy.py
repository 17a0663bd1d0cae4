"""CuPy as a probe sees it: what it lists, and whether a device computes.  One CuPy is built for one library.

Ran on an H200 (driver 580.159, CuPy 14.2 for CUDA 13); other devices are known from a package that
imitates it in the tests.
"""

import importlib
import statistics
import time
import uuid
from collections.abc import Callable
from typing import Any, Final

import msgspec

from actors.errors import Unsupported
from actors.pci import normal_pci_id
from actors.protocol import Device, LibraryReport
from actors.runner.probe.report import failed, judge

SOURCE: Final = """
extern "C" __global__ void twice(const float* x, float* y, long long n) {
    long long i = blockDim.x * blockIdx.x + threadIdx.x;
    if (i < n) y[i] = 2.0f * x[i];
}
"""
N_CHECKED: Final = 1000  # no multiple of a block: the bound in the kernel matters
N_BLOCK: Final = 128
UUID_BYTES: Final = 16
N_PASSES: Final = 5
STREAM_BYTES: Final = 256 << 20
"""Copied within the device: several times what its caches hold, and under 0.1 s of a slow one."""
SPARE: Final = 4
"""Source and target together may take half of what is free, for a moment: runners may be loading there."""
N_COPIES: Final = 20
COPY_BYTES: Final = 16 << 10  # the activation of a token, n_embd 4096


class CupyDevice(msgspec.Struct, frozen=True):
    """A device as CuPy lists it."""

    ordinal: int
    name: str
    total_bytes: int
    uuid: str  # "" when CuPy does not say
    pci_id: str
    compute: tuple[int, int]
    arch: str  # of ROCm: "gfx1100"
    is_integrated: bool


class CupySpeed(msgspec.Struct, frozen=True):
    """How fast a device is, measured; see `protocol.Device`.  0: there was no room to measure it."""

    bytes_per_s: float
    copy_s: float


class Cupy:
    """The package, imported."""

    def __init__(self, library: str) -> None:
        """Unsupported when there is no CuPy, it does not start, or it is built for another library."""
        try:
            self._cupy: Any = importlib.import_module("cupy")
            self._runtime: Any = self._cupy.cuda.runtime
        except ModuleNotFoundError as exc:
            if exc.name != "cupy":
                raise Unsupported(f"CuPy lacks a package: {exc}", where="probe.cupy") from exc
            raise Unsupported("CuPy is not installed in this Python environment", where="probe.cupy") from exc
        except Exception as exc:  # whatever a broken installation raises
            raise Unsupported(f"CuPy does not start: {_words(exc)}", where="probe.cupy") from exc
        built_for = "rocm" if self._runtime.is_hip else "cuda"
        if built_for != library:
            raise Unsupported(f"the CuPy installed here is built for {built_for}", where="probe.cupy")

    @property
    def facts(self) -> dict[str, str]:
        """Versions; the driver's only if it answers."""
        facts = {"cupy": str(self._cupy.__version__)}
        try:
            facts["runtime library"] = _version(self._runtime.runtimeGetVersion())
            facts["driver serves"] = _version(self._runtime.driverGetVersion())
        except self._runtime.CUDARuntimeError:
            pass
        if not self._runtime.is_hip:
            nvrtc = self._nvrtc()
            facts["NVRTC"] = f"{nvrtc[0]}.{nvrtc[1]}" if nvrtc else "missing"
        return facts

    @property
    def mismatch(self) -> tuple[str, str]:
        """What of CUDA's versions does not fit together, and how to mend it; both empty where all does."""
        try:
            versions = self._runtime.runtimeGetVersion(), self._runtime.driverGetVersion()
        except self._runtime.CUDARuntimeError:
            return "", ""
        built, served = (version // 1000 for version in versions)
        wheel = f"cupy-cuda{min(built, served)}x[ctk]"
        if built > served:
            return (
                f"CuPy is built for CUDA {built}, the driver serves CUDA {served}",
                f'update NVIDIA\'s driver, or pip uninstall cupy-cuda{built}x and pip install "{wheel}"',
            )
        nvrtc = self._nvrtc()
        if nvrtc is None:
            return "NVRTC, which compiles the kernels, is missing", f'pip install "{wheel}"'
        if nvrtc[0] != built:
            return f"NVRTC is of CUDA {nvrtc[0]}, CuPy is built for CUDA {built}", f'pip install "{wheel}"'
        return "", ""

    def _nvrtc(self) -> tuple[int, int] | None:
        """The version of CUDA's compiler, None where it does not load."""
        try:
            major, minor = self._cupy.cuda.nvrtc.getVersion()
        except Exception:  # noqa: BLE001  # loaders and CuPy raise what they like
            return None
        return int(major), int(minor)

    def devices(self) -> tuple[CupyDevice, ...]:
        """What it lists, in its order; Unsupported, with the driver's words, when it cannot."""
        try:
            return tuple(self._device(i) for i in range(self._runtime.getDeviceCount()))
        except self._runtime.CUDARuntimeError as exc:
            raise Unsupported(_words(exc), where="probe.cupy") from exc

    def compute(self, ordinal: int) -> tuple[int, int]:
        """Allocate, compile, run and compare on a device; its total and free bytes.

        Unsupported says what failed.  Takes a context, which ends with this process.
        """
        try:
            with self._cupy.cuda.Device(ordinal):
                free_bytes, total_bytes = self._runtime.memGetInfo()
                x = self._cupy.arange(N_CHECKED, dtype="float32")
                y = self._cupy.zeros(N_CHECKED, dtype="float32")
                kernel = self._cupy.RawKernel(SOURCE, "twice")
                kernel((-(-N_CHECKED // N_BLOCK),), (N_BLOCK,), (x, y, N_CHECKED))
                got = self._cupy.asnumpy(y).tolist()
        except Exception as exc:  # the compiler's, the driver's and the runtime's errors share no class
            raise Unsupported(f"it does not compute: {_words(exc)}", where="probe.cupy") from exc
        if got != [2.0 * i for i in range(N_CHECKED)]:
            raise Unsupported("it computes wrong results", where="probe.cupy")
        return int(total_bytes), int(free_bytes)

    def speed(self, ordinal: int) -> CupySpeed:
        """Measure a device that computes; Unsupported says what failed.

        Reading is taken from copies within the device, which read and write each byte: streamed, both are
        bound by the same memory.
        """
        try:
            with self._cupy.cuda.Device(ordinal):
                return CupySpeed(self._bytes_per_s(), self._copy_s())
        except self._cupy.cuda.memory.OutOfMemoryError:  # somebody else was faster; the device works
            return CupySpeed(0.0, 0.0)
        except Exception as exc:  # as in `compute`
            raise Unsupported(f"it does not copy: {_words(exc)}", where="probe.cupy") from exc

    def _bytes_per_s(self) -> float:
        free_bytes, _ = self._runtime.memGetInfo()
        if free_bytes < STREAM_BYTES * SPARE:
            return 0.0
        source = self._cupy.zeros(STREAM_BYTES, dtype="uint8")
        target = self._cupy.zeros(STREAM_BYTES, dtype="uint8")
        return 2 * STREAM_BYTES / self._median_s(lambda: self._cupy.copyto(target, source), N_PASSES)

    def _copy_s(self) -> float:
        """One way: half of there and back, which waits for the device as a boundary between layers does."""
        there = self._cupy.zeros(COPY_BYTES, dtype="uint8")
        here = self._cupy.asnumpy(there)

        def to_and_fro() -> None:
            there.set(here)
            self._cupy.asnumpy(there)

        return self._median_s(to_and_fro, N_COPIES) / 2

    def _median_s(self, work: Callable[[], None], n_passes: int) -> float:
        """Seconds that the device takes; the first pass, which sets things up, is not counted."""
        passes: list[float] = []
        for _ in range(1 + n_passes):
            self._runtime.deviceSynchronize()
            began_s = time.perf_counter()
            work()
            self._runtime.deviceSynchronize()
            passes.append(time.perf_counter() - began_s)
        return statistics.median(passes[1:])

    def _device(self, ordinal: int) -> CupyDevice:
        of: dict[str, Any] = self._runtime.getDeviceProperties(ordinal)
        bus = f"{of['pciDomainID']:04x}:{of['pciBusID']:02x}:{of['pciDeviceID']:02x}.0"
        return CupyDevice(
            ordinal=ordinal,
            name=_text(of["name"]),
            total_bytes=int(of["totalGlobalMem"]),
            uuid=_uuid(of.get("uuid", b"")),
            pci_id="" if of["pciBusID"] == of["pciDeviceID"] == 0 else normal_pci_id(bus),
            compute=(int(of["major"]), int(of["minor"])),
            arch=_text(of.get("gcnArchName", b"")).partition(":")[0],
            is_integrated=bool(of["integrated"]),
        )


def _uuid(raw: bytes) -> str:
    # CuPy reads the field as a C string: one with a zero byte inside arrives shortened, and is none
    return f"GPU-{uuid.UUID(bytes=raw[:UUID_BYTES])}" if len(raw) >= UUID_BYTES else ""


def _text(value: str | bytes) -> str:
    return value.decode(errors="replace") if isinstance(value, bytes) else value


def _version(number: int) -> str:
    return f"{number // 1000}.{number % 1000 // 10}"


def _words(exc: BaseException) -> str:
    """The first line of an error that says something; CuPy's own are pages long."""
    lines = [line for part in str(exc).splitlines() if (line := part.strip(" =-*"))]
    return lines[0][:200] if lines else type(exc).__name__


def checked(cupy: Cupy, ordinal: int, device: Device) -> LibraryReport:
    """Compute something on one device of CuPy's and measure its speed; `device` is what a look said of it."""
    try:
        total_bytes, free_bytes = cupy.compute(ordinal)
        speed = cupy.speed(ordinal)
    except Unsupported as fault:
        return failed(device.library, fault.message, device)
    device = msgspec.structs.replace(device, bytes_per_s=speed.bytes_per_s, copy_s=speed.copy_s)
    if device.memory_from == "library":
        device = msgspec.structs.replace(device, total_bytes=total_bytes, free_bytes=free_bytes)
    return LibraryReport(device.library, "found", (judge(device),))
