"""AMD's GPUs through CuPy.

CuPy says what can be used: it obeys ROCR_VISIBLE_DEVICES, HIP_VISIBLE_DEVICES, GPU_DEVICE_ORDINAL, and
CUDA_VISIBLE_DEVICES too.  The bus says what else is there.
"""

import os
from collections.abc import Mapping
from typing import Final

from actors.errors import Unsupported
from actors.pci import Card
from actors.protocol import Device, FreeMemory, LibraryReport
from actors.runner.probe.amd import amd_cards, card_id, card_memory, smi_memory
from actors.runner.probe.cupy import Cupy, CupyDevice, checked
from actors.runner.probe.report import Surroundings, failed, find_device, refuse

LIBRARY: Final = "rocm"
HIDES: Final = (
    "ROCR_VISIBLE_DEVICES",
    "HIP_VISIBLE_DEVICES",
    "GPU_DEVICE_ORDINAL",
    "CUDA_VISIBLE_DEVICES",
)
NO_DRIVER: Final = "load the amdgpu driver, and start a container with --device /dev/kfd --device /dev/dri"
NO_PERMISSION: Final = "add yourself to the groups render and video, and log in again"
NO_CUPY: Final = "install CuPy built for ROCm: see docs.cupy.dev, 'Using CuPy on AMD GPU'"


class Rocm:
    """Satisfies `report.Probe`."""

    def look(self, around: Surroundings) -> LibraryReport:
        """Every GPU there is; those that CuPy lists are still to be checked."""
        cards = amd_cards(around.pci)
        smi = smi_memory() if _needs_smi(cards) else {}
        # without the compute driver the HIP runtime may abort instead of answering: it is not asked
        if (silence := _no_driver(around)) is not None:
            why, mend = silence
            if not cards:
                return LibraryReport(LIBRARY, "none", reason=f"no AMD GPU is here ({why})")
            devices = tuple(refuse(_of_card(card, smi), why) for card in cards.values())
            return LibraryReport(LIBRARY, "missing", devices, why, mend)
        try:
            cupy = Cupy(LIBRARY)
        except Unsupported as fault:
            devices = tuple(refuse(_of_card(card, smi), fault.message) for card in cards.values())
            return LibraryReport(LIBRARY, "missing", devices, fault.message, NO_CUPY)
        facts = cupy.facts
        try:
            listed = cupy.devices()
        except Unsupported as fault:
            devices = _unlisted(cards, smi, set(), around.variables, fault.message)
            return LibraryReport(LIBRARY, "found" if devices else "none", devices, fault.message, facts=facts)
        mine = tuple(_of_cupy(device, cards.get(device.pci_id), smi) for device in listed)
        seen = {device.pci_id for device in mine}
        rest = _unlisted(cards, smi, seen, around.variables, "the HIP runtime does not list it")
        unchecked = tuple(device.id for device in mine)
        state = "found" if mine or rest else "none"
        return LibraryReport(LIBRARY, state, mine + rest, facts=facts, unchecked=unchecked)

    def check(self, around: Surroundings, device_id: str) -> LibraryReport:
        """Compute on one GPU and measure its speed: the compiler knows which it can make code for."""
        report = self.look(around)
        device = find_device(report.devices, device_id)
        if device is None or device_id not in report.unchecked:
            return failed(LIBRARY, "the device is gone")
        cupy, ordinal = Cupy(LIBRARY), report.unchecked.index(device_id)
        return checked(cupy, ordinal, device)

    def measure(self, around: Surroundings) -> tuple[FreeMemory, ...]:
        """Of every card whose memory somebody knows."""
        cards = amd_cards(around.pci)
        smi = smi_memory() if _needs_smi(cards) else {}
        known = ((card_id(card), card_memory(card, smi)) for card in cards.values())
        return tuple(FreeMemory(name, memory[0], memory[1]) for name, memory in known if memory is not None)


def _needs_smi(cards: Mapping[str, Card]) -> bool:
    return any(card_memory(card, {}) is None for card in cards.values())


def _no_driver(around: Surroundings) -> tuple[str, str] | None:
    """Why the compute driver cannot be asked, and how to mend it."""
    kfd = around.dev / "kfd"
    if not kfd.exists():
        return "the AMD compute driver is not loaded: /dev/kfd is missing", NO_DRIVER
    if not os.access(kfd, os.R_OK | os.W_OK):
        return "/dev/kfd may not be opened by this user", NO_PERMISSION
    return None


def _unlisted(
    cards: Mapping[str, Card],
    smi: dict[str, tuple[int, int]],
    seen: set[str],
    variables: Mapping[str, str],
    why: str,
) -> tuple[Device, ...]:
    """Cards that the runtime does not list, each with the likely reason."""
    hiding = [f'{name}="{variables[name]}"' for name in HIDES if name in variables]
    reason = f"hidden by {' or '.join(hiding)}" if hiding else why
    return tuple(refuse(_of_card(card, smi), reason) for bus, card in cards.items() if bus not in seen)


def _of_card(card: Card, smi: dict[str, tuple[int, int]]) -> Device:
    total_bytes, free_bytes, source = card_memory(card, smi) or (0, 0, "")
    return Device(
        id=card_id(card),
        library=LIBRARY,
        name=f"AMD card {card.model}",
        total_bytes=total_bytes,
        free_bytes=free_bytes,
        pci_id=card.pci_id,
        memory_from=source,
    )


def _of_cupy(device: CupyDevice, card: Card | None, smi: dict[str, tuple[int, int]]) -> Device:
    memory = None if card is None else card_memory(card, smi)
    total_bytes, free_bytes, source = memory or (device.total_bytes, 0, "library")
    return Device(
        id=card_id(card) if card is not None else device.pci_id or f"{LIBRARY}:{device.ordinal}",
        library=LIBRARY,
        name=device.name,
        total_bytes=total_bytes,
        free_bytes=free_bytes,
        is_integrated=device.is_integrated,
        pci_id=device.pci_id,
        compute=device.arch,
        memory_from="host" if device.is_integrated else source,
    )
