"""How much memory a new model may count on: discovery's figures, corrected by what we know to be different.

Discovery owns the fact; two things it cannot see are added here.  The pages of mapped weights count as
available to the kernel, but a loaded model reads them at every token, so they are not free.  And a figure is
a moment old: what was taken or given back since it arrived is put right until the next one comes.
"""

from collections import Counter
from collections.abc import Iterator

import msgspec

from actors.protocol import Device, Devices, MemoryReport
from actors.scheduler.sizes import CPU, Held, held_by


class Ledger:
    """The memory of the devices, as the scheduler may promise it."""

    def __init__(self) -> None:
        self._devices: tuple[Device, ...] = ()
        self.n_cores = 0  # that do work on this host; 0 until discovery has spoken
        self._held: dict[str, dict[str, Held]] = {}  # by runner, then by device
        self._since: Counter[str] = Counter()  # bytes taken since the last reading, by device

    @property
    def is_known(self) -> bool:
        """Whether discovery has spoken."""
        return bool(self._devices)

    def update(self, devices: Devices) -> None:
        """A new reading: what happened before it is in it."""
        self._devices = devices.devices
        self.n_cores = devices.cpu.n_cores
        self._since.clear()

    def hold(self, runner_id: str, report: MemoryReport, *, is_new: bool) -> None:
        """A runner holds this much; `is_new`: since after the last reading.  Replaces what it held."""
        self.drop(runner_id)
        held = self._held[runner_id] = held_by(report)
        if is_new:
            self._since.update({device: part.own_bytes for device, part in held.items()})

    def drop(self, runner_id: str) -> None:
        """A runner ended; what it held is free, though discovery may not have seen it yet."""
        for device, part in self._held.pop(runner_id, {}).items():
            self._since[device] -= part.own_bytes

    def held_bytes(self, runner_id: str) -> dict[str, int]:
        """What a runner holds, by device id."""
        return {device: held.bytes for device, held in self._held.get(runner_id, {}).items()}

    def free(self) -> tuple[Device, ...]:
        """The devices with the bytes that a new model may count on."""
        return tuple(self._corrected())

    def n_gpus(self) -> int:
        """Usable devices besides the CPU."""
        return sum(device.is_usable and device.id != CPU for device in self._devices)

    def _corrected(self) -> Iterator[Device]:
        for device in self._devices:
            parts = [held[device.id] for held in self._held.values() if device.id in held]
            mapped = sum(part.mapped_bytes for part in parts)
            reported = device.free_bytes - self._since[device.id] - mapped
            # cache pages that were never touched are in no reading, but they are spoken for
            unspoken = device.total_bytes - sum(part.bytes for part in parts)
            free = max(0, min(reported, unspoken, device.total_bytes))
            yield msgspec.structs.replace(device, free_bytes=free)
