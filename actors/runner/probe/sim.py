"""Simulated accelerators, in the folder that the settings name."""

from typing import Final

from actors.protocol import Device, FreeMemory, LibraryReport
from actors.runner.probe.report import Surroundings
from kernels.sim.machine import SimMachine
from kernels.sim.probe import Sighting, probe

LIBRARY: Final = "sim"


class Sim:
    """Satisfies `report.Probe`.  Crashes, hangs and is late as the machine's script says."""

    def look(self, around: Surroundings) -> LibraryReport:
        """What the simulated driver reports, the scripted faults included."""
        folder = around.config.sim_dir
        devices = tuple(_device(sighting) for sighting in probe(SimMachine(folder)))
        if not devices:
            return LibraryReport(LIBRARY, "none", reason=f"the machine in {folder} has no devices")
        return LibraryReport(LIBRARY, "found", devices)

    def check(self, around: Surroundings, device_id: str) -> LibraryReport:
        """Nothing is left to check: what is listed works."""
        del device_id
        return self.look(around)

    def measure(self, around: Surroundings) -> tuple[FreeMemory, ...]:
        """What each device says is free, which may be a lie."""
        sightings = probe(SimMachine(around.config.sim_dir))
        return tuple(FreeMemory(_id(s), s.total_bytes, s.free_bytes) for s in sightings)


def _id(sighting: Sighting) -> str:
    # a backend finds a simulated device by its UUID or by its own id; the PCI id is for telling doubles
    return sighting.uuid or sighting.id


def _device(sighting: Sighting) -> Device:
    return Device(
        id=_id(sighting),
        library=LIBRARY,
        name=sighting.name,
        total_bytes=sighting.total_bytes,
        free_bytes=sighting.free_bytes,
        is_integrated=sighting.is_integrated,
        pci_id=sighting.pci_id,
        memory_from=LIBRARY,
        bytes_per_s=sighting.bytes_per_s,
        copy_s=sighting.copy_s,
    )
