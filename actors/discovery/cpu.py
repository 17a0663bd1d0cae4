"""The processor: its name, the cores that do work in this container, the instruction sets that matter."""

from collections.abc import Callable, Iterable
from typing import Final

from actors.discovery.cgroup import Read, find_folders
from actors.protocol import CpuInfo

_SYSFS: Final = "/sys/devices/system/cpu"
_NEEDS: Final = {
    # name, and the flags of /proc/cpuinfo that all have to be there
    "avx2": ("avx2", "fma", "f16c"),
    "avxvnni": ("avx_vnni",),
    "avx512": ("avx512f", "avx512bw", "avx512dq", "avx512vl"),
    "avx512vnni": ("avx512f", "avx512bw", "avx512dq", "avx512vl", "avx512_vnni"),
    "avx512bf16": ("avx512_bf16",),
    "amx_int8": ("amx_tile", "amx_int8"),
    "neon": ("asimd",),
    "dotprod": ("asimddp",),
    "i8mm": ("i8mm",),
    "sve": ("sve",),
}


def describe_cpu(read: Read, affinity: Iterable[int]) -> CpuInfo:
    """What the files say, for a process that may run on the logical processors `affinity`."""
    cpuinfo = read("/proc/cpuinfo") or ""
    allowed = frozenset(affinity)
    cores = count_cores(read, allowed)
    quota = cpu_quota(read)
    if quota is not None:
        # the whole processors of the quota: one thread more would only be throttled
        cores = min(cores, max(1, int(quota)))
    return CpuInfo(
        model=_field(cpuinfo, "model name") or _field(cpuinfo, "Model") or "unknown processor",
        n_cores=max(1, cores),
        n_threads=max(1, len(allowed)),
        instruction_sets=instruction_sets(cpuinfo),
    )


def instruction_sets(cpuinfo: str) -> tuple[str, ...]:
    """Names of the instruction sets that all of the processor's flags are there for."""
    flags = set((_field(cpuinfo, "flags") or _field(cpuinfo, "Features") or "").split())
    return tuple(name for name, needed in _NEEDS.items() if flags.issuperset(needed))


def count_cores(read: Read, allowed: frozenset[int]) -> int:
    """Physical performance cores among the logical processors `allowed`.

    Efficiency cores are those that the kernel lists as such, and those with one thread in a package where
    others have two.  Where only efficiency cores are allowed, they count; without topology, `allowed` does.
    """
    listed = parse_list(read("/sys/devices/cpu_atom/cpus") or "")
    siblings = {cpu: _siblings(cpu, read) for cpu in parse_list(read(f"{_SYSFS}/online") or "") or allowed}
    packages = {
        cpu: (read(f"{_SYSFS}/cpu{cpu}/topology/physical_package_id") or "0").strip() for cpu in siblings
    }
    widest: dict[str, int] = {}
    for cpu, threads in siblings.items():
        widest[packages[cpu]] = max(widest.get(packages[cpu], 1), len(threads))

    def is_efficient(cpu: int) -> bool:
        return cpu in listed or len(siblings[cpu]) < widest[packages[cpu]]

    def n_cores(wanted: Callable[[int], bool]) -> int:
        return len({siblings[cpu] for cpu in allowed if cpu in siblings and wanted(cpu)})

    return n_cores(lambda cpu: not is_efficient(cpu)) or n_cores(lambda _: True) or len(allowed)


def _siblings(cpu: int, read: Read) -> frozenset[int]:
    topology = f"{_SYSFS}/cpu{cpu}/topology"
    text = read(f"{topology}/core_cpus_list") or read(f"{topology}/thread_siblings_list") or ""
    return parse_list(text) or frozenset((cpu,))


def parse_list(text: str) -> frozenset[int]:
    """Numbers of a kernel list like "0-3,8"; empty when it is none."""
    numbers: set[int] = set()
    for part in text.strip().split(","):
        first, _, last = part.partition("-")
        if first.isdigit() and (not last or last.isdigit()):
            numbers.update(range(int(first), int(last or first) + 1))
    return frozenset(numbers)


def cpu_quota(read: Read) -> float | None:
    """Processors' worth of time that our control groups grant; None when none of them has a limit."""
    folders = find_folders("cpu", read)
    if folders is None:
        return None
    quota_of = _quota_v2 if folders.is_v2 else _quota_v1
    return min((quota for path in folders.paths if (quota := quota_of(path, read)) is not None), default=None)


def _quota_v2(path: str, read: Read) -> float | None:
    words = (read(f"{path}/cpu.max") or "").split()
    return _ratio(*words) if len(words) == 2 else None


def _quota_v1(path: str, read: Read) -> float | None:
    return _ratio(read(f"{path}/cpu.cfs_quota_us") or "", read(f"{path}/cpu.cfs_period_us") or "")


def _ratio(quota: str, period: str) -> float | None:
    quota, period = quota.strip(), period.strip()
    # "max" in version 2 and "-1" in version 1 are no limit
    return int(quota) / int(period) if quota.isdigit() and period.isdigit() and int(period) > 0 else None


def _field(cpuinfo: str, name: str) -> str | None:
    for line in cpuinfo.splitlines():
        key, colon, value = line.partition(":")
        if colon and key.strip() == name:
            return value.strip()
    return None
