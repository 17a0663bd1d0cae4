"""What the NVIDIA driver says of its GPUs; the only file that imports pynvml."""

# pynvml has no stubs:
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false

import pynvml

from actors.errors import Unsupported
from actors.protocol import Device

NO_BACKEND = "no CUDA backend in this build"


def read_gpus() -> tuple[Device, ...]:
    """The GPUs with the memory that is free now; Unsupported when there is no driver that answers."""
    try:
        pynvml.nvmlInit()
        return tuple(_read(i) for i in range(pynvml.nvmlDeviceGetCount()))
    except pynvml.NVMLError as exc:
        raise Unsupported(f"the NVIDIA driver does not answer: {exc}", where="discovery.nvidia") from exc


def _read(index: int) -> Device:
    handle = pynvml.nvmlDeviceGetHandleByIndex(index)
    memory = pynvml.nvmlDeviceGetMemoryInfo(handle)
    return Device(
        id=_text(pynvml.nvmlDeviceGetUUID(handle)),
        library="cuda",
        name=_text(pynvml.nvmlDeviceGetName(handle)),
        total_bytes=int(memory.total),
        free_bytes=int(memory.free),
        is_usable=False,
        reason=NO_BACKEND,
        pci_id=_text(pynvml.nvmlDeviceGetPciInfo(handle).busId),
    )


def _text(value: str | bytes) -> str:
    return value.decode(errors="replace") if isinstance(value, bytes) else value
