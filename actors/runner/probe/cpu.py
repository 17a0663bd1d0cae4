"""The host's processor: whether the native kernels load and allocate here, and with which instructions."""

from typing import Final

from actors.protocol import FreeMemory, LibraryReport
from actors.runner.probe.report import Surroundings, failed
from kernels.cpu.backend import EMULATED, CpuBackend, available_isas

LIBRARY: Final = "cpu"
REFERENCE: Final = "reference"  # the setting cpu_isa for the numpy reference instead of native kernels
PROBE_BYTES: Final = 4096


class Cpu:
    """Satisfies `report.Probe`.  The host's memory is discovery's own to measure."""

    def look(self, around: Surroundings) -> LibraryReport:
        """Open the backend that a runner would, and allocate; the wrong instructions end this process."""
        isa = around.config.cpu_isa
        if isa == REFERENCE:
            return LibraryReport(LIBRARY, "found", facts={"kernels": REFERENCE})
        try:
            CpuBackend(1, isa or None).allocate(PROBE_BYTES, "probe").free()
        except ValueError as exc:
            return failed(LIBRARY, str(exc))
        found = [name for name in available_isas() if name != EMULATED]
        facts = {"kernels": isa or found[0], "could run": ", ".join(found)}
        return LibraryReport(LIBRARY, "found", facts=facts)

    def check(self, around: Surroundings, device_id: str) -> LibraryReport:
        """Nothing is left to check."""
        del device_id
        return self.look(around)

    def measure(self, around: Surroundings) -> tuple[FreeMemory, ...]:
        """None: see the class."""
        del around
        return ()
