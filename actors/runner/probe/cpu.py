"""The host: whether the native kernels load and allocate here, with which instructions, how fast it reads."""

import os
from pathlib import Path
from typing import Final

from actors.protocol import Device, FreeMemory, LibraryReport
from actors.runner.probe.report import Surroundings, failed
from kernels.cpu.backend import EMULATED, MAX_THREADS, CpuBackend, available_isas
from kernels.cpu.limits import read_bytes_per_s
from kernels.cpu.memory import available_bytes

LIBRARY: Final = "cpu"
REFERENCE: Final = "reference"  # the setting cpu_isa for the numpy reference instead of native kernels
PROBE_BYTES: Final = 4096
READ_BYTES: Final = 64 << 20
"""Streamed through to measure the host's memory: with its allocation under 0.2 s of a slow processor."""
READ_MAX_BYTES: Final = 2 << 30
"""Processors with 300 MiB of cache are rented out two cores at a time; more than 1 GiB has none yet."""
CACHE_LEVEL: Final = 3
CACHE_FILES: Final = ("level", "size", "shared_cpu_list")
IN_CACHE: Final = 2
"""Times what the caches hold is streamed through, or part of it would be read from them."""
SPARE: Final = 4
"""Only a fourth of what is available may be taken, and for a moment."""


class Cpu:
    """Satisfies `report.Probe`.  The size of the host's memory is discovery's own to measure."""

    def look(self, around: Surroundings) -> LibraryReport:
        """Open the backend that a runner would, and allocate; the wrong instructions end this process."""
        isa = around.config.cpu_isa
        if isa == REFERENCE:
            return LibraryReport(LIBRARY, "found", facts={"kernels": REFERENCE})
        n_threads = around.config.n_thread or len(os.sched_getaffinity(0))
        try:
            backend = CpuBackend(min(n_threads, MAX_THREADS), isa or None)
        except ValueError as exc:
            return failed(LIBRARY, str(exc))
        backend.allocate(PROBE_BYTES, "probe").free()
        found = [name for name in available_isas() if name != EMULATED]
        facts = {"kernels": backend.isa, "could run": ", ".join(found)}
        return LibraryReport(LIBRARY, "found", (_host(backend, around.cpus),), facts=facts)

    def check(self, around: Surroundings, device_id: str) -> LibraryReport:
        """Nothing is left to check."""
        del device_id
        return self.look(around)

    def measure(self, around: Surroundings) -> tuple[FreeMemory, ...]:
        """None: see the class."""
        del around
        return ()


def _host(backend: CpuBackend, cpus: Path) -> Device:
    """The host, of which this probe knows the speed alone: 0 where it was not measured."""
    n_bytes = streamed_bytes(cache_bytes(cpus), available_bytes())
    bytes_per_s = read_bytes_per_s(backend, n_bytes) if n_bytes else 0.0
    return Device(LIBRARY, LIBRARY, "host", 0, 0, memory_from="host", bytes_per_s=bytes_per_s)


def streamed_bytes(cached_bytes: int, free_bytes: int | None) -> int:
    """How much to stream through for the speed of memory, not that of the caches; 0: it takes too much."""
    n_bytes = max(READ_BYTES, IN_CACHE * cached_bytes)
    has_room = free_bytes is None or n_bytes * SPARE <= free_bytes
    return n_bytes if has_room and n_bytes <= READ_MAX_BYTES else 0


def cache_bytes(cpus: Path) -> int:
    """What all last-level caches hold, from the kernel's files; 0 where they do not say."""
    sizes: dict[str, int] = {}  # by the processors that share it
    for cache in cpus.glob("cpu[0-9]*/cache/index*"):
        try:
            level, size, shared = ((cache / name).read_text().strip() for name in CACHE_FILES)
        except OSError:  # a virtual machine may not say
            continue
        if level == str(CACHE_LEVEL) and size.endswith("K"):
            sizes[shared] = int(size.removesuffix("K")) << 10
    return sum(sizes.values())
