"""AMD's cards and their memory without a context: from the kernel's files, else from amdsmi.

The kernel's files come first: amdsmi reads the same ones, and loads a large library to do it.
"""

import importlib
from pathlib import Path
from typing import Any

from actors.pci import AMD, Card, find_cards, read_word


def amd_cards(folder: Path) -> dict[str, Card]:
    """The cards by PCI id."""
    return {card.pci_id: card for card in find_cards(folder, AMD)}


def card_id(card: Card) -> str:
    """The id that ROCR_VISIBLE_DEVICES takes, from the card's serial number; else the PCI id."""
    serial = read_word(card.folder / "unique_id")
    return f"GPU-{serial}" if serial and int(serial, 16) else card.pci_id


def card_memory(card: Card, smi: dict[str, tuple[int, int]]) -> tuple[int, int, str] | None:
    """Total and free bytes and who says so; None when nobody does."""
    total, used = card.number("mem_info_vram_total"), card.number("mem_info_vram_used")
    if total is not None and used is not None:
        return total, max(0, total - used), "sysfs"
    if (memory := smi.get(card.pci_id)) is not None:
        return (*memory, "amdsmi")
    return None


def smi_memory() -> dict[str, tuple[int, int]]:
    """Total and free bytes by PCI id, as amdsmi says; empty without it."""
    try:
        amdsmi: Any = importlib.import_module("amdsmi")
    except Exception:  # noqa: BLE001  # it raises KeyError and OSError, too, where its library is not found
        return {}
    try:
        amdsmi.amdsmi_init()
        return dict(_smi_memory(amdsmi, handle) for handle in amdsmi.amdsmi_get_processor_handles())
    except amdsmi.AmdSmiException:
        return {}


def _smi_memory(amdsmi: Any, handle: object) -> tuple[str, tuple[int, int]]:  # noqa: ANN401  # no stubs
    vram = amdsmi.AmdSmiMemoryType.VRAM
    total = int(amdsmi.amdsmi_get_gpu_memory_total(handle, vram))
    used = int(amdsmi.amdsmi_get_gpu_memory_usage(handle, vram))
    return str(amdsmi.amdsmi_get_gpu_device_bdf(handle)).lower(), (total, max(0, total - used))
