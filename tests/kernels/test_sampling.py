"""The sampler: vectors, agreement with the reference, distributions."""

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kernels.cpu import _cpu
from kernels.cpu.sampler import NanLogits, SamplingParams, logprobs, sample
from kernels.ops.op import F32, I32
from kernels.ops.sampling import SamplingError, logprobs_ref, philox_ref, random_bits, sample_ref
from tests.kernels.conftest import normal, seeds

NO_HISTORY = np.empty(0, np.int32)
PLAIN = SamplingParams(temperature=1.0, top_k=0, top_p=1.0)
GREEDY = replace(PLAIN, temperature=0.0)

# Known answers of Random123's philox4x32-10: counter, key, words.
PHILOX = [
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((2**32 - 1,) * 4, (2**32 - 1,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]


def row(*logits: float) -> F32:
    return np.array(logits, np.float32)


def drawn(logits: F32, params: SamplingParams, n: int = 300) -> set[int]:
    """The different tokens of n draws."""
    return {sample(logits, NO_HISTORY, params, position) for position in range(n)}


@pytest.mark.parametrize(("counter", "key", "words"), PHILOX)
def test_philox_gives_the_known_answers(
    counter: tuple[int, int, int, int], key: tuple[int, int], words: tuple[int, ...]
) -> None:
    assert philox_ref(counter, key) == words
    assert tuple(_cpu.philox(counter, key)) == words


@st.composite
def parameters(draw: st.DrawFn) -> SamplingParams:
    """Any parameters, those that turn a step off among them."""
    return SamplingParams(
        temperature=draw(st.sampled_from([-1.0, 0.0, 1e-9, 0.3, 0.8, 1.0, 5.0])),
        top_k=draw(st.sampled_from([-1, 0, 1, 2, 5, 40, 10**9])),
        top_p=draw(st.sampled_from([-0.5, 0.0, 1e-10, 0.3, 0.9, 1.0, 2.0])),
        min_p=draw(st.sampled_from([-1.0, 0.0, 0.05, 0.7, 1.0, 1.5])),
        typical_p=draw(st.sampled_from([0.0, 0.2, 0.95, 1.0])),
        repeat_last_n=draw(st.sampled_from([-1, 0, 1, 3, 64])),
        repeat_penalty=draw(st.sampled_from([0.5, 1.0, 1.1, 3.0])),
        presence_penalty=draw(st.sampled_from([-1.0, 0.0, 0.7])),
        frequency_penalty=draw(st.sampled_from([-0.3, 0.0, 0.4])),
        seed=draw(st.integers(-(2**63), 2**64 - 1)),
    )


@st.composite
def rows_with_ties(draw: st.DrawFn) -> F32:
    """Logits, some equal, some -inf."""
    n = draw(st.integers(1, 400) | st.integers(1000, 6000))  # the long ones are searched block by block
    logits = normal(draw(seeds), n) * np.float32(draw(st.sampled_from([0.1, 2.0, 30.0])))
    if draw(st.booleans()):
        logits = np.round(logits)
    n_gone = draw(st.integers(0, n - 1))
    logits[np.random.default_rng(n).permutation(n)[:n_gone]] = -np.inf
    return logits


@given(logits=rows_with_ties(), params=parameters(), position=st.integers(0, 2**64 - 1), data=st.data())
def test_tokens_are_those_of_the_reference(
    logits: F32, params: SamplingParams, position: int, data: st.DataObject
) -> None:
    history = np.array(data.draw(st.lists(st.integers(0, len(logits) - 1), max_size=70)), np.int32)
    mask = (np.arange(len(logits)) % 3 != 1).astype(np.uint8) if data.draw(st.booleans()) else None
    try:
        want = sample_ref(logits, history, params, position, mask)
    except SamplingError as error:
        with pytest.raises(type(error)):
            sample(logits, history, params, position, mask)
    else:
        assert sample(logits, history, params, position, mask) == want


def test_greedy_takes_the_first_largest() -> None:
    assert sample(row(-10, 3, -10, -10), NO_HISTORY, GREEDY, 0) == 1
    assert sample(row(1, 7, 7, 0), NO_HISTORY, GREEDY, 0) == 1


def test_a_tiny_top_p_takes_the_likeliest() -> None:
    assert drawn(row(1, 4, -2, 0), replace(PLAIN, top_p=1e-10)) == {1}
    assert drawn(row(1, 4, -2, 0), replace(PLAIN, top_p=0.0)) == {1}


def test_top_p_needs_strictly_more_than_its_share() -> None:
    # four equal: three are exactly 0.75, which is not more than 0.75
    assert drawn(row(0, 0, 0, 0), replace(PLAIN, top_p=0.75)) == {0, 1, 2, 3}
    assert drawn(row(0, 0, 0, 0), replace(PLAIN, top_p=0.74)) == {0, 1, 2}


def test_top_k_prefers_lower_ids_among_equals() -> None:
    assert drawn(row(0, 1, 1, 1, 0), replace(PLAIN, top_k=2)) == {1, 2}


def test_min_p_cuts_below_its_share_of_the_largest() -> None:
    logits = row(0, math.log(0.5), math.log(0.49))
    assert drawn(logits, replace(PLAIN, min_p=0.499)) == {0, 1}


def test_typical_p_may_leave_the_likeliest_out() -> None:
    # entropy of (0.4, 0.06 x 10) is 2.05: the small ones, at 2.81, are nearer than the large one's 0.92
    logits = row(math.log(0.4), *[math.log(0.06)] * 10)
    assert 0 not in drawn(logits, replace(PLAIN, typical_p=0.5))


def chances(logits: F32, params: SamplingParams, n: int) -> np.ndarray:
    counts = np.bincount([sample(logits, NO_HISTORY, params, i) for i in range(n)], minlength=len(logits))
    return counts / n


def test_draws_follow_the_softmax() -> None:
    want = np.array([0.11355, 0.005653, 0.839024, 0.041773])
    n = 20000
    got = chances(row(1, -2, 3, 0), PLAIN, n)
    # chi-square of 3 degrees, exceeded once in a thousand; the seeds are fixed
    assert n * np.sum((got - want) ** 2 / want) < 16.27


def test_temperature_divides_the_logits() -> None:
    logits = row(1, 4, -2, 0)
    halved = np.exp(np.array([2.0, 8, -4, 0]) - 8)
    n = 20000
    want = halved / halved.sum()
    got = chances(logits, replace(PLAIN, temperature=0.5), n)
    np.testing.assert_allclose(got, want, atol=4 / math.sqrt(n))


@pytest.mark.parametrize(
    "params",
    [
        replace(PLAIN, top_k=5),
        replace(PLAIN, top_p=0.8),
        replace(PLAIN, min_p=0.1),
        SamplingParams(temperature=0.7, top_k=20, top_p=0.95, min_p=0.02),
    ],
)
def test_what_is_left_keeps_its_proportions(params: SamplingParams) -> None:
    logits, n = normal(4, 30) * 2, 20000
    got = chances(logits, params, n)
    scaled = np.exp(logits.astype(np.float64) / params.temperature)
    want = np.where(got > 0, scaled, 0.0)
    want /= want.sum()
    kept = want > 0
    assert n * np.sum((got[kept] - want[kept]) ** 2 / want[kept]) < 2 * kept.sum() + 20


PENALTY_LOGITS = row(2.0, -1.0, 1.9, 0.5)


@pytest.mark.parametrize(
    ("history", "params", "token"),
    [
        ([0], replace(GREEDY, repeat_penalty=1.1), 2),  # 2 / 1.1 < 1.9
        ([0], replace(GREEDY, repeat_penalty=1.1, repeat_last_n=0), 0),
        ([0, 3], replace(GREEDY, repeat_penalty=1.1, repeat_last_n=1), 0),  # 0 is too long ago
        ([0, 3], replace(GREEDY, repeat_penalty=1.1, repeat_last_n=-1), 2),
        ([0], replace(GREEDY, presence_penalty=0.2), 2),
        ([0, 0], replace(GREEDY, frequency_penalty=0.04), 0),  # 1.92
        ([0, 0, 0], replace(GREEDY, frequency_penalty=0.04), 2),  # 1.88
    ],
)
def test_penalties_change_what_is_greedy(history: list[int], params: SamplingParams, token: int) -> None:
    assert sample(PENALTY_LOGITS, np.array(history, np.int32), params, 0) == token


def test_a_repeated_negative_logit_becomes_more_negative() -> None:
    params = replace(GREEDY, repeat_penalty=2.0)
    assert sample(row(-1.0, -1.5), np.array([0], np.int32), params, 0) == 1


@given(seed=st.integers(0, 2**64 - 1), position=st.integers(0, 2**64 - 1))
def test_a_draw_depends_on_seed_and_position_alone(seed: int, position: int) -> None:
    logits, params = normal(9, 50), replace(PLAIN, seed=seed)
    assert sample(logits, NO_HISTORY, params, position) == sample(logits.copy(), NO_HISTORY, params, position)
    assert 0 <= random_bits(seed, position) < 2**53


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_logits_without_meaning_are_that_callers_error(bad: float) -> None:
    logits = normal(1, 100)
    logits[57] = bad
    for params in (GREEDY, PLAIN):
        with pytest.raises(NanLogits):
            sample(logits, NO_HISTORY, params, 0)
    with pytest.raises(NanLogits):
        logprobs(logits, 0, 5)


def test_only_minus_infinity_is_no_distribution() -> None:
    with pytest.raises(NanLogits):
        sample(np.full(9, -np.inf, np.float32), NO_HISTORY, PLAIN, 0)


def test_a_masked_token_is_never_drawn() -> None:
    mask = np.array([1, 0, 1, 1], np.uint8)
    tokens = {sample(row(0, 9, 0, 0), NO_HISTORY, PLAIN, i, mask) for i in range(200)}
    assert tokens == {0, 2, 3}


def test_a_mask_that_forbids_all_is_refused() -> None:
    with pytest.raises(SamplingError, match="mask forbids every token"):
        sample(row(0, 1), NO_HISTORY, PLAIN, 0, np.zeros(2, np.uint8))


@pytest.mark.parametrize("token", [-1, 4])
def test_a_history_outside_the_vocabulary_is_refused(token: int) -> None:
    with pytest.raises(SamplingError, match=r"outside 0\.\.3"):
        sample(row(0, 1, 2, 3), np.array([token], np.int32), PLAIN, 0)


@pytest.mark.parametrize(
    ("name", "value"), [("temperature", math.nan), ("repeat_penalty", 0.0), ("top_p", math.inf)]
)
def test_a_parameter_without_meaning_is_refused_by_name(name: str, value: float) -> None:
    with pytest.raises(ValueError, match=name):
        replace(PLAIN, **{name: value})


@given(logits=rows_with_ties(), top_k=st.integers(0, 20), data=st.data())
def test_logprobs_are_those_of_the_reference(logits: F32, top_k: int, data: st.DataObject) -> None:
    token = data.draw(st.integers(0, len(logits) - 1))
    chosen, top = logprobs(logits, token, top_k)
    want, want_top = logprobs_ref(logits, token, top_k)
    assert chosen == pytest.approx(want, abs=1e-9)
    assert [i for i, _ in top] == [i for i, _ in want_top]
    assert [p for _, p in top] == pytest.approx([p for _, p in want_top], abs=1e-9)


def test_logprobs_of_a_whole_vocabulary_sum_to_one() -> None:
    _, top = logprobs(row(*range(1000, 1020)), 3, 20)
    assert sum(math.exp(p) for _, p in top) == pytest.approx(1.0, abs=1e-12)
    assert top == sorted(top, key=lambda entry: -entry[1])


@pytest.mark.parametrize("top_k", [-1, 21])
def test_a_count_of_logprobs_outside_0_to_20_is_refused(top_k: int) -> None:
    with pytest.raises(ValueError, match=r"0\.\.20"):
        logprobs(row(1, 2), 0, top_k)


def history_of(tokens: list[int]) -> I32:
    return np.array(tokens, np.int32)


def test_a_large_vocabulary_is_sampled_with_every_step() -> None:
    logits = normal(3, 150_000) * 3
    params = SamplingParams(top_k=0, top_p=0.95, min_p=0.001, typical_p=0.99, repeat_penalty=1.1, seed=7)
    history = history_of(list(range(64)))
    assert sample(logits, history, params, 5) == sample_ref(logits, history, params, 5)
