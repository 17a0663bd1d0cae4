"""A slice of the soak test; `make soak` runs it for ten minutes."""

from tests.system.soak import soak

SLICE_S = 5.0


def test_a_few_seconds_of_random_use_leave_nothing_behind() -> None:
    counts = soak(SLICE_S, seed=1)
    assert counts["answers"] > 0
    assert counts["kills"] > 0
