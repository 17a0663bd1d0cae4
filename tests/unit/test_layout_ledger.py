"""The memory a new model may count on, and what a dead runner's words tell."""

import signal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from actors.protocol import CpuInfo, Device, DeviceMemory, Devices, MemoryItem, MemoryReport, RunnerExited
from actors.scheduler.ledger import Ledger
from actors.scheduler.obituary import death_of, telling_lines

TOTAL = 1000
NONE = MemoryItem(0)


def reading(cpu: int, gpu: int = 0) -> Devices:
    devices = tuple(
        Device(id=name, library=name, name=name, total_bytes=TOTAL, free_bytes=free)
        for name, free in (("cpu", cpu), ("gpu", gpu))
    )
    return Devices(CpuInfo("", 1, 1, ()), devices)


def report(weights: int, cache: int, device: str = "cpu", input_weights: int = 0) -> MemoryReport:
    memory = DeviceMemory(device, device, (MemoryItem(weights),), (MemoryItem(cache),), NONE, NONE)
    return MemoryReport(
        devices=(memory,),
        input_weights=MemoryItem(input_weights),
        n_layer=0,
        n_ctx=1,
        n_ctx_train=1,
        n_batch=1,
        n_parallel=1,
    )


def free(ledger: Ledger, device: str = "cpu") -> int:
    return next(each.free_bytes for each in ledger.free() if each.id == device)


def ledger_of(devices: Devices) -> Ledger:
    ledger = Ledger()
    ledger.update(devices)
    return ledger


def test_mapped_weights_are_not_free_whatever_the_kernel_says() -> None:
    ledger = ledger_of(reading(800))
    ledger.hold("r", report(weights=300, cache=0, input_weights=50), is_new=True)
    ledger.update(reading(800))  # page cache: still available, says the kernel
    assert free(ledger) == 450


def test_what_was_taken_since_the_last_reading_is_not_free() -> None:
    ledger = ledger_of(reading(800))
    ledger.hold("r", report(weights=0, cache=100), is_new=True)
    assert free(ledger) == 700


def test_a_reading_has_in_it_what_was_taken_before() -> None:
    ledger = ledger_of(reading(800))
    ledger.hold("r", report(weights=0, cache=100), is_new=True)
    ledger.update(reading(700))
    assert free(ledger) == 700


def test_what_was_given_back_since_the_last_reading_is_free() -> None:
    ledger = ledger_of(reading(800))
    ledger.hold("r", report(weights=300, cache=100), is_new=True)
    ledger.update(reading(700))
    ledger.drop("r", "m", 0.0)
    assert free(ledger) == 800


def test_what_a_load_gives_back_at_its_end_is_free_at_once() -> None:
    ledger = ledger_of(reading(800, gpu=500))
    ledger.promise("r", report(weights=0, cache=300, device="gpu"))
    ledger.hold("r", report(weights=0, cache=300, device="gpu"), is_new=True)
    assert free(ledger, "gpu") == 200
    ledger.hold("r", report(weights=0, cache=120, device="gpu"), is_new=True)
    assert free(ledger, "gpu") == 380
    assert ledger.held_bytes("r")["gpu"] == 120
    ledger.update(reading(800, gpu=380))
    assert free(ledger, "gpu") == 380


def test_an_adopted_model_is_in_the_reading_already() -> None:
    ledger = ledger_of(reading(800))
    ledger.hold("r", report(weights=0, cache=100), is_new=False)
    assert free(ledger) == 800


def test_memory_that_nobody_touched_yet_is_spoken_for() -> None:
    ledger = ledger_of(reading(1000))
    ledger.hold("r", report(weights=0, cache=600), is_new=True)
    ledger.update(reading(1000))
    assert free(ledger) == 400


def test_what_is_promised_is_not_free_whatever_readings_come() -> None:
    """A load allocates when its runner gets to it; the readings until then know nothing of it."""
    ledger = ledger_of(reading(800, 800))
    ledger.promise("r", report(weights=300, cache=100, device="gpu"))
    ledger.update(reading(800, 800))
    assert free(ledger, "gpu") == 400
    ledger.hold("r", report(weights=300, cache=100, device="gpu"), is_new=True)
    assert free(ledger, "gpu") == 400
    ledger.update(reading(800, 400))
    assert free(ledger, "gpu") == 400


