"""What `runtime doctor` is told about the host: its memory and limits, variables, versions."""

import platform
from collections.abc import Mapping

from actors.discovery.cgroup import Read
from actors.discovery.memory import measure_memory, read_groups, read_meminfo
from actors.protocol import HostReport, MemoryLimit
from actors.settings import VISIBILITY
from actors.version import VERSION


def describe_host(read: Read) -> HostReport:
    """The host's memory, and the control groups that bound it."""
    memory, info = measure_memory(read), read_meminfo(read)
    return HostReport(
        total_bytes=memory.total_bytes,
        free_bytes=memory.free_bytes,
        swap_total_bytes=info.get("SwapTotal", 0),
        swap_free_bytes=info.get("SwapFree", 0),
        limits=_limits(read),
    )


def _limits(read: Read) -> tuple[MemoryLimit, ...]:
    return tuple(MemoryLimit(g.path, g.limit_bytes, g.used_bytes) for g in read_groups(read))


def visibility(environ: Mapping[str, str]) -> dict[str, str]:
    """The variables that hide or rename devices, as they are set; "" hides everything and is kept."""
    return {name: environ[name] for name in VISIBILITY if name in environ}


def versions() -> dict[str, str]:
    """Of the runtime and what is below it."""
    return {
        "runtime": VERSION,
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.release()}",
        "machine": platform.machine(),
    }
