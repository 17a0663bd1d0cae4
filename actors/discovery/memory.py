"""How much memory this machine has, and how much is free for us; right inside a container.

free = min(MemAvailable, limit - current + inactive_file + reclaimable slab) over all groups we are nested in:
the page cache counts as used in a group but is given back, and a group without a limit says nothing.
"""

from typing import Final

import msgspec

from actors.discovery.cgroup import Read, find_folders

_V1_UNLIMITED: Final = 1 << 62  # the kernel says "no limit" with the largest multiple of a page below 2**63


class HostMemory(msgspec.Struct, frozen=True):
    """Bytes."""

    total_bytes: int
    free_bytes: int


class GroupMemory(msgspec.Struct, frozen=True):
    """A control group with a limit.  Bytes; `used_bytes` has `given_back_bytes` of page cache in it."""

    path: str
    limit_bytes: int
    used_bytes: int
    given_back_bytes: int


def measure_memory(read: Read) -> HostMemory:
    """Memory of the host, cut to the limits of our control groups; `read` gives the texts of files."""
    info = read_meminfo(read)
    total_bytes, free_bytes = info.get("MemTotal", 0), info.get("MemAvailable")
    if free_bytes is None:  # kernels before 3.14
        free_bytes = info.get("MemFree", 0) + info.get("Buffers", 0) + info.get("Cached", 0)
    for group in read_groups(read):
        total_bytes = min(total_bytes, group.limit_bytes)
        free_bytes = min(free_bytes, group.limit_bytes - group.used_bytes + group.given_back_bytes)
    return HostMemory(total_bytes, max(0, free_bytes))


def read_meminfo(read: Read) -> dict[str, int]:
    """Bytes by the names of /proc/meminfo."""
    return {name: 1024 * value for name, value in _table(read("/proc/meminfo") or "").items()}


def read_groups(read: Read) -> tuple[GroupMemory, ...]:
    """The control groups with a limit that we are in, innermost first."""
    folders = find_folders("memory", read)
    if folders is None:
        return ()
    read_group = _group_v2 if folders.is_v2 else _group_v1
    return tuple(group for path in folders.paths if (group := read_group(path, read)) is not None)


def _group_v2(path: str, read: Read) -> GroupMemory | None:
    # memory.high is no wall, but a process above it is throttled until it stands still
    limits = [
        value for name in ("max", "high") if (value := _number(read(f"{path}/memory.{name}"))) is not None
    ]
    current = _number(read(f"{path}/memory.current"))
    if not limits or current is None:
        return None
    stat = _table(read(f"{path}/memory.stat") or "")
    given_back = stat.get("inactive_file", 0) + stat.get("slab_reclaimable", 0)
    return GroupMemory(path, min(limits), current, given_back)


def _group_v1(path: str, read: Read) -> GroupMemory | None:
    limit = _number(read(f"{path}/memory.limit_in_bytes"))
    current = _number(read(f"{path}/memory.usage_in_bytes"))
    if limit is None or limit >= _V1_UNLIMITED or current is None:
        return None
    stat = _table(read(f"{path}/memory.stat") or "")
    return GroupMemory(path, limit, current, stat.get("total_inactive_file", 0))


def _number(text: str | None) -> int | None:
    """The number in a file; None when there is no file, or "max"."""
    word = (text or "").strip()
    return int(word) if word.isdigit() else None


def _table(text: str) -> dict[str, int]:
    """Lines of "name number", with or without a colon and a unit."""
    table: dict[str, int] = {}
    for line in text.splitlines():
        words = line.replace(":", " ").split()
        if len(words) >= 2 and words[1].isdigit():
            table[words[0]] = int(words[1])
    return table
