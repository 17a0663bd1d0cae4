"""How much of a prompt joins running streams, from what batches took."""

import random

import hypothesis.strategies as st
from hypothesis import given

from actors.runner.pace import MARGIN_FIRST, MARGIN_LEAST, N_FIRST, N_LEAST, RARE, SLOWDOWN, Pace


def test_before_anything_is_known_a_little_joins() -> None:
    assert Pace().n_prompt == N_FIRST


def test_a_prompts_own_batches_tell_what_an_input_costs_until_mixed_ones_do() -> None:
    pace = Pace()
    pace.observe(0, 500, 5.0)
    pace.observe(1, 0, 0.1)
    assert pace.n_prompt == int(MARGIN_FIRST * 0.1 / 0.01)


def test_slow_inputs_still_go_on() -> None:
    pace = Pace()
    pace.observe(1, 0, 0.01)
    pace.observe(1, 100, 100.0)
    assert pace.n_prompt == N_LEAST


@given(st.floats(1e-3, 1), st.floats(1e-5, 0.05), st.integers(1, 16))
def test_streams_wait_at_most_twice_as_long_beside_a_prompt(
    stream_s: float, input_s: float, n_stream: int
) -> None:
    pace = Pace()
    for _ in range(50):
        pace.observe(n_stream, 0, stream_s)
        n_prompt = pace.n_prompt
        pace.observe(n_stream, n_prompt, stream_s + n_prompt * input_s)
    n_prompt = pace.n_prompt
    assert n_prompt == N_LEAST or stream_s + n_prompt * input_s <= SLOWDOWN * stream_s
    # and no room is left unused
    assert stream_s + (n_prompt + 2) * input_s >= (1 + MARGIN_FIRST * 0.99) * stream_s


def test_on_a_restless_machine_prompts_get_less_until_few_batches_are_late() -> None:
    rng = random.Random(1)
    pace = Pace()
    stream_s, input_s = 0.03, 0.001
    n_late: list[bool] = []
    for _ in range(2000):
        pace.observe(4, 0, stream_s)
        took_s = (stream_s + pace.n_prompt * input_s) * rng.lognormvariate(0, 0.2)
        pace.observe(4, pace.n_prompt, took_s)
        n_late.append(took_s > SLOWDOWN * stream_s)
    assert sum(n_late[:200]) / 200 > 2 * RARE  # before it has learned
    assert sum(n_late[1000:]) / 1000 < 2 * RARE
    assert pace.n_prompt > MARGIN_LEAST * stream_s / input_s
