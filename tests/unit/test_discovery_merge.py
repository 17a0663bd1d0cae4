"""One list of devices from what the libraries report, and when a library is looked at again."""

import math

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from actors.config import Config
from actors.discovery.merge import merge, with_memory
from actors.discovery.retry import ABSENT_S, FIRST_S, LONGEST_S, delay_s
from actors.discovery.service import libraries_of
from actors.protocol import Device, FreeMemory, LibraryReport

HOST = Device("cpu", "cpu", "CPU", 1000, 400, memory_from="host")
PCI = "0000:01:00.0"


def device(
    id_: str, library: str, *, pci_id: str = "", reason: str = "", memory_from: str = "", total: int = 100
) -> Device:
    return Device(id_, library, "d", total, 50, not reason, reason, pci_id=pci_id, memory_from=memory_from)


def report(library: str, *devices: Device) -> LibraryReport:
    return LibraryReport(library, "found", devices)


def test_the_host_comes_first_and_is_always_there() -> None:
    merged = merge(HOST, [report("sim", device("sim:0", "sim")), LibraryReport("cpu", "found")])
    assert [d.id for d in merged.usable] == ["cpu", "sim:0"]
    assert merge(HOST, []).usable == (HOST,)


def test_a_host_whose_kernels_fail_is_listed_as_unusable() -> None:
    failed = LibraryReport("cpu", "failed", reason="the cpu probe crashed by SIGILL")
    (host,) = merge(HOST, [failed]).usable
    assert (host.is_usable, host.reason) == (False, "the cpu probe crashed by SIGILL")


def test_the_host_has_the_speed_that_its_kernels_measured_and_memory_of_its_own() -> None:
    measured = Device("cpu", "cpu", "host", 0, 0, bytes_per_s=5e9)
    merged = merge(HOST, [report("cpu", measured)])
    assert merged.usable == (msgspec.structs.replace(HOST, bytes_per_s=5e9),)
    assert merged.filtered == ()


def test_a_device_keeps_the_speed_of_the_last_look_through_readings() -> None:
    gpu = msgspec.structs.replace(device("a", "cuda", memory_from="nvml"), bytes_per_s=9e9, copy_s=0.5)
    new, _ = with_memory(report("cuda", gpu), [FreeMemory("a", 100, 7)])
    assert [(d.bytes_per_s, d.copy_s) for d in merge(HOST, [new]).usable[1:]] == [(9e9, 0.5)]


def test_what_runners_cannot_use_is_not_among_the_devices() -> None:
    gpu = device("GPU-1", "cuda", reason="no backend for cuda yet")
    merged = merge(HOST, [report("cuda", gpu)])
    assert (merged.usable, merged.filtered) == ((HOST,), (gpu,))


@pytest.mark.parametrize("other", [("GPU-1", ""), ("ROCM-ID", PCI)])
def test_of_a_device_that_two_libraries_see_the_better_librarys_counts(other: tuple[str, str]) -> None:
    theirs = device(other[0], "rocm", pci_id=other[1])
    ours = device("GPU-1", "cuda", pci_id=PCI)
    for order in (
        [report("rocm", theirs), report("cuda", ours)],
        [report("cuda", ours), report("rocm", theirs)],
    ):
        merged = merge(HOST, order)
        assert merged.usable[1:] == (ours,)
        (double,) = merged.filtered
        assert (double.library, double.reason) == ("rocm", "the same device as cuda's GPU-1")


def test_a_device_of_a_lesser_library_is_used_where_the_better_one_cannot() -> None:
    refused = device("GPU-1", "cuda", pci_id=PCI, reason="no backend for cuda yet")
    works = device("sim:0", "sim", pci_id=PCI)
    assert merge(HOST, [report("cuda", refused), report("sim", works)]).usable[1:] == (works,)


def test_a_device_that_a_library_lists_twice_is_one() -> None:
    twice = device("sim:0", "sim")
    merged = merge(HOST, [report("sim", twice, twice)])
    assert merged.usable[1:] == (twice,)
    assert [d.reason for d in merged.filtered] == ["listed twice"]


def test_parts_of_a_card_that_have_ids_of_their_own_are_devices() -> None:
    parts = device("MIG-1", "cuda", pci_id=PCI), device("MIG-2", "cuda", pci_id=PCI)
    assert merge(HOST, [report("cuda", *parts)]).usable[1:] == parts


