"""When the memory of a runner that ended counts as free again."""

from hypothesis import given
from hypothesis import strategies as st

from actors.protocol import Device
from actors.scheduler.recovery import ENOUGH, RECOVERY_S, Recovery

TOTAL = 1000


def gpu(free: int, name: str = "gpu:0") -> Device:
    return Device(name, "fake", name, TOTAL, free)


def awaiting(n_bytes: int, free: int = 100, name: str = "gpu:0") -> Recovery:
    recovery = Recovery()
    assert recovery.expect(gpu(free, name), free, n_bytes, "m", 0.0)
    return recovery


def test_three_quarters_of_it_are_enough() -> None:
    recovery = awaiting(400)
    recovery.read([gpu(399)])
    assert recovery.pending()
    recovery.read([gpu(400)])
    assert not recovery.pending()


def test_memory_that_drops_is_not_memory_that_came_back() -> None:
    """An unsigned difference would wrap to something huge here."""
    recovery = awaiting(400)
    recovery.read([gpu(0)])
    assert [each.gained_bytes for each in recovery.pending()] == [-100]


def test_each_device_has_its_own_account() -> None:
    recovery = awaiting(400)
    recovery.read([gpu(100), gpu(TOTAL, "gpu:1")])
    assert [each.device for each in recovery.pending()] == ["gpu:0"]


def test_what_we_took_ourselves_meanwhile_is_not_missing() -> None:
    recovery = awaiting(400)
    recovery.took("gpu:0", 200)
    recovery.read([gpu(300)])
    assert not recovery.pending()


def test_two_that_ended_are_awaited_together() -> None:
    recovery = awaiting(400)
    recovery.expect(gpu(100), 100, 200, "n", 1.0)
    recovery.read([gpu(500)])
    assert str(recovery.pending()[0]) == "600 B of m, n on gpu:0 to come back (400 B did)"
    recovery.read([gpu(550)])
    assert not recovery.pending()


def test_so_little_that_no_reading_would_tell_is_not_awaited() -> None:
    assert not Recovery().expect(gpu(100), 100, 19, "m", 0.0)


def test_a_device_that_is_gone_owes_nothing() -> None:
    recovery = awaiting(400)
    recovery.read([])
    assert not recovery.pending()


def test_it_is_given_up_after_a_while_and_not_before() -> None:
    recovery = awaiting(400)
    assert recovery.give_up(RECOVERY_S - 0.1) == ()
    assert [each.awaited_bytes for each in recovery.give_up(RECOVERY_S)] == [400]
    assert not recovery.pending()


@given(
    free=st.integers(0, TOTAL),
    n_bytes=st.integers(20, TOTAL),
    readings=st.lists(st.integers(0, TOTAL), max_size=6),
)
def test_it_is_over_exactly_when_a_reading_gained_enough(
    free: int, n_bytes: int, readings: list[int]
) -> None:
    recovery = awaiting(n_bytes, free)
    for reading in readings:
        recovery.read([gpu(reading)])
    gained = any(reading - free >= ENOUGH * n_bytes for reading in readings)
    assert bool(recovery.pending()) is not gained
