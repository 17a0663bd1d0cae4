"""What the libraries report, made one list: doubles removed, shared memory taken from the host.  Pure."""

from collections.abc import Mapping, Sequence
from typing import Final

import msgspec

from actors.protocol import Device, FreeMemory, LibraryReport

HOST: Final = "cpu"
HOST_MEMORY: Final = "host"  # where an integrated device's memory is
RANK: Final = ("cuda", "rocm", "sim", "cpu")
"""The better library for a device that two of them see: the vendor's own comes first."""


class Merged(msgspec.Struct, frozen=True):
    """The devices that runners can use, the host first, and the others, each with its reason."""

    usable: tuple[Device, ...]
    filtered: tuple[Device, ...]


def merge(host: Device, reports: Sequence[LibraryReport]) -> Merged:
    """One list from all.  The host is always in it: every load needs its memory."""
    by_rank = sorted(reports, key=lambda report: RANK.index(report.library))
    kernels = next((report for report in reports if report.library == HOST), None)
    if kernels is not None:
        host = _with_kernels(host, kernels)
    found = [
        _with_host_memory(device, host)
        for report in by_rank
        if report.library != HOST
        for device in report.devices
    ]
    usable, filtered = [host], [device for device in found if not device.is_usable]
    for device in found:
        if not device.is_usable:
            continue
        if (twin := _twin(device, usable)) is None:
            usable.append(device)
        else:
            is_double = twin.library == device.library
            reason = "listed twice" if is_double else f"the same device as {twin.library}'s {twin.id}"
            filtered.append(msgspec.structs.replace(device, is_usable=False, reason=reason))
    return Merged(tuple(usable), tuple(filtered))


def _with_kernels(host: Device, kernels: LibraryReport) -> Device:
    """The host with what its kernels' probe knows of it: whether they run, how fast memory is read."""
    if kernels.state == "failed":
        return msgspec.structs.replace(host, is_usable=False, reason=kernels.reason)
    measured = next((device.bytes_per_s for device in kernels.devices if device.id == HOST), 0.0)
    return msgspec.structs.replace(host, bytes_per_s=measured)


def _twin(device: Device, taken: Sequence[Device]) -> Device | None:
    """The same device among those taken.  Parts of one card share a PCI id within a library."""
    for other in taken:
        is_same_card = bool(device.pci_id) and device.pci_id == other.pci_id
        if device.id == other.id or (is_same_card and device.library != other.library):
            return other
    return None


def _with_host_memory(device: Device, host: Device) -> Device:
    """A device without memory of its own has what the host has, and not more than it can address."""
    if device.memory_from != HOST_MEMORY:
        return device
    total_bytes = min(host.total_bytes, device.total_bytes or host.total_bytes)
    return msgspec.structs.replace(
        device, total_bytes=total_bytes, free_bytes=min(total_bytes, host.free_bytes)
    )


def with_memory(report: LibraryReport, memory: Sequence[FreeMemory]) -> tuple[LibraryReport, bool]:
    """The report with this reading in it, and whether both speak of the same devices.

    A device whose memory is watched and which the reading lacks is gone, and leaves the report at once.
    """
    reading = {item.id: item for item in memory}
    devices = tuple(
        _updated(device, reading)
        for device in report.devices
        if device.id in reading or not is_watched(device)
    )
    agrees = len(devices) == len(report.devices) and reading.keys() <= {device.id for device in devices}
    return msgspec.structs.replace(report, devices=devices), agrees


def is_watched(device: Device) -> bool:
    """Its free memory can be read without a context on it."""
    return device.memory_from in ("nvml", "amdsmi", "sysfs", "sim")


def _updated(device: Device, reading: Mapping[str, FreeMemory]) -> Device:
    item = reading.get(device.id)
    if item is None or not is_watched(device):
        return device
    return msgspec.structs.replace(device, total_bytes=item.total_bytes, free_bytes=item.free_bytes)
