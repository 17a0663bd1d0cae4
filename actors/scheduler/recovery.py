"""Device memory that ended runners held, and that no reading has shown to be free again.

A driver gives memory back some time after the process has ended, so what a load may count on is what a
reading shows, device by device.  Memory that somebody else takes meanwhile is not gained, and what we take
ourselves is not lost: the baseline falls with it.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from actors.protocol import Device
from actors.scheduler.sizes import size_text

RECOVERY_S = 5.0  # drivers take a second or two; after this the reading is believed as it is
ENOUGH = 0.75  # of what is awaited: contexts and caches of the driver come and go
WORTH_AWAITING = 0.02  # of the device's memory: discovery does not tell of changes below a hundredth


@dataclass(slots=True)
class Awaited:
    """What one device owes.  Bytes; times in seconds of one clock."""

    device: str
    baseline_bytes: int  # free when the first of the runners ended, without what they held
    awaited_bytes: int
    names: tuple[str, ...]  # of the models that held it
    until_s: float
    gained_bytes: int = 0  # negative when less is free than before they ended

    def __str__(self) -> str:
        return (
            f"{size_text(self.awaited_bytes)} of {', '.join(self.names)} on {self.device} to come back "
            f"({size_text(self.gained_bytes)} did)"
        )


class Recovery:
    """What is awaited, at most one entry a device."""

    def __init__(self) -> None:
        self._awaited: dict[str, Awaited] = {}

    def expect(self, device: Device, free_bytes: int, n_bytes: int, name: str, now_s: float) -> bool:
        """A runner that held `n_bytes` of the device ended; False when there is nothing worth awaiting."""
        known = self._awaited.get(device.id)
        if known is None and n_bytes < WORTH_AWAITING * device.total_bytes:
            return False
        if known is None:
            known = self._awaited[device.id] = Awaited(device.id, free_bytes, 0, (), 0.0)
        known.awaited_bytes += n_bytes
        known.names = (*known.names, name)
        known.until_s = now_s + RECOVERY_S
        return True

    def took(self, device: str, n_bytes: int) -> None:
        """We allocated so much of the device ourselves."""
        if device in self._awaited:
            self._awaited[device].baseline_bytes -= n_bytes

    def read(self, devices: Iterable[Device]) -> None:
        """A new reading; devices that are gone owe nothing."""
        free = {device.id: device.free_bytes for device in devices}
        for awaited in tuple(self._awaited.values()):
            if awaited.device in free:
                awaited.gained_bytes = free[awaited.device] - awaited.baseline_bytes
            if awaited.device not in free or awaited.gained_bytes >= ENOUGH * awaited.awaited_bytes:
                del self._awaited[awaited.device]

    def pending(self) -> tuple[Awaited, ...]:
        """What is awaited still."""
        return tuple(self._awaited.values())

    def give_up(self, now_s: float) -> tuple[Awaited, ...]:
        """Forget, and return, what did not come within RECOVERY_S."""
        late = tuple(awaited for awaited in self._awaited.values() if awaited.until_s <= now_s)
        for awaited in late:
            del self._awaited[awaited.device]
        return late
