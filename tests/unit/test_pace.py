"""How much of a prompt joins running streams, from what batches took."""

import hypothesis.strategies as st
from hypothesis import given

from actors.runner.pace import MARGIN, N_FIRST, N_LEAST, SLOWDOWN, Pace


def test_before_anything_is_known_a_little_joins() -> None:
    assert Pace().n_prompt == N_FIRST


def test_a_prompts_own_batches_tell_what_an_input_costs_until_mixed_ones_do() -> None:
    pace = Pace()
    pace.observe(0, 500, 5.0)
    pace.observe(1, 0, 0.1)
    assert pace.n_prompt == int(MARGIN * 0.1 / 0.01)


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
    assert stream_s + (n_prompt + 2) * input_s >= (1 + MARGIN * 0.99) * stream_s