def test_a_promise_taken_back_is_free_at_once() -> None:
    ledger = ledger_of(reading(800))
    ledger.promise("r", report(weights=300, cache=100))
    ledger.withdraw("r")
    assert free(ledger) == 800
    assert ledger.held_bytes("r") == {}


def test_who_read_before_a_promise_can_tell() -> None:
    ledger = ledger_of(reading(800))
    before = ledger.n_promises
    ledger.hold("r", report(weights=1, cache=0), is_new=True)
    assert ledger.n_promises == before
    ledger.promise("s", report(weights=1, cache=0))
    assert ledger.n_promises > before


def test_gpu_memory_of_a_runner_that_ended_is_free_when_a_reading_shows_it() -> None:
    ledger = ledger_of(reading(800, 800))
    ledger.hold("r", report(weights=300, cache=100, device="gpu"), is_new=True)
    ledger.update(reading(800, 400))
    ledger.drop("r", "m", 0.0)
    assert free(ledger, "gpu") == 400
    assert [str(each) for each in ledger.recovery.pending()] == ["400 B of m on gpu to come back (0 B did)"]
    ledger.update(reading(800, 790))
    assert free(ledger, "gpu") == 790
    assert not ledger.recovery.pending()


def test_a_runner_that_died_before_it_allocated_owes_nothing() -> None:
    ledger = ledger_of(reading(800, 800))
    ledger.promise("r", report(weights=300, cache=100, device="gpu"))
    ledger.drop("r", "m", 0.0)
    assert free(ledger, "gpu") == 800
    assert not ledger.recovery.pending()


def test_all_that_is_held_is_told_by_device() -> None:
    ledger = ledger_of(reading(800, 800))
    ledger.hold("r", report(weights=300, cache=100, device="gpu", input_weights=7), is_new=True)
    ledger.promise("s", report(weights=30, cache=0))
    assert ledger.all_held_bytes() == {"cpu": 37, "gpu": 400}


def test_weights_on_a_gpu_are_copies_that_its_reading_sees() -> None:
    ledger = ledger_of(reading(800, 800))
    ledger.hold("r", report(weights=300, cache=0, device="gpu"), is_new=True)
    ledger.update(reading(800, 500))
    assert free(ledger, "gpu") == 500


@given(
    first=st.integers(0, TOTAL),
    loads=st.lists(st.tuples(st.integers(0, 400), st.integers(0, 400), st.booleans()), max_size=5),
)
def test_free_memory_stays_between_none_and_all_and_comes_back(
    first: int, loads: list[tuple[int, int, bool]]
) -> None:
    ledger = ledger_of(reading(first))
    for index, (weights, cache, is_new) in enumerate(loads):
        ledger.hold(str(index), report(weights, cache), is_new=is_new)
        assert 0 <= free(ledger) <= first
    for index in range(len(loads)):
        ledger.drop(str(index), "m", 0.0)
    ledger.update(reading(first))
    assert free(ledger) == first


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("", ""),
        ("loading\nready\n", "ready"),
        ("loading\nCUDA error: out of memory\n  at line 3\n", "CUDA error: out of memory | at line 3"),
        ("Traceback\n  x\nValueError: no\n", "ValueError: no"),
        ("  | Traceback\n  +-+---- 1 ----\n    | OSError: gone\n    +------", "OSError: gone"),
        ("Fatal Python error: Aborted\n\na\nb\nc\nd", "Fatal Python error: Aborted | a | b"),
    ],
)
def test_last_words_are_cut_to_what_tells(words: str, told: str) -> None:
    assert telling_lines(words) == told


@pytest.mark.parametrize(
    ("exit_code", "said"),
    [
        (3, "exited with status 3"),
        (-signal.SIGSEGV, "was killed by SIGSEGV"),
        (-99, "was killed by signal 99"),
    ],
)
def test_a_death_names_its_cause(exit_code: int, said: str) -> None:
    assert death_of("m", RunnerExited("r", 1, exit_code, ""), "while it was loaded").message == (
        f"m: the runner {said} while it was loaded"
    )
