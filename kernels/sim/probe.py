"""What a simulated driver answers when it is asked for its devices, with everything that can go wrong."""

import os
import signal
import time
from typing import NamedTuple

from kernels.sim.machine import SimMachine


class Sighting(NamedTuple):
    """A device as the driver reports it; free_bytes may be a lie."""

    id: str
    name: str
    total_bytes: int
    free_bytes: int
    is_integrated: bool
    uuid: str
    pci_id: str
    bytes_per_s: float
    copy_s: float


def probe(machine: SimMachine) -> list[Sighting]:
    """Ask the driver, in a process that may be lost: it crashes, hangs or comes late as scripted."""
    script = machine.probe_script()
    time.sleep(script.late_s)
    if script.is_crashing:
        signal.signal(signal.SIGSEGV, signal.SIG_DFL)  # a sanitizer would answer it otherwise
        os.kill(os.getpid(), signal.SIGSEGV)
    if script.is_hanging:
        while True:
            signal.pause()
    sightings = [
        Sighting(
            script.other_ids.get(device.id, device.id),
            device.name,
            device.total_bytes,
            machine.reported_free(device.id),
            device.is_integrated,
            device.uuid,
            device.pci_id,
            device.bytes_per_s,
            device.copy_s,
        )
        for device in machine.devices()
    ]
    return sightings * 2 if script.has_duplicates else sightings
