"""Bytes as people read them, and the memory of a report by device."""

from collections.abc import Iterable
from dataclasses import dataclass

from actors.protocol import DeviceMemory, MemoryItem, MemoryReport

CPU = "cpu"  # the id of host memory in every Devices and MemoryReport

KIB, MIB, GIB = 2**10, 2**20, 2**30


def size_text(n_bytes: int) -> str:
    """`n_bytes` in the largest binary unit that keeps it above 1, one decimal where that says more."""
    for unit, name in ((GIB, "GiB"), (MIB, "MiB"), (KIB, "KiB")):
        if abs(n_bytes) >= unit:
            value = n_bytes / unit
            return f"{value:.1f} {name}" if value < 100 else f"{value:.0f} {name}"
    return f"{n_bytes} B"


def item_bytes(item: MemoryItem) -> int:
    """What the allocation takes: the plan's figure, or the device's where that came out larger."""
    return max(item.planned_bytes, item.measured_bytes)


def total_bytes(items: Iterable[MemoryItem]) -> int:
    """Sum of `item_bytes`."""
    return sum(map(item_bytes, items))


@dataclass(frozen=True, slots=True)
class Held:
    """Bytes a model holds on one device.

    `mapped_bytes` are weights mapped from the file: the kernel counts their pages as available, though giving
    them away would make every token read the file again.  `own_bytes` is all the rest.
    """

    mapped_bytes: int
    own_bytes: int

    @property
    def bytes(self) -> int:
        """Both kinds."""
        return self.mapped_bytes + self.own_bytes


def held_by(report: MemoryReport) -> dict[str, Held]:
    """What a model of this report holds, by device id; the input weights are host memory."""
    held = {device.id: _held_on(device) for device in report.devices}
    host = held.get(CPU, Held(0, 0))
    held[CPU] = Held(host.mapped_bytes + item_bytes(report.input_weights), host.own_bytes)
    return held


def _held_on(device: DeviceMemory) -> Held:
    weights = total_bytes(device.weights)
    rest = total_bytes(device.cache) + item_bytes(device.graph) + item_bytes(device.overhead)
    # only host memory uses the mapped file in place; a GPU's weights are a copy in its own memory
    return Held(weights, rest) if device.id == CPU else Held(0, weights + rest)
