"""Simulated devices: a ledger that holds whoever dies when, programs that come and go, faults on demand."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import hypothesis.strategies as st
import pytest
from hypothesis import given

from kernels.memory import OutOfMemory
from kernels.sim.machine import SimMachine, round_up
from kernels.sim.probe import probe
from kernels.sim.state import Faults, ProbeScript, SimDevice, State, Taking
from kernels.sim.store import is_alive

MIB = 1 << 20
CONTEXT_BYTES = 3 * MIB
WAIT_S = 60  # a ceiling for broken builds


@pytest.fixture
def machine(tmp_path: Path) -> SimMachine:
    machine = SimMachine(tmp_path / "machine")
    machine.add_device("sim:0", 64 * MIB, context_bytes=CONTEXT_BYTES, granularity_bytes=4096, uuid="SIM-a")
    return machine


def test_what_is_given_is_rounded_and_comes_back(machine: SimMachine) -> None:
    machine.open_context("sim:0")
    given_bytes = machine.allocate("sim:0", 5000, "cache")
    assert given_bytes == 8192
    assert machine.held("sim:0") == (CONTEXT_BYTES, 8192)
    assert machine.free("sim:0") == 64 * MIB - CONTEXT_BYTES - 8192
    machine.release("sim:0", given_bytes)
    machine.close_context("sim:0")
    assert machine.used("sim:0") == 0


def test_a_context_is_charged_once(machine: SimMachine) -> None:
    machine.open_context("sim:0")
    machine.open_context("SIM-a")  # the same device by its UUID
    assert machine.used("sim:0") == CONTEXT_BYTES


def test_another_folder_is_another_machine_and_the_same_folder_the_same(
    machine: SimMachine, tmp_path: Path
) -> None:
    assert SimMachine(tmp_path / "machine").devices() == machine.devices()
    assert SimMachine(tmp_path / "other").devices() == ()


def test_no_memory_says_for_what_and_how_much_is_free(machine: SimMachine) -> None:
    machine.open_context("sim:0")
    machine.take("game", "sim:0", 60 * MIB)
    with pytest.raises(OutOfMemory, match=rf"sim:0 .* {2 * MIB} bytes for cache.3: {MIB} are free"):
        machine.allocate("sim:0", 2 * MIB, "cache.3")


def test_a_context_without_room_is_refused(machine: SimMachine) -> None:
    machine.take("game", "sim:0", 62 * MIB)
    with pytest.raises(OutOfMemory, match="bytes for context"):
        machine.open_context("sim:0")
    assert machine.holders("sim:0") == ()


def test_other_programs_come_and_go(machine: SimMachine) -> None:
    machine.take("game", "sim:0", 10 * MIB)
    machine.give_back("game", "sim:0", 4 * MIB)
    assert machine.used("sim:0") == 6 * MIB
    machine.give_back("game", "sim:0")
    assert machine.used("sim:0") == 0
    with pytest.raises(ValueError, match="67108864 are free"):
        machine.take("game", "sim:0", 65 * MIB)


@pytest.mark.parametrize("nth", [1, 3])
def test_the_nth_allocation_fails_and_no_other(machine: SimMachine, nth: int) -> None:
    machine.open_context("sim:0")
    machine.fail_allocation("sim:0", nth)
    results: list[bool] = []
    for _ in range(4):
        try:
            machine.allocate("sim:0", 1, "x")
            results.append(True)
        except OutOfMemory:
            results.append(False)
    assert results == [i != nth for i in range(1, 5)]
    assert machine.n_allocations("sim:0") == 3


def test_another_program_comes_between_a_look_and_an_allocation(machine: SimMachine) -> None:
    machine.open_context("sim:0")
    machine.take_before_allocation("game", "sim:0", 40 * MIB)
    assert machine.free("sim:0") == 61 * MIB
    with pytest.raises(OutOfMemory):
        machine.allocate("sim:0", 30 * MIB, "weights")
    assert machine.free("sim:0") == 21 * MIB
    machine.allocate("sim:0", 20 * MIB, "weights")  # it comes once


@pytest.mark.parametrize(("factor", "reported"), [(0.4, 0.4), (1.6, 1.0), (1.0, 0.5)])
def test_a_device_may_lie_about_what_is_free(machine: SimMachine, factor: float, reported: float) -> None:
    machine.take("game", "sim:0", (32 if factor == 1.0 else 0) * MIB)
    machine.lie("sim:0", factor)
    assert machine.reported_free("sim:0") == int(64 * MIB * reported)


def other_process(machine_folder: Path, work: str) -> subprocess.Popen[bytes]:
    """A process with a context that then does `work`."""
    code = f"from kernels.sim.machine import SimMachine\nm = SimMachine({str(machine_folder)!r})\n{work}"
    return subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)


def test_what_a_killed_process_held_is_free_before_it_is_reaped(machine: SimMachine, tmp_path: Path) -> None:
    work = """
