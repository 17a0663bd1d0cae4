"""How much of a prompt joins running streams, from what batches took."""

import random
from collections.abc import Callable

import hypothesis.strategies as st
from hypothesis import given

from actors.runner.pace import AMPLE, FIRST_SHARE, FULL, N_FIRST, N_LEAST, QUICK_S, RARE, SLOWDOWN, Pace


def after(pace: Pace, n_batches: int, stream_s: float, took: Callable[[int], float]) -> list[float]:
    """What so many batches took that were full of a prompt, beside batches of streams alone."""
    times: list[float] = []
    for _ in range(n_batches):
        pace.observe(4, 0, stream_s)
        times.append(took(pace.n_prompt))
        pace.observe(4, pace.n_prompt, times[-1])
    return times


def test_before_anything_is_known_a_little_joins() -> None:
    assert Pace().n_prompt == N_FIRST


def test_a_prompts_own_batches_tell_what_an_input_costs_until_mixed_ones_do() -> None:
    pace = Pace()
    pace.observe(0, 500, 5.0)
    pace.observe(1, 0, 0.1)
    assert pace.n_prompt == int(FIRST_SHARE * 0.1 / 0.01)


def test_slow_inputs_still_go_on() -> None:
    pace = Pace()
    after(pace, 50, 0.01, lambda n: 1.0 * n)
    assert pace.n_prompt == N_LEAST


@given(st.floats(1e-3, 1), st.floats(0, 0.9), st.floats(1e-5, 0.05))
def test_streams_wait_at_most_twice_as_long_beside_a_prompt(
    stream_s: float, fixed: float, input_s: float
) -> None:
    pace = Pace()

    def took(n_prompt: int) -> float:
        """Any prompt at all has a price, and so has each of its inputs."""
        return (1 + fixed) * stream_s + n_prompt * input_s

    times = after(pace, 300, stream_s, took)[100:]
    allowed_s = max(SLOWDOWN * stream_s, QUICK_S)
    n_late = sum(t > allowed_s for t in times)
    assert n_late <= 2 * RARE * len(times) or took(N_LEAST + 1) > allowed_s
    # and no room is left unused
    assert took(pace.n_prompt + 2) >= AMPLE * allowed_s


def test_a_prompt_that_becomes_slow_at_its_depth_takes_fewer_inputs_at_a_time() -> None:
    pace = Pace()
    after(pace, 100, 0.03, lambda n: 0.03 + n * 0.001)
    shallow = pace.n_prompt
    times = after(pace, 50, 0.03, lambda n: 0.03 + n * 0.003)
    assert pace.n_prompt < shallow / 2
    assert sum(t > 0.06 for t in times) < 10


def test_a_batch_that_is_not_full_tells_nothing_of_a_full_one() -> None:
    pace = Pace()
    after(pace, 100, 0.03, lambda n: 0.03 + n * 0.001)
    n_prompt = pace.n_prompt
    pace.observe(4, int(FULL * n_prompt) - 1, 0.5)
    assert pace.n_prompt == n_prompt


def test_on_a_restless_machine_prompts_get_less_until_few_batches_are_late() -> None:
    rng = random.Random(1)
    pace = Pace()
    times = after(pace, 2000, 0.03, lambda n: (0.03 + n * 0.001) * rng.lognormvariate(0, 0.2))
    assert sum(t > 0.06 for t in times[500:]) < 2 * RARE * 1500
    assert pace.n_prompt > 2 * N_LEAST
