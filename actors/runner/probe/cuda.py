"""NVIDIA's GPUs through CuPy.

CuPy says what can be used: it obeys CUDA_VISIBLE_DEVICES.  The management library and the bus say what else
is there, so that a GPU without CuPy, without a driver, or hidden by a variable is named with its reason.
"""

from collections.abc import Iterable, Mapping
from typing import Final

import msgspec

from actors.errors import Unsupported
from actors.pci import NVIDIA, Card, find_cards
from actors.protocol import Device, FreeMemory, LibraryReport
from actors.runner.probe.cupy import Cupy, CupyDevice, checked
from actors.runner.probe.nvml import Nvml, NvmlDevice, read_nvml
from actors.runner.probe.report import Surroundings, failed, find_device, refuse

LIBRARY: Final = "cuda"
LEAST_COMPUTE: Final = (7, 5)  # the tensor cores that attention over prompts is made for
NO_DRIVER: Final = "install NVIDIA's driver, and start a container with --gpus all"


class Cuda:
    """Satisfies `report.Probe`."""

    def look(self, around: Surroundings) -> LibraryReport:
        """Every GPU there is; those that CuPy lists are still to be checked."""
        cards = find_cards(around.pci, NVIDIA)
        try:
            nvml = read_nvml()
        except Unsupported as fault:
            nvml, silence = None, fault.message
        else:
            silence = ""
        facts = {} if nvml is None else {"driver": nvml.driver}
        try:
            cupy = Cupy(LIBRARY)
        except Unsupported as fault:
            return _without_cupy(nvml, cards, fault.message, silence, facts)
        facts |= cupy.facts
        try:
            listed = cupy.devices()
        except Unsupported as fault:
            report = _without_runtime(nvml, cards, fault.message, silence, facts, around.variables)
        else:
            report = _listing(listed, nvml, cards, facts, around.variables)
        what, mend = cupy.mismatch
        return msgspec.structs.replace(report, reason=what, mend=mend) if what else report

    def check(self, around: Surroundings, device_id: str) -> LibraryReport:
        """Compute something on one GPU and measure its speed."""
        report = self.look(around)
        device = find_device(report.devices, device_id)
        if device is None or device_id not in report.unchecked:
            return failed(LIBRARY, "the device is gone")
        listed = find_listed(device_id)
        if listed is None:
            return failed(LIBRARY, "the device is gone")
        return checked(Cupy(LIBRARY), listed.ordinal, device)

    def measure(self, around: Surroundings) -> tuple[FreeMemory, ...]:
        """Of every GPU that has memory of its own; none without the management library."""
        del around
        try:
            devices = read_nvml().devices
        except Unsupported:
            return ()
        return tuple(FreeMemory(d.id, *d.memory) for d in devices if d.memory is not None)


def find_listed(device_id: str) -> CupyDevice | None:
    """The device of this id as CuPy lists it, None when it does not; Unsupported when CuPy does not work."""
    listed = Cupy(LIBRARY).devices()
    try:
        nvml = read_nvml()
    except Unsupported:
        nvml = None
    by_bus = _by_bus(nvml)
    return next((one for one in listed if _of_cupy(one, by_bus.get(one.pci_id)).id == device_id), None)


def _by_bus(nvml: Nvml | None) -> Mapping[str, NvmlDevice]:
    return {gpu.pci_id: gpu for gpu in nvml.devices} if nvml is not None else {}


def _without_cupy(
    nvml: Nvml | None, cards: tuple[Card, ...], why: str, silence: str, facts: dict[str, str]
) -> LibraryReport:
    if nvml is not None and nvml.devices:
        devices = tuple(refuse(_of_nvml(gpu), why) for gpu in nvml.devices)
        package = "cupy-cuda13x" if nvml.cuda >= (13, 0) else "cupy-cuda12x"
        return LibraryReport(LIBRARY, "missing", devices, why, f"pip install {package}", facts)
    if cards:
        devices = tuple(_of_card(card, silence or "the driver does not list it") for card in cards)
        return LibraryReport(LIBRARY, "missing", devices, silence, NO_DRIVER, facts)
    return LibraryReport(LIBRARY, "none", reason=f"no NVIDIA GPU is here ({silence or why})", facts=facts)