import time
m.open_context("sim:0")
m.allocate("sim:0", 4096, "x")
print(flush=True)
time.sleep(60)"""
    process = other_process(tmp_path / "machine", work)
    assert process.stdout is not None
    process.stdout.readline()
    assert machine.held("sim:0", process.pid) == (CONTEXT_BYTES, 4096)
    process.kill()
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)  # dead, and still to be reaped
    assert machine.used("sim:0") == 0
    process.communicate(timeout=WAIT_S)


def test_a_process_killed_in_the_middle_of_changes_leaves_a_whole_machine(
    machine: SimMachine, tmp_path: Path
) -> None:
    work = (
        "m.open_context('sim:0'); print(flush=True)\n"
        "while True: m.release('sim:0', m.allocate('sim:0', 4096, 'x'))"
    )
    machine.open_context("sim:0")
    for _ in range(4):
        process = other_process(tmp_path / "machine", work)
        assert process.stdout is not None
        process.stdout.readline()
        for _ in range(20):
            machine.release("sim:0", machine.allocate("sim:0", 1, "x"))
        process.send_signal(signal.SIGKILL)
        process.communicate(timeout=WAIT_S)
        machine.allocate("sim:0", 1, "x")  # the lock went with it
        assert machine.used("sim:0") == sum(machine.held("sim:0"))


def test_a_pid_that_comes_again_is_another_process() -> None:
    state = State({"sim:0": SimDevice("sim:0", 64 * MIB)}, {"sim:0": Faults()})
    assert state.give_context("sim:0", os.getpid(), started=1)
    state.bury(is_alive)
    assert state.holdings == []


amounts = st.integers(0, 40 * MIB)


@given(st.lists(st.tuples(st.sampled_from(["give", "take", "other"]), st.integers(1, 3), amounts)))
def test_nothing_is_given_that_is_not_there(moves: list[tuple[str, int, int]]) -> None:
    state = State({"sim:0": SimDevice("sim:0", 64 * MIB)}, {"sim:0": Faults()})
    held: dict[int, int] = dict.fromkeys((1, 2, 3), 0)
    for kind, pid, n_bytes in moves:
        if kind == "other":
            state.faults["sim:0"].takings.append(Taking("game", n_bytes))
        elif kind == "give" and state.give_context("sim:0", pid, 0):
            n_bytes = round_up(n_bytes, 4096)
            held[pid] += n_bytes * state.give_buffer("sim:0", pid, n_bytes)
        elif kind == "take" and held[pid] >= n_bytes and state.holding("sim:0", pid):
            state.take_buffer("sim:0", pid, n_bytes)
            held[pid] -= n_bytes
        assert state.used_bytes("sim:0") + state.free_bytes("sim:0") == 64 * MIB
        assert {h.pid: h.buffer_bytes for h in state.holdings} == {
            pid: held[pid] for pid in held if state.holding("sim:0", pid)
        }


def test_a_removed_device_takes_along_what_was_held_on_it(machine: SimMachine) -> None:
    machine.open_context("sim:0")
    given_bytes = machine.allocate("sim:0", 1, "x")
    machine.remove_device("sim:0")
    machine.release("sim:0", given_bytes)
    machine.close_context("sim:0")
    assert machine.find("sim:0") is None
    with pytest.raises(OutOfMemory, match="the device is gone"):
        machine.allocate("sim:0", 1, "x")


def test_a_probe_lists_what_there_is(machine: SimMachine) -> None:
    machine.add_device(
        "sim:1", 32 * MIB, is_integrated=True, pci_id="0000:01:00.0", bytes_per_s=2e9, copy_s=0.5
    )
    machine.take("game", "sim:1", 8 * MIB)
    first, second = probe(machine)
    assert (first.id, first.uuid, first.free_bytes) == ("sim:0", "SIM-a", 64 * MIB)
    assert (second.is_integrated, second.pci_id, second.free_bytes) == (True, "0000:01:00.0", 24 * MIB)
    assert (first.bytes_per_s, first.copy_s) == (0, 0)  # it does not say
    assert (second.bytes_per_s, second.copy_s) == (2e9, 0.5)


def test_a_probe_may_list_a_device_twice_or_by_another_name(machine: SimMachine) -> None:
    machine.script_probe(ProbeScript(has_duplicates=True, other_ids={"sim:0": "sim:7"}))
    assert [s.id for s in probe(machine)] == ["sim:7", "sim:7"]


PROBE = "from kernels.sim.probe import probe\nprint(flush=True); probe(m); print('answered', flush=True)"


def test_a_probe_may_crash(machine: SimMachine, tmp_path: Path) -> None:
    machine.script_probe(ProbeScript(is_crashing=True))
    process = other_process(tmp_path / "machine", PROBE)
    assert process.communicate(timeout=WAIT_S)[0] == b"\n"
    assert process.returncode == -signal.SIGSEGV


def test_a_probe_may_hang_and_come_late(machine: SimMachine, tmp_path: Path) -> None:
    machine.script_probe(ProbeScript(is_hanging=True))
    process = other_process(tmp_path / "machine", PROBE)
    with pytest.raises(subprocess.TimeoutExpired):
        process.communicate(timeout=0.5)
    process.kill()
    assert process.communicate(timeout=WAIT_S)[0] == b"\n"
    machine.script_probe(ProbeScript(late_s=0.05))
    late = other_process(tmp_path / "machine", PROBE)
    assert late.communicate(timeout=WAIT_S)[0] == b"\nanswered\n"
