"""How much of a prompt joins running streams, from what batches took."""

import random
from collections.abc import Callable

import hypothesis.strategies as st
import pytest
from hypothesis import given

from actors.runner.cache.shape import PAGE_SIZE
from actors.runner.pace import FIRST_SHARE, N_FIRST, N_LEAST, QUICK_S, RARE, SLOWDOWN, Pace

N_BATCH = 4096


def after(pace: Pace, n_batches: int, stream_s: float, took: Callable[[int], float]) -> list[float]:
    """What so many batches took that were full of a prompt, beside batches of streams alone."""
    times: list[float] = []
    for _ in range(n_batches):
        pace.observe(4, 0, stream_s)
        times.append(took(pace.n_prompt))
        pace.observe(4, pace.n_prompt, times[-1])
    return times


def test_before_anything_is_known_a_little_joins() -> None:
    assert Pace(N_BATCH).n_prompt == N_FIRST


def test_a_prompts_own_batches_tell_what_an_input_costs_until_mixed_ones_do() -> None:
    pace = Pace(N_BATCH)
    pace.observe(0, 500, 5.0)
    pace.observe(1, 0, 0.1)
    assert pace.n_prompt == int(FIRST_SHARE * 0.1 / 0.01)


def test_slow_inputs_still_go_on() -> None:
    pace = Pace(N_BATCH)
    after(pace, 50, 0.01, lambda n: 1.0 * n)
    assert pace.n_prompt == N_LEAST


@given(st.floats(1e-3, 1), st.floats(0, 0.9), st.floats(1e-5, 0.05))
def test_streams_wait_at_most_twice_as_long_beside_a_prompt(
    stream_s: float, fixed: float, input_s: float
) -> None:
    pace = Pace(N_BATCH)

    def took(n_prompt: int) -> float:
        """Any prompt at all has a price, and so has each of its inputs."""
        return (1 + fixed) * stream_s + n_prompt * input_s

    times = after(pace, 300, stream_s, took)[100:]
    allowed_s = max(SLOWDOWN * stream_s, QUICK_S)
    n_late = sum(t > allowed_s for t in times)
    assert n_late <= 2 * RARE * len(times) or took(N_LEAST + 1) > allowed_s
    # and no room is left unused
    assert pace.n_prompt == N_BATCH or took(pace.n_prompt + 2) >= 0.7 * allowed_s


def test_a_prompt_that_becomes_slow_at_its_depth_takes_fewer_inputs_at_a_time() -> None:
    pace = Pace(N_BATCH)
    after(pace, 100, 0.03, lambda n: 0.03 + n * 0.001)
    shallow = pace.n_prompt
    times = after(pace, 50, 0.03, lambda n: 0.03 + n * 0.003)
    assert pace.n_prompt < shallow / 2
    assert sum(t > 0.06 for t in times) < 10


@pytest.mark.parametrize("changed_by", [-40, 1])
def test_a_batch_that_the_number_did_not_make_tells_nothing_of_it(changed_by: int) -> None:
    pace = Pace(N_BATCH)
    after(pace, 300, 0.03, lambda n: 0.03 + n * 0.0001)
    n_prompt = pace.n_prompt
    assert n_prompt > 4 * PAGE_SIZE
    pace.observe(4, n_prompt + changed_by * PAGE_SIZE // 10, 0.5)
    assert pace.n_prompt == n_prompt


def test_what_was_drafted_costs_as_much_but_says_nothing_of_prompts() -> None:
    pace = Pace(N_BATCH)
    times = after(pace, 300, 0.03, lambda n: 0.03 + n * 0.001)
    n_prompt, before = pace.n_prompt, pace.input_cost
    assert len(times) == 300
    for _ in range(100):
        pace.observe(4, 0, 0.034, n_drafted=8)
    assert pace.n_prompt == n_prompt
    assert before is not None
    assert pace.input_cost == pytest.approx(before / 2, rel=0.01)


def test_batches_of_whole_pages_are_full_ones() -> None:
    pace = Pace(N_BATCH)
    for _ in range(300):
        pace.observe(4, 0, 0.03)
        n_prompt = max(1, pace.n_prompt // PAGE_SIZE) * PAGE_SIZE
        pace.observe(4, min(n_prompt, pace.n_prompt), 0.03 + n_prompt * 0.0001)
    assert 200 < pace.n_prompt <= 400


def test_no_more_join_than_a_batch_holds_and_late_ones_count_then_too() -> None:
    pace = Pace(512)
    after(pace, 300, 0.03, lambda n: 0.03 + n * 0.00001)
    assert pace.n_prompt == 512
    for _ in range(20):
        pace.observe(4, min(pace.n_prompt, 512 - 4), 0.2)
    assert pace.n_prompt < 64


def test_on_a_restless_machine_prompts_get_less_until_few_batches_are_late() -> None:
    rng = random.Random(1)
    pace = Pace(N_BATCH)
    times = after(pace, 2000, 0.03, lambda n: (0.03 + n * 0.001) * rng.lognormvariate(0, 0.2))
    assert sum(t > 0.06 for t in times[500:]) < 2 * RARE * 1500
    assert pace.n_prompt > 2 * N_LEAST
