"""The host's processor: whether the native kernels load and compute here, and with which instructions."""

from typing import Final

from actors.errors import ConfigError
from actors.protocol import FreeMemory, LibraryReport
from actors.runner.devices import open_backends
from actors.runner.probe.report import Surroundings, failed
from kernels.cpu.backend import EMULATED, available_isas

LIBRARY: Final = "cpu"
PROBE_BYTES: Final = 4096


class Cpu:
    """Satisfies `report.Probe`.  The host's memory is discovery's own to measure."""

    def look(self, around: Surroundings) -> LibraryReport:
        """Open the backend as a runner would, and allocate; the wrong instruction set ends this process."""
        isa = around.config.cpu_isa
        try:
            backend = open_backends(isa, 1)[LIBRARY]
        except ConfigError as fault:
            return failed(LIBRARY, str(fault))
        backend.allocate(PROBE_BYTES, "probe").free()
        found = [name for name in available_isas() if name != EMULATED]
        return LibraryReport(
            LIBRARY, "found", facts={"kernels": isa or found[0], "could run": ", ".join(found)}
        )

    def check(self, around: Surroundings, device_id: str) -> LibraryReport:
        """Nothing is left to check."""
        del device_id
        return self.look(around)

    def measure(self, around: Surroundings) -> tuple[FreeMemory, ...]:
        """None: see the class."""
        del around
        return ()
