"""From which batches on layers are streamed, and from which on with all their experts: pure arithmetic."""

from collections.abc import Callable
from itertools import accumulate

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from actors.runner.crossover import (
    Chosen,
    Copied,
    Curve,
    LayerTimes,
    crossover,
    measured,
    sizes_of,
    whole_from,
)

seconds = st.floats(0, 9)


def line(start_s: float, row_s: float) -> Curve:
    """Through two points far enough apart that their difference has most of its bits."""
    return Curve((1, 1001), (start_s + row_s, start_s + 1001 * row_s))


lines = st.builds(line, seconds, seconds)
experts = st.integers(1, 64).flatmap(lambda n: st.builds(Chosen, st.just(n), st.integers(1, n)))
copies = st.floats(0, 50).map(Copied) | st.builds(
    lambda shared_s, expert_s, chosen: Copied(shared_s + chosen.n_expert * expert_s, expert_s, chosen),
    seconds,
    st.floats(0, 2),
    experts,
)
layer_times = st.builds(LayerTimes, st.integers(1, 5), lines, lines, copies)


@given(kinds=st.lists(layer_times, min_size=1, max_size=2), n_batch=st.integers(2, 40))
def test_from_the_crossover_on_the_device_is_faster_and_just_below_it_is_not(
    kinds: list[LayerTimes], n_batch: int
) -> None:
    def is_faster(n_rows: int) -> bool:
        return sum(k.n_layer * (k.host.at(n_rows) - k.streamed_s(n_rows)) for k in kinds) > 0

    found = crossover(kinds, n_batch)
    first = n_batch + 1 if found is None else found
    assert first >= 1
    assert all(is_faster(n) for n in range(first, n_batch + 1))
    assert first == 1 or not is_faster(first - 1)


@given(host=lines, device=lines, copy_s=st.floats(0, 50), n_rows=st.integers(1, 40))
def test_without_experts_a_layer_takes_its_copy_or_its_products(
    host: Curve, device: Curve, copy_s: float, n_rows: int
) -> None:
    layer = LayerTimes(1, host, device, Copied(copy_s))
    assert layer.streamed_s(n_rows) == max(copy_s, device.at(n_rows))


@given(layer=layer_times, n_batch=st.integers(2, 40))
def test_experts_all_come_ahead_from_where_on_waiting_for_some_takes_longer(
    layer: LayerTimes, n_batch: int
) -> None:
    first = whole_from(layer, n_batch)
    for n in range(first, n_batch + 1):
        assert layer.streamed_s(n) == layer.ahead_s(n)
    if first > 1:
        assert layer.streamed_s(first - 1) == layer.chosen_s(first - 1) < layer.ahead_s(first - 1)


def test_a_copy_that_computing_hides_is_not_waited_for() -> None:
    chosen = Chosen(n_expert=100, n_used=1)
    slow, fast = line(50.0, 0.0), line(5.0, 0.0)
    copied = Copied(20.0, 0.1, chosen)  # half of it experts
    assert whole_from(LayerTimes(1, slow, slow, copied), 512) == 1
    # 10 s of what all rows need and 0.1 s for each of them: from 100 experts on as long as the whole
    assert whole_from(LayerTimes(1, slow, fast, copied), 512) == 513
    # 5 s more to compute than those 10: nothing over 50 experts is worth the wait, which 69 rows use
    assert whole_from(LayerTimes(1, slow, line(15.0, 0.0), copied), 512) == 69
    assert chosen.expected(68) < 50 < chosen.expected(69)


@pytest.mark.parametrize(("n_expert", "n_used"), [(8, 2), (128, 8), (16, 1), (4, 4)])
@pytest.mark.parametrize("n_rows", [0, 1, 5, 40])
def test_as_many_experts_are_expected_as_rows_choose_on_average(
    n_expert: int, n_used: int, n_rows: int
) -> None:
    rng = np.random.default_rng(1)
    found = [
        len({int(e) for _ in range(n_rows) for e in rng.permutation(n_expert)[:n_used]}) for _ in range(200)
    ]
    assert Chosen(n_expert, n_used).expected(n_rows) == pytest.approx(np.mean(found), rel=0.03)


def scripted(*durations_s: float) -> Callable[[], float]:
    """A clock by which one thing after the other takes so long, each asked for before and after."""
    ticks = iter(accumulate(duration for one in durations_s for duration in (0.0, one)))
    return lambda: next(ticks)


def test_a_curve_goes_through_the_shorter_of_two_runs_at_each_size_and_on_along_its_last_line() -> None:
    asked: list[int] = []
    n_checks = 0

    def check() -> None:
        nonlocal n_checks
        n_checks += 1

    clock = scripted(11.0, 10.0, 66.0, 80.0, 100.0, 90.0)
    curve = measured(asked.append, sizes_of(160, has_experts=True), clock, check)
    assert asked == [8, 8, 8, 64, 64, 160, 160]  # the first is not timed
    assert n_checks == len(asked)
    assert curve == Curve((8, 64, 160), (10.0, 66.0, 90.0))
    assert [curve.at(n) for n in (0, 1, 8, 36, 64, 112, 160, 320)] == [2, 3, 10, 38, 66, 78, 90, 130]


def test_what_takes_less_time_for_more_rows_is_taken_to_stay_as_it_is() -> None:
    curve = Curve((8, 64), (10.0, 9.0))
    assert curve.at(8) == curve.at(64) == curve.at(500) == 10.0


@pytest.mark.parametrize("n_batch", [2, 3, 17, 64, 65, 512])
def test_sizes_rise_up_to_the_batch(n_batch: int) -> None:
    for has_experts in (False, True):
        sizes = sizes_of(n_batch, has_experts=has_experts)
        assert sizes == sorted(set(sizes))
        assert len(sizes) >= 2
        assert 1 <= sizes[0] < sizes[-1] <= n_batch
    assert sizes_of(n_batch, has_experts=True)[-1] == n_batch
