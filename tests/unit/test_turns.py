"""Which of several loads goes first."""

import math

from hypothesis import given
from hypothesis import strategies as st

from actors.scheduler.turns import SIZING_S, Turn, Turns

CPU, GPU = frozenset({"cpu"}), frozenset({"gpu"})


def turns(n: int, since_s: float = 0.0) -> tuple[Turns, list[Turn]]:
    made = Turns()
    return made, [made.open(str(i), since_s) for i in range(n)]


def test_one_that_waits_for_the_same_device_goes_first() -> None:
    made, (first, second) = turns(2)
    first.wants = GPU
    assert made.ahead(second, GPU, 0.0) is first
    assert made.ahead(second, CPU | GPU, 0.0) is first


def test_one_that_waits_for_another_device_is_in_nobodys_way() -> None:
    made, (first, second) = turns(2)
    first.wants = CPU
    assert made.ahead(second, GPU, 0.0) is None


def test_one_that_came_later_waits_whatever_it_wants() -> None:
    made, (first, second) = turns(2)
    second.wants = GPU
    assert made.ahead(first, GPU, 0.0) is None


def test_one_whose_memory_is_promised_is_in_nobodys_way() -> None:
    made, (first, second) = turns(2)
    first.wants, first.is_settled = GPU, True
    assert made.ahead(second, GPU, 0.0) is None


def test_one_that_does_not_know_yet_is_waited_for_a_while() -> None:
    made, (first, second) = turns(2)
    assert made.ahead(second, GPU, SIZING_S - 0.1) is first
    assert made.patience_ends_s(second, 0.0) == SIZING_S
    assert made.ahead(second, GPU, SIZING_S) is None
    assert made.patience_ends_s(second, SIZING_S) == math.inf


def test_one_that_ended_is_in_nobodys_way() -> None:
    made, (first, second) = turns(2)
    made.close(first)
    assert made.ahead(second, GPU, 0.0) is None


def test_places_are_counted_for_those_that_came_earlier() -> None:
    made, (first, second, third) = turns(3)
    first.has_place = True
    assert [made.n_without_place(each) for each in (first, second, third)] == [0, 0, 1]


def test_what_any_of_them_closed_is_closed() -> None:
    made, (first, second) = turns(2)
    first.closed, second.closed = frozenset({"a"}), frozenset({"b"})
    assert made.closed() == {"a", "b"}


wants = st.frozensets(st.sampled_from(["cpu", "gpu:0", "gpu:1"]))


@given(
    rows=st.lists(st.tuples(wants, st.booleans(), st.floats(0, 10)), min_size=1, max_size=6),
    now=st.floats(0, 20),
)
def test_somebody_may_always_go(rows: list[tuple[frozenset[str], bool, float]], now: float) -> None:
    """Waiting follows the order of arrival, so it has no cycle: the first is never held up."""
    made = Turns()
    for index, (devices, is_settled, since_s) in enumerate(rows):
        turn = made.open(str(index), since_s)
        turn.wants, turn.is_settled = devices, is_settled
    order = list(made)
    held_up_by = [made.ahead(turn, turn.wants or CPU, now) for turn in order]
    assert held_up_by[0] is None
    assert all(ahead is None or order.index(ahead) < index for index, ahead in enumerate(held_up_by))
