"""Graphics cards on the PCI bus, as the kernel lists them: also those without a driver.

The files are described in the kernel's Documentation/ABI/testing/sysfs-bus-pci and in its amdgpu guide.
"""

from pathlib import Path
from typing import Final

import msgspec

NVIDIA: Final = "0x10de"
AMD: Final = "0x1002"
CLASSES: Final = ("0x03", "0x12")
"""Display controllers, and processing accelerators without a display."""


class Card(msgspec.Struct, frozen=True):
    """One card; `model` is the number its maker gave it."""

    pci_id: str
    model: str
    folder: Path

    def number(self, name: str) -> int | None:
        """The number in one of the card's files; None when there is no such file."""
        word = read_word(self.folder / name)
        return int(word) if word.isdigit() else None


def read_word(path: Path) -> str:
    """The text of a small file; "" when it cannot be read."""
    try:
        return path.read_text(errors="replace").strip()
    except OSError:
        return ""


def find_cards(folder: Path, vendor: str) -> tuple[Card, ...]:
    """The vendor's cards by PCI id."""
    return tuple(
        Card(pci_id=normal_pci_id(path.name), model=read_word(path / "device"), folder=path)
        for path in sorted(folder.glob("*:*"))
        if read_word(path / "vendor") == vendor and read_word(path / "class").startswith(CLASSES)
    )


def normal_pci_id(text: str) -> str:
    """As the kernel writes it, "0000:01:00.0"; vendors write longer domains, capitals, or no function."""
    domain, _, rest = text.lower().rpartition(":")[0].rpartition(":")
    slot = text.lower().rpartition(":")[2]
    slot = slot if "." in slot else f"{slot}.0"
    return f"{int(domain or '0', 16):04x}:{rest}:{slot}" if rest else text.lower()
