"""When a change of the devices is worth telling."""

from collections.abc import Iterable
from typing import Final

import msgspec

from actors.protocol import Device, Devices

WORTH_TELLING: Final = 0.01
"""Of a device's memory: less comes and goes all the time."""


def is_news(told: Devices | None, now: Devices) -> bool:
    """Something else than free memory has changed, or some device's free memory by over WORTH_TELLING."""
    if told is None or told.cpu != now.cpu or _fixed(told.devices) != _fixed(now.devices):
        return True
    return any(
        abs(new.free_bytes - old.free_bytes) > WORTH_TELLING * new.total_bytes
        for old, new in zip(told.devices, now.devices, strict=True)
    )


def _fixed(devices: Iterable[Device]) -> list[Device]:
    return [msgspec.structs.replace(device, free_bytes=0, swap_bytes=0) for device in devices]