def _without_runtime(
    nvml: Nvml | None,
    cards: tuple[Card, ...],
    why: str,
    silence: str,
    facts: dict[str, str],
    variables: Mapping[str, str],
) -> LibraryReport:
    """CuPy is there and lists nothing: no driver, one too old, or everything is hidden."""
    rest = _unlisted((), nvml, cards, variables, why)
    if nvml is not None and "CUDA_VISIBLE_DEVICES" in variables:
        return LibraryReport(LIBRARY, "found" if rest else "none", rest, why, facts=facts)
    if rest:
        mend = "update NVIDIA's driver" if nvml is not None else NO_DRIVER
        return LibraryReport(LIBRARY, "missing", rest, why, mend, facts)
    return LibraryReport(LIBRARY, "none", reason=f"no NVIDIA GPU is here ({silence or why})", facts=facts)


def _listing(
    listed: tuple[CupyDevice, ...],
    nvml: Nvml | None,
    cards: tuple[Card, ...],
    facts: dict[str, str],
    variables: Mapping[str, str],
) -> LibraryReport:
    by_bus = _by_bus(nvml)
    mine = tuple(_of_cupy(device, by_bus.get(device.pci_id)) for device in listed)
    rest = _unlisted(mine, nvml, cards, variables, "the CUDA runtime does not list it")
    unchecked = tuple(device.id for device in mine if device.is_usable)
    state = "found" if mine or rest else "none"
    reason = "" if mine else "the CUDA runtime lists no device"
    return LibraryReport(LIBRARY, state, mine + rest, reason, facts=facts, unchecked=unchecked)


def _unlisted(
    mine: Iterable[Device],
    nvml: Nvml | None,
    cards: tuple[Card, ...],
    variables: Mapping[str, str],
    why: str,
) -> tuple[Device, ...]:
    """GPUs that the runtime does not list, each with the likely reason."""
    seen = {device.pci_id for device in mine} | {device.id for device in mine}
    visible = variables.get("CUDA_VISIBLE_DEVICES")
    hidden = why if visible is None else f'hidden by CUDA_VISIBLE_DEVICES="{visible}"'
    found: list[Device] = []
    for gpu in nvml.devices if nvml is not None else ():
        if not seen & {gpu.pci_id, gpu.id}:
            found.append(refuse(_of_nvml(gpu), hidden))
            seen.add(gpu.pci_id)
    found += [_of_card(card, "no driver answers for it") for card in cards if card.pci_id not in seen]
    return tuple(found)


def _of_nvml(gpu: NvmlDevice) -> Device:
    total_bytes, free_bytes = gpu.memory or (0, 0)
    return Device(
        id=gpu.id,
        library=LIBRARY,
        name=gpu.name,
        total_bytes=total_bytes,
        free_bytes=free_bytes,
        pci_id=gpu.pci_id,
        memory_from="host" if gpu.memory is None else "nvml",
    )


def _of_card(card: Card, why: str) -> Device:
    name = f"NVIDIA card {card.model}"
    return refuse(Device(card.pci_id, LIBRARY, name, 0, 0, pci_id=card.pci_id), why)


def _of_cupy(device: CupyDevice, gpu: NvmlDevice | None) -> Device:
    """The management library knows a GPU's UUID and its free memory better."""
    is_shared = device.is_integrated or (gpu is not None and gpu.memory is None)
    total_bytes, free_bytes = (gpu and gpu.memory) or (device.total_bytes, 0)
    made = Device(
        id=gpu.id if gpu is not None else device.uuid or device.pci_id or f"{LIBRARY}:{device.ordinal}",
        library=LIBRARY,
        name=device.name,
        total_bytes=total_bytes,
        free_bytes=free_bytes,
        is_integrated=device.is_integrated,
        pci_id=device.pci_id,
        compute=f"{device.compute[0]}.{device.compute[1]}",
        memory_from="host" if is_shared else "library" if gpu is None else "nvml",
    )
    if device.compute < LEAST_COMPUTE:
        least = ".".join(map(str, LEAST_COMPUTE))
        return refuse(made, f"its compute capability is {made.compute}, kernels need {least}")
    return made