def test_three_libraries_with_a_common_device_keep_it_once() -> None:
    # a, seen by all three; b by two; c by one
    seen = {"cuda": "a", "rocm": "ab", "sim": "abc"}
    reports = [report(name, *(device(id_, name) for id_ in ids)) for name, ids in seen.items()]
    merged = merge(HOST, reports)
    assert [(d.id, d.library) for d in merged.usable[1:]] == [("a", "cuda"), ("b", "rocm"), ("c", "sim")]


@pytest.mark.parametrize(("addresses", "total", "free"), [(0, 1000, 400), (300, 300, 300), (5000, 1000, 400)])
def test_unified_memory_is_what_the_host_has(addresses: int, total: int, free: int) -> None:
    shared = device("GPU-1", "cuda", memory_from="host", total=addresses)
    made = merge(HOST, [report("cuda", shared)]).usable[1]
    assert (made.total_bytes, made.free_bytes) == (total, free)


DEVICES = st.builds(
    device,
    st.sampled_from("abcdef"),
    st.just("sim"),
    pci_id=st.sampled_from(["", "1", "2"]),
    reason=st.sampled_from(["", "why"]),
    memory_from=st.sampled_from(["", "host", "nvml"]),
)


@given(st.dictionaries(st.sampled_from(["cuda", "rocm", "sim"]), st.lists(DEVICES, max_size=5)))
def test_every_device_is_used_once_or_refused_with_a_reason(found: dict[str, list[Device]]) -> None:
    reports = [
        report(name, *(msgspec.structs.replace(d, library=name) for d in devices))
        for name, devices in found.items()
    ]
    merged = merge(HOST, reports)
    ids = [d.id for d in merged.usable]
    assert len(ids) == len(set(ids))
    assert all(d.reason and not d.is_usable for d in merged.filtered)
    assert all(d.is_usable for d in merged.usable)
    assert len(merged.usable) + len(merged.filtered) == 1 + sum(map(len, found.values()))


# --- Readings ----------------------------------------------------------------------------------------------


def test_a_reading_renews_the_memory_of_watched_devices() -> None:
    old = report("cuda", device("a", "cuda", memory_from="nvml"), device("b", "cuda", memory_from="library"))
    new, agrees = with_memory(old, [FreeMemory("a", 100, 7), FreeMemory("b", 100, 8)])
    assert [d.free_bytes for d in new.devices] == [7, 50]
    assert agrees


def test_a_watched_device_that_the_reading_lacks_is_gone_at_once() -> None:
    old = report("sim", device("a", "sim", memory_from="sim"), device("b", "sim", memory_from="sim"))
    new, agrees = with_memory(old, [FreeMemory("b", 100, 8)])
    assert [d.id for d in new.devices] == ["b"]
    assert not agrees


def test_a_device_that_nobody_can_watch_stays_and_a_new_one_asks_for_a_look() -> None:
    old = report("cuda", device("a", "cuda", memory_from="library"))
    assert with_memory(old, []) == (old, True)
    assert with_memory(old, [FreeMemory("new", 1, 1)]) == (old, False)


# --- Again -------------------------------------------------------------------------------------------------


def test_failures_are_tried_again_soon_and_then_ever_later() -> None:
    failed = LibraryReport("cuda", "failed")
    delays = [delay_s(failed, n) for n in range(1, 12)]
    assert delays[0] == FIRST_S
    assert delays == sorted(delays)
    assert delays[-1] == LONGEST_S == delay_s(failed, 10**6)


@pytest.mark.parametrize(
    ("state", "pause_s"),
    [("found", math.inf), ("off", math.inf), ("none", ABSENT_S), ("missing", LONGEST_S)],
)
def test_what_works_is_left_alone_and_what_is_absent_is_looked_for_now_and_then(
    state: str, pause_s: float
) -> None:
    assert delay_s(msgspec.convert({"library": "x", "state": state}, LibraryReport), 0) == pause_s


# --- Which -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("config", "libraries"),
    [
        (Config(), {"cuda", "rocm", "cpu"}),
        (Config(sim_dir="/x"), {"cuda", "rocm", "sim", "cpu"}),
        (Config(library="cuda", sim_dir="/x"), {"cuda", "cpu"}),
        (Config(library="cpu"), {"cpu"}),
        (Config(library="sim"), {"cpu"}),
    ],
)
def test_the_settings_say_which_libraries_are_looked_at(config: Config, libraries: set[str]) -> None:
    assert set(libraries_of(config)) == libraries
