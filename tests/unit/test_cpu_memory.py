"""What discovery makes of the kernel's files: memory, cores, instruction sets, in containers and outside."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from actors.discovery.cgroup import Folders, find_folders
from actors.discovery.cpu import cpu_quota, describe_cpu, instruction_sets, parse_list
from actors.discovery.memory import HostMemory, measure_memory
from actors.discovery.news import is_news
from actors.discovery.swap import measure_swap
from actors.protocol import CpuInfo, Device, Devices

KIB = 1024
MEMINFO = "MemTotal:       1000 kB\nMemFree:         100 kB\nMemAvailable:    800 kB\n"
V2_MOUNT = "30 23 0:26 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate\n"
V1_MOUNT = "35 31 0:32 / /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory\n"
G = "/sys/fs/cgroup"


def v2(*, group: str = "/a/b", **files: str) -> dict[str, str]:
    """A machine of version 2; files by path below the mount, slashes written as double underscores."""
    named = {
        f"{G}/" + key.replace("__", "/").replace("memory_", "memory."): text for key, text in files.items()
    }
    return {
        "/proc/meminfo": MEMINFO,
        "/proc/self/cgroup": f"0::{group}\n",
        "/proc/self/mountinfo": V2_MOUNT,
        f"{G}/cgroup.controllers": "cpu memory io\n",
        **named,
    }


def test_without_groups_the_kernels_word_counts() -> None:
    assert measure_memory({"/proc/meminfo": MEMINFO}.get) == HostMemory(1000 * KIB, 800 * KIB)


def test_old_kernels_without_memavailable_give_the_sum() -> None:
    text = "MemTotal: 1000 kB\nMemFree: 100 kB\nBuffers: 20 kB\nCached: 300 kB\nSwapFree: 999 kB\n"
    assert measure_memory({"/proc/meminfo": text}.get).free_bytes == 420 * KIB


def test_page_cache_of_a_group_counts_as_free() -> None:
    files = v2(
        a__b__memory_max=f"{500 * KIB}\n",
        a__b__memory_current=f"{400 * KIB}\n",
        a__b__memory_stat=f"anon 9\ninactive_file {150 * KIB}\nslab_reclaimable {20 * KIB}\n",
    )
    assert measure_memory(files.get) == HostMemory(500 * KIB, 270 * KIB)


def test_an_unlimited_group_says_nothing() -> None:
    files = v2(a__b__memory_max="max\n", a__b__memory_current=f"{900 * KIB}\n", a__b__memory_stat="")
    assert measure_memory(files.get) == HostMemory(1000 * KIB, 800 * KIB)


def test_a_limit_above_the_machines_memory_changes_nothing() -> None:
    files = v2(a__b__memory_max=f"{9999 * KIB}", a__b__memory_current="0", a__b__memory_stat="")
    assert measure_memory(files.get) == HostMemory(1000 * KIB, 800 * KIB)


def test_the_limit_of_an_outer_group_binds() -> None:
    files = v2(
        a__b__memory_max="max",
        a__b__memory_current="10",
        a__memory_max=f"{300 * KIB}",
        a__memory_current=f"{100 * KIB}",
        a__memory_stat="",
    )
    assert measure_memory(files.get) == HostMemory(300 * KIB, 200 * KIB)


def test_above_the_high_mark_nothing_is_free() -> None:
    files = v2(
        a__b__memory_max=f"{500 * KIB}", a__b__memory_high=f"{200 * KIB}", a__b__memory_current=f"{250 * KIB}"
    )
    assert measure_memory(files.get) == HostMemory(200 * KIB, 0)


def v1(
    limit: int, group: str = "/docker/x", mount: str = V1_MOUNT, folder: str = "/docker/x"
) -> dict[str, str]:
    place = f"{G}/memory{folder}"
    return {
        "/proc/meminfo": MEMINFO,
        "/proc/self/cgroup": f"4:memory:{group}\n1:name=systemd:/\n",
        "/proc/self/mountinfo": V2_MOUNT + mount,
        f"{place}/memory.limit_in_bytes": f"{limit}\n",
        f"{place}/memory.usage_in_bytes": f"{400 * KIB}\n",
        f"{place}/memory.stat": f"inactive_file 7\ntotal_inactive_file {100 * KIB}\n",
    }


def test_version_1_groups_are_read_too() -> None:
    assert measure_memory(v1(500 * KIB).get) == HostMemory(500 * KIB, 200 * KIB)


def test_version_1_says_unlimited_with_a_huge_number() -> None:
    assert measure_memory(v1(9223372036854771712).get) == HostMemory(1000 * KIB, 800 * KIB)


def test_a_container_sees_its_group_as_the_mounts_root() -> None:
    mount = V1_MOUNT.replace("0:32 / ", "0:32 /docker/x ")
    assert measure_memory(v1(500 * KIB, mount=mount, folder="").get).free_bytes == 200 * KIB


def test_a_group_outside_the_mount_is_looked_for_at_its_top() -> None:
    assert measure_memory(v1(500 * KIB, group="/../other", folder="").get).free_bytes == 200 * KIB


def test_nested_groups_are_given_innermost_first() -> None:
    assert find_folders("memory", v2().get) == Folders(True, (f"{G}/a/b", f"{G}/a", G))


@given(
    st.dictionaries(st.sampled_from(sorted(v2(a__b__memory_max="1", a__b__memory_current="1"))), st.text())
)
def test_whatever_the_files_say_free_memory_is_within_the_total(files: dict[str, str]) -> None:
    memory = measure_memory({**v2(), **files}.get)
    assert memory.free_bytes >= 0
    assert memory.total_bytes >= 0


# --- Cores -------------------------------------------------------------------------------------------------


def machine(cores: list[tuple[int, ...]], package: str = "0") -> dict[str, str]:
    """A machine whose cores have these threads."""
    files = {"/sys/devices/system/cpu/online": f"0-{max(map(max, cores))}\n"}
    for threads in cores:
        for cpu in threads:
            topology = f"/sys/devices/system/cpu/cpu{cpu}/topology"
            files[f"{topology}/physical_package_id"] = package
            files[f"{topology}/core_cpus_list"] = ",".join(map(str, threads)) + "\n"
    return files


def n_cores(files: dict[str, str], affinity: range) -> int:
    return describe_cpu(files.get, affinity).n_cores


def test_two_threads_of_a_core_are_one_core() -> None:
    assert n_cores(machine([(0, 4), (1, 5), (2, 6), (3, 7)]), range(8)) == 4


def test_cores_with_one_thread_beside_cores_with_two_are_efficiency_cores() -> None:
    assert n_cores(machine([(0, 1), (2, 3), (4,), (5,), (6,), (7,)]), range(8)) == 2


def test_cores_that_the_kernel_lists_as_small_do_not_count() -> None:
    files = machine([(0,), (1,), (2,), (3,)]) | {"/sys/devices/cpu_atom/cpus": "2-3\n"}
    assert n_cores(files, range(4)) == 2


def test_where_only_efficiency_cores_are_allowed_they_count() -> None:
    assert n_cores(machine([(0, 1), (2,), (3,)]), range(2, 4)) == 2


def test_a_machine_without_threads_has_no_efficiency_cores() -> None:
    assert n_cores(machine([(0,), (1,), (2,)]), range(3)) == 3


def test_affinity_cuts_the_cores() -> None:
    assert n_cores(machine([(0, 4), (1, 5), (2, 6), (3, 7)]), range(2)) == 2


def test_without_topology_the_logical_processors_count() -> None:
    assert n_cores({}, range(3)) == 3


@pytest.mark.parametrize(
    ("text", "cores"), [("max 100000", 4), ("250000 100000", 2), ("50000 100000", 1), ("900000 100000", 4)]
)
def test_a_quota_cuts_the_cores_and_leaves_one(text: str, cores: int) -> None:
    files = machine([(0,), (1,), (2,), (3,)]) | v2() | {f"{G}/a/cpu.max": text}
    assert n_cores(files, range(4)) == cores


@pytest.mark.parametrize(("quota", "expected"), [("-1", None), ("150000", 1.5)])
def test_version_1_quotas_are_read_too(quota: str, expected: float | None) -> None:
    files = {
        "/proc/self/cgroup": "2:cpu,cpuacct:/x\n",
        "/proc/self/mountinfo": "32 31 0:29 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu,cpuacct\n",
        "/sys/fs/cgroup/cpu/x/cpu.cfs_quota_us": quota,
        "/sys/fs/cgroup/cpu/x/cpu.cfs_period_us": "100000\n",
    }
    assert cpu_quota(files.get) == expected


def test_an_instruction_set_needs_all_its_flags() -> None:
    assert instruction_sets("flags : fpu avx2 fma\n") == ()
    assert instruction_sets("flags\t\t: fpu avx2 fma f16c avx_vnni\n") == ("avx2", "avxvnni")


def test_arm_features_are_read_too() -> None:
    assert instruction_sets("Features\t: fp asimd asimddp\n") == ("neon", "dotprod")


@pytest.mark.parametrize(
    ("text", "numbers"), [("0-2,5\n", {0, 1, 2, 5}), ("", set()), ("x", set()), ("7", {7})]
)
def test_kernel_lists_are_read(text: str, numbers: set[int]) -> None:
    assert parse_list(text) == numbers


# --- News --------------------------------------------------------------------------------------------------

CPU = CpuInfo(model="m", n_cores=1, n_threads=1, instruction_sets=())


def devices(*free_bytes: int) -> Devices:
    each = (
        Device(id=str(i), library="cpu", name="d", total_bytes=1000, free_bytes=n)
        for i, n in enumerate(free_bytes)
    )
    return Devices(cpu=CPU, devices=tuple(each))


@pytest.mark.parametrize(("old", "new", "told"), [(500, 510, False), (500, 511, True), (500, 489, True)])
def test_a_change_of_free_memory_over_one_percent_is_news(old: int, new: int, told: bool) -> None:
    assert is_news(devices(old), devices(new)) is told


def test_a_device_more_or_less_is_news() -> None:
    assert is_news(devices(1), devices(1, 1))
    assert is_news(devices(1, 1), devices(1))
    assert is_news(None, devices(1))


def test_free_swap_is_what_the_kernel_says_cut_to_the_limits_of_the_groups() -> None:
    meminfo = {"/proc/meminfo": f"{MEMINFO}SwapTotal: 900 kB\nSwapFree: 800 kB\n"}
    assert measure_swap(meminfo.get) == 800 * KIB
    swap = {f"{G}/a/memory.swap.max": f"{500 * KIB}\n", f"{G}/a/memory.swap.current": f"{200 * KIB}\n"}
    assert measure_swap((v2() | meminfo | swap).get) == 300 * KIB
    assert measure_swap((v2() | meminfo | swap | {f"{G}/a/memory.swap.max": "max\n"}).get) == 800 * KIB
    assert measure_swap({"/proc/meminfo": MEMINFO}.get) == 0
