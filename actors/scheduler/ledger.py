"""How much memory a new model may count on: discovery's figures, corrected by what we know to be different.

Discovery owns the fact; three things it cannot see are added here.  What was promised to a load that has not
allocated yet is in no reading.  The pages of mapped weights count as available to the kernel, but a loaded
model reads them at every token, so they are not free.  And a figure is a moment old: what was taken or given
back since it arrived is put right until the next one comes.

Host memory is free when its process has ended.  The memory of other devices is free when a reading says so;
until then `recovery` awaits it.
"""

from collections import Counter
from collections.abc import Iterator

import msgspec

from actors.protocol import Device, Devices, MemoryReport
from actors.scheduler.recovery import Recovery
from actors.scheduler.sizes import CPU, Held, held_by


class Ledger:
    """The memory of the devices, as the scheduler may promise it."""

    def __init__(self) -> None:
        self._devices: tuple[Device, ...] = ()
        self.n_cores = 0  # that do work on this host; 0 until discovery has spoken
        self.n_promises = 0  # rises with each: whoever reads `free` before an await can tell that it is old
        self.n_takings = 0  # rises when memory is taken or given back: a reading from before does not show it
        self.recovery = Recovery()
        self._held: dict[str, dict[str, Held]] = {}  # by runner, then by device
        self._promised: set[str] = set()  # runners that have not allocated what they hold
        self._since: Counter[str] = Counter()  # bytes taken since the last reading, by device

    @property
    def is_known(self) -> bool:
        """Whether discovery has spoken."""
        return bool(self._devices)

    def update(self, devices: Devices) -> None:
        """A new reading: what happened before it is in it, promises are not."""
        self._devices = devices.devices
        self.n_cores = devices.cpu.n_cores
        self._since.clear()
        self.recovery.read(devices.devices)

    def promise(self, runner_id: str, report: MemoryReport) -> None:
        """A runner will allocate this much; until `hold` or `withdraw` nobody else may count on it."""
        self.withdraw(runner_id)
        self._held[runner_id] = held_by(report)
        self._promised.add(runner_id)
        self.n_promises += 1

    def withdraw(self, runner_id: str) -> None:
        """Take a promise back: the runner does not hold it after all."""
        self._held.pop(runner_id, None)
        self._promised.discard(runner_id)

    def hold(self, runner_id: str, report: MemoryReport, *, is_new: bool) -> None:
        """A runner has allocated this much; `is_new`: since the last reading.  Replaces what it held."""
        before = {} if runner_id in self._promised else self._held.get(runner_id, {})
        held = self._held[runner_id] = held_by(report)
        self._promised.discard(runner_id)
        if not is_new:
            return
        self.n_takings += 1
        for device in before.keys() | held.keys():
            taken = _own_bytes(held, device) - _own_bytes(before, device)
            self._since[device] += taken
            self.recovery.took(device, taken)

    def drop(self, runner_id: str, name: str, now_s: float) -> None:
        """A runner ended: its host memory is free, and what it held elsewhere when a reading shows it."""
        if runner_id in self._promised:
            self.withdraw(runner_id)
            return
        self.n_takings += 1
        free = {device.id: device for device in self.free()}
        for device_id, part in self._held.pop(runner_id, {}).items():
            device = free.get(device_id)
            is_awaited = (
                device is not None
                and not _shares_host_memory(device)
                and self.recovery.expect(device, device.free_bytes, part.own_bytes, name, now_s)
            )
            if not is_awaited:
                self._since[device_id] -= part.own_bytes

    def held_bytes(self, runner_id: str) -> dict[str, int]:
        """What a runner holds, or was promised, by device id."""
        return {device: held.bytes for device, held in self._held.get(runner_id, {}).items()}

    def all_held_bytes(self) -> dict[str, int]:
        """What all runners hold together, by device id; devices that nobody uses are named with 0."""
        total = Counter({device.id: 0 for device in self._devices})
        for runner_id in self._held:
            total.update(self.held_bytes(runner_id))
        return dict(total)

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
            promised = sum(_own_bytes(self._held[runner_id], device.id) for runner_id in self._promised)
            reported = device.free_bytes - self._since[device.id] - promised - mapped
            # cache pages that were never touched are in no reading, but they are spoken for
            unspoken = device.total_bytes - sum(part.bytes for part in parts)
            free = max(0, min(reported, unspoken, device.total_bytes))
            yield msgspec.structs.replace(device, free_bytes=free)


def _own_bytes(held: dict[str, Held], device: str) -> int:
    return held[device].own_bytes if device in held else 0


def _shares_host_memory(device: Device) -> bool:
    return device.id == CPU or device.is_integrated
