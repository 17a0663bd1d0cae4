"""What NVIDIA's management library says: every GPU of the driver, hidden ones too, without a context on any.

The only file that imports pynvml.
"""

# pynvml has no stubs:
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false

import msgspec
import pynvml

from actors.errors import Unsupported
from actors.pci import normal_pci_id


class NvmlDevice(msgspec.Struct, frozen=True):
    """One GPU."""

    id: str  # its UUID
    name: str
    pci_id: str
    memory: tuple[int, int] | None  # total and free bytes; None where the memory is the host's


class Nvml(msgspec.Struct, frozen=True):
    """The driver, and its GPUs in the order of the bus."""

    devices: tuple[NvmlDevice, ...]
    driver: str
    cuda: tuple[int, int]  # the newest CUDA that the driver serves


def read_nvml() -> Nvml:
    """What there is now; Unsupported, with the reason, when no driver answers."""
    try:
        pynvml.nvmlInit()
        cuda = int(pynvml.nvmlSystemGetCudaDriverVersion())
        return Nvml(
            devices=tuple(gpu for i in range(pynvml.nvmlDeviceGetCount()) if (gpu := _read(i)) is not None),
            driver=_text(pynvml.nvmlSystemGetDriverVersion()),
            cuda=(cuda // 1000, cuda % 1000 // 10),
        )
    except pynvml.NVMLError as exc:
        raise Unsupported(f"the NVIDIA driver does not answer: {exc}", where="probe.nvml") from exc


def process_bytes(uuid: str, pid: int) -> int | None:
    """What a process holds of a GPU; None where the driver does not say, or counts processes otherwise.

    In a container it may name the host's pids, and on Windows it leaves memory to the system.
    """
    try:
        pynvml.nvmlInit()
        handle = pynvml.nvmlDeviceGetHandleByUUID(uuid)
        processes = pynvml.nvmlDeviceGetComputeRunningProcesses(handle)
    except pynvml.NVMLError:
        return None
    found = next((process.usedGpuMemory for process in processes if process.pid == pid), None)
    return None if found is None else int(found)


def _read(index: int) -> NvmlDevice | None:
    """None for a GPU that is lost: it fell off the bus, or needs a reset; the others are fine."""
    try:
        handle = pynvml.nvmlDeviceGetHandleByIndex(index)
        return NvmlDevice(
            id=_text(pynvml.nvmlDeviceGetUUID(handle)),
            name=_text(pynvml.nvmlDeviceGetName(handle)),
            pci_id=normal_pci_id(_text(pynvml.nvmlDeviceGetPciInfo(handle).busId)),
            memory=_memory(handle),
        )
    except pynvml.NVMLError:
        return None


def _memory(handle: object) -> tuple[int, int] | None:
    try:
        memory = pynvml.nvmlDeviceGetMemoryInfo(handle)
    except pynvml.NVMLError as exc:
        code: int = exc.value  # pyright: ignore[reportAttributeAccessIssue]  # set in __new__
        if code == pynvml.NVML_ERROR_NOT_SUPPORTED:  # it is unified with the host's
            return None
        raise
    return int(memory.total), int(memory.free)


def _text(value: str | bytes) -> str:
    return value.decode(errors="replace") if isinstance(value, bytes) else value
