"""Whether a vendor's devices can be here at all: the kernel's files say it without any driver.

Most machines lack most vendors.  Where no card is on the bus and no driver has made its files, no probe needs
to be started; where there is any sign of one, the probe decides.
"""

from pathlib import Path
from typing import Final

from actors.pci import AMD, NVIDIA, find_cards

PCI: Final = Path("/sys/bus/pci/devices")
DEV: Final = Path("/dev")
_SIGNS: Final = {
    # vendor, and files under /dev: of the driver, of Windows' subsystem for Linux, of boards without a bus
    "cuda": (NVIDIA, "NVIDIA GPU", ("nvidiactl", "nvidia0", "dxg", "nvhost-gpu", "nvgpu", "nvmap")),
    "rocm": (AMD, "AMD GPU", ("kfd", "dxg")),
}


def why_absent(library: str, pci: Path = PCI, dev: Path = DEV) -> str | None:
    """Why there is nothing to probe for; None when there may be something.  Reads files."""
    if library not in _SIGNS:
        return None
    vendor, kind, files = _SIGNS[library]
    if find_cards(pci, vendor) or any((dev / name).exists() for name in files):
        return None
    return f"no {kind} is here: none on the bus, and no driver's file in {dev}"
