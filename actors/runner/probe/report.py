"""What all probes have in common: the shape of a probe, and the reasons that are the same for all of them."""

from collections.abc import Iterable
from pathlib import Path
from typing import Final, Protocol

import msgspec

from actors.config import Config
from actors.protocol import Device, FreeMemory, LibraryReport

BACKENDS: Final = frozenset({"cpu", "cuda", "sim"})
"""Libraries that runners of this build compute on."""


class Surroundings(msgspec.Struct, frozen=True):
    """What a probe looks at besides the library itself; tests bring their own."""

    config: Config
    variables: dict[str, str]  # the environment variables that hide or rename devices
    pci: Path = Path("/sys/bus/pci/devices")
    dev: Path = Path("/dev")
    cpus: Path = Path("/sys/devices/system/cpu")


class Probe(Protocol):
    """One library.  Runs in a process that may crash or hang; nobody else is harmed."""

    def look(self, around: Surroundings) -> LibraryReport:
        """What is there, without a context on any device."""
        ...

    def check(self, around: Surroundings, device_id: str) -> LibraryReport:
        """Use one device for real; the report has that device alone, with its reason if it does not work."""
        ...

    def measure(self, around: Surroundings) -> tuple[FreeMemory, ...]:
        """The memory of all devices now, without a context on any; called again and again."""
        ...


def refuse(device: Device, reason: str) -> Device:
    """The device, with why runners cannot use it."""
    return msgspec.structs.replace(device, is_usable=False, reason=reason)


def judge(device: Device) -> Device:
    """A device that works, refused all the same where this build has no backend for its library."""
    if device.library in BACKENDS:
        return device
    return refuse(device, f"no backend for {device.library} yet")


def find_device(devices: Iterable[Device], device_id: str) -> Device | None:
    """The device of that id."""
    return next((device for device in devices if device.id == device_id), None)


def failed(library: str, reason: str, device: Device | None = None) -> LibraryReport:
    """A report of one thing that does not work: a device, or the library."""
    devices = () if device is None else (refuse(device, reason),)
    return LibraryReport(library, "failed", devices, reason=reason)
