"""When the supervisor starts an actor again."""

from hypothesis import given
from hypothesis import strategies as st

from actors.supervisor.policy import RestartPolicy

POLICY = RestartPolicy(first_delay_s=0.1, max_delay_s=3.0, window_s=60.0, max_deaths=5)
times = st.lists(st.floats(0, 1000), max_size=30).map(sorted)


def test_the_first_death_is_mended_at_once() -> None:
    assert POLICY.delay_s([100.0], 100.0) == 0.1


def test_each_further_death_doubles_the_delay() -> None:
    assert [POLICY.delay_s([100.0] * n, 100.0) for n in (1, 2, 3, 4)] == [0.1, 0.2, 0.4, 0.8]


def test_too_many_deaths_in_the_window_end_it() -> None:
    assert POLICY.delay_s([100.0, 101.0, 102.0, 103.0, 104.0], 104.0) is None


def test_deaths_long_ago_are_forgotten() -> None:
    assert POLICY.delay_s([1.0, 2.0, 3.0, 4.0, 100.0], 100.0) == 0.1


@given(times)
def test_the_delay_has_a_ceiling(deaths_s: list[float]) -> None:
    now_s = deaths_s[-1] if deaths_s else 0.0
    delay_s = POLICY.delay_s(deaths_s, now_s)
    assert delay_s is None or POLICY.first_delay_s <= delay_s <= POLICY.max_delay_s


@given(times, st.floats(1000, 2000))
def test_forgetting_old_deaths_decides_nothing(deaths_s: list[float], now_s: float) -> None:
    assert POLICY.delay_s(POLICY.recent(deaths_s, now_s), now_s) == POLICY.delay_s(deaths_s, now_s)
