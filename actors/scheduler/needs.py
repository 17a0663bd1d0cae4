"""What a sized load needs of the host, and how that is said: numbers of the report beside what is free."""

from collections.abc import Sequence

from actors.protocol import Device, DeviceMemory, MemoryReport
from actors.scheduler.sizes import CPU, item_bytes, size_text, total_bytes

N_CTX_STEP = 256  # suggested contexts are multiples of this
N_CTX_LEAST = 512  # a shorter context than this is no advice


def host_need_bytes(report: MemoryReport) -> int:
    """Host memory the placement takes.  Mapped weights count in full: each token reads them all."""
    return item_bytes(report.input_weights) + sum(
        own_bytes(device) + item_bytes(device.overhead) for device in report.devices if device.id == CPU
    )


def own_bytes(memory: DeviceMemory) -> int:
    """Weights, cache and compute buffer on one device."""
    return total_bytes((*memory.weights, *memory.cache, memory.graph))


def free_bytes(devices: Sequence[Device], device_id: str) -> int:
    """Free memory of a device; none of one that discovery does not name."""
    return next((device.free_bytes for device in devices if device.id == device_id), 0)


def swap_bytes(devices: Sequence[Device]) -> int:
    """Free swap of the host."""
    return next((device.swap_bytes for device in devices if device.id == CPU), 0)


def needs_text(name: str, report: MemoryReport, devices: Sequence[Device]) -> str:
    """The numbers of a load in a sentence."""
    text = f"{name} at n_ctx {report.n_ctx} needs {size_text(host_need_bytes(report))}, "
    text += f"{CPU} has {size_text(free_bytes(devices, CPU))} free"
    if swap := swap_bytes(devices):
        text += f" and {size_text(swap)} of swap"
    for memory in report.devices:
        if memory.id != CPU and (own := own_bytes(memory)):
            text += f"; {size_text(own + item_bytes(memory.overhead))} of "
            text += f"{size_text(free_bytes(devices, memory.id))} on {memory.name or memory.id}"
    return text


def mend_text(report: MemoryReport, shortage_bytes: int, others: Sequence[tuple[str, int]]) -> str:
    """What would help: a context whose cache fits, other models unloaded, a smaller file.

    `others`: names of loaded models and the bytes they hold.
    """
    advice: list[str] = []
    cache = sum(total_bytes(memory.cache) for memory in report.devices if memory.id == CPU)
    if cache > shortage_bytes:
        # the cache is the part that falls in proportion to the context; the rest is left as it is
        n_ctx = int(report.n_ctx * (cache - shortage_bytes) / cache) // N_CTX_STEP * N_CTX_STEP
        if n_ctx >= N_CTX_LEAST:
            advice.append(f"ask for n_ctx {n_ctx}")
    advice += [f"unload {name} ({size_text(size)})" for name, size in others]
    advice.append("use a smaller quantisation" if report.n_parallel <= 1 else "lower OLLAMA_NUM_PARALLEL")
    return ", or ".join(advice)
