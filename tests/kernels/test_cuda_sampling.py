"""The sampler of CUDA devices: the tokens of the reference and of the CPU, bit for bit; log-probabilities."""

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kernels.cpu import _cpu
from kernels.cpu.sampler import sample
from kernels.cuda.backend import CudaBackend
from kernels.cuda.memory import CudaMemory
from kernels.cuda.sampler import CudaSampler, Sampled, Wish, sampler_bytes
from kernels.memory import HostMemory
from kernels.ops import sampling
from kernels.ops.op import F32
from kernels.ops.sampling import Mask, NanLogits, SamplingError, SamplingParams, logprobs_ref, sample_ref
from tests.cuda import CUDA_BACKENDS, EMULATED, WATCHED
from tests.kernels.conftest import NAN_BYTE, POISON_BYTE, Guarded, normal
from tests.kernels.test_sampling import (
    GREEDY,
    PENALTY_LOGITS,
    PLAIN,
    parameters,
    row,
    rows_with_ties,
)

BACKENDS = {**CUDA_BACKENDS, EMULATED: WATCHED}  # shared memory is watched for races
each_backend = pytest.mark.parametrize("name", BACKENDS)
N_HISTORY = 80
N_THREADS = 64  # two warps show all that sixteen would, and the emulator runs threads one by one


def sampled(
    name: str,
    logits: F32,
    wishes: Sequence[Wish],
    mask: Mask | None = None,
    *,
    n_rows: int = 0,
    n_threads: int = N_THREADS,
) -> list[Sampled]:
    """On a backend, in memory between guards; logits [n_vocab], or [n_wishes, n_vocab], mask [n_vocab]."""
    backend = BACKENDS[name]
    assert isinstance(backend, CudaBackend)
    n_vocab = logits.shape[-1]
    every = np.ascontiguousarray(np.broadcast_to(logits, (len(wishes), n_vocab)))
    masks = np.broadcast_to(np.ones(n_vocab, np.uint8) if mask is None else mask, every.shape)
    n_rows = n_rows or len(wishes)
    given = Guarded(every.nbytes, 0, NAN_BYTE)
    given.array[...] = every.reshape(-1).view(np.uint8)
    allowed = Guarded(masks.size, 0, NAN_BYTE)
    allowed.array[...] = masks.reshape(-1)
    work = Guarded(sampler_bytes(n_rows, n_vocab, N_HISTORY), POISON_BYTE, POISON_BYTE)
    with given.on(backend) as rows, allowed.on(backend) as permitted, work.on(backend) as memory:
        assert isinstance(rows, CudaMemory)
        assert isinstance(permitted, CudaMemory)
        assert isinstance(memory, CudaMemory)
        sampler = CudaSampler(backend._driver, memory, n_rows, n_vocab, N_HISTORY, n_threads)
        found = sampler.sample(rows.pointer, wishes, 0 if mask is None else permitted.pointer)
    for guarded, what in ((given, "logits"), (allowed, "masks"), (work, "the sampler's memory")):
        guarded.expect_whole(what)
    np.testing.assert_array_equal(given.array, every.reshape(-1).view(np.uint8))
    return found


def token(name: str, logits: F32, params: SamplingParams, history: Sequence[int] = ()) -> int:
    found = sampled(name, logits, [Wish(params, 0, history)])[0]
    assert found.error is None
    return found.token


def drawn(name: str, logits: F32, params: SamplingParams, n: int = 200) -> set[int]:
    """The different tokens of n draws, all in one launch."""
    return {found.token for found in sampled(name, logits, [Wish(params, i, ()) for i in range(n)])}


def expected(logits: F32, wish: Wish, mask: Mask | None) -> int | type[SamplingError]:
    try:
        return sample_ref(logits, np.array(wish.history, np.int32), wish.params, wish.position, mask)
    except SamplingError as error:
        return type(error)


@st.composite
def wishes_for(draw: st.DrawFn, n_vocab: int) -> list[Wish]:
    """Rows of different requests, more than are chosen from at a time."""
    history = st.lists(st.integers(0, n_vocab - 1), max_size=70)
    position = st.integers(0, 2**64 - 1)
    return [Wish(draw(parameters()), draw(position), draw(history)) for _ in range(draw(st.integers(1, 10)))]


@each_backend
@given(logits=rows_with_ties(), is_masked=st.booleans(), data=st.data())
def test_tokens_are_those_of_the_reference_and_the_cpu(
    name: str, logits: F32, is_masked: bool, data: st.DataObject
) -> None:
    wishes = data.draw(wishes_for(len(logits)))
    mask = (np.arange(len(logits)) % 3 != 1).astype(np.uint8) if is_masked else None
    found = sampled(name, logits, wishes, mask)
    want = [expected(logits, wish, mask) for wish in wishes]
    assert [type(one.error) if one.error else one.token for one in found] == want
    for wish, one in zip(wishes, want, strict=True):
        if isinstance(one, int):
            history = np.array(wish.history, np.int32)
            assert sample(logits, history, wish.params, wish.position, mask) == one


@each_backend
def test_rows_of_a_step_have_their_own_logits_in_any_number(name: str) -> None:
    logits = normal(5, 11, 300) * 3
    wishes = [Wish(replace(PLAIN, seed=i, top_k=i), i, [i, i, 2 * i]) for i in range(11)]
    for n in (1, 8, 11):
        found = sampled(name, logits[:n], wishes[:n], n_rows=20)
        assert [one.token for one in found] == [
            expected(x, w, None) for x, w in zip(logits, wishes[:n], strict=False)
        ]


@pytest.mark.parametrize("n_threads", [32, 512])
def test_any_block_gives_the_same_tokens(n_threads: int) -> None:
    logits = normal(6, 2000) * 2
    wishes = [Wish(replace(PLAIN, seed=i, typical_p=0.9, top_p=0.8, min_p=0.01), i, ()) for i in range(3)]
    found = sampled(EMULATED, logits, wishes, n_threads=n_threads)
    assert [one.token for one in found] == [expected(logits, wish, None) for wish in wishes]


@each_backend
def test_a_large_vocabulary_is_sampled_with_every_step(name: str) -> None:
    logits = normal(3, 70_001) * 3
    all_steps = SamplingParams(top_k=0, top_p=0.95, min_p=0.001, typical_p=0.99, repeat_penalty=1.1, seed=7)
    usual = SamplingParams(seed=8, presence_penalty=0.3, frequency_penalty=0.2)
    wishes = [Wish(all_steps, 5, range(64)), Wish(usual, 6, [*range(0, 70_000, 1000), 70_000])]
    found = sampled(name, logits, wishes)
    assert [one.token for one in found] == [expected(logits, wish, None) for wish in wishes]


@each_backend
def test_equal_logits_all_of_them(name: str) -> None:
    logits = np.zeros(3000, np.float32)
    logits[::2] = -0.0
    wishes = [Wish(replace(PLAIN, seed=9, top_k=k, top_p=p), k, ()) for k in (0, 1, 7) for p in (0.0, 0.5, 1)]
    found = sampled(name, logits, wishes)
    assert [one.token for one in found] == [expected(logits, wish, None) for wish in wishes]


@each_backend
def test_vectors(name: str) -> None:
    assert token(name, row(-10, 3, -10, -10), GREEDY) == 1
    assert token(name, row(1, 7, 7, 0), GREEDY) == 1
    assert drawn(name, row(1, 4, -2, 0), replace(PLAIN, top_p=1e-10)) == {1}
    # four equal: three are exactly 0.75, which is not more than 0.75
    assert drawn(name, row(0, 0, 0, 0), replace(PLAIN, top_p=0.75)) == {0, 1, 2, 3}
    assert drawn(name, row(0, 0, 0, 0), replace(PLAIN, top_p=0.74)) == {0, 1, 2}
    assert drawn(name, row(0, 1, 1, 1, 0), replace(PLAIN, top_k=2)) == {1, 2}
    halves = row(0, math.log(0.5), math.log(0.49))
    assert drawn(name, halves, replace(PLAIN, min_p=0.499)) == {0, 1}
    typical = row(math.log(0.4), *[math.log(0.06)] * 10)
    assert 0 not in drawn(name, typical, replace(PLAIN, typical_p=0.5))
    assert token(name, PENALTY_LOGITS, replace(GREEDY, repeat_penalty=1.1), [0]) == 2
    assert token(name, PENALTY_LOGITS, replace(GREEDY, frequency_penalty=0.04), [0, 0, 0]) == 2
    assert token(name, row(-1.0, -1.5), replace(GREEDY, repeat_penalty=2.0), [0]) == 1


@each_backend
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_logits_without_meaning_cost_their_own_row(name: str, bad: float) -> None:
    logits = normal(1, 2, 200)
    logits[0, 157] = bad
    found = sampled(name, logits, [Wish(PLAIN, 0, (), 3), Wish(PLAIN, 0, (), 3)])
    assert isinstance(found[0].error, NanLogits)
    assert found[1].token == expected(logits[1], Wish(PLAIN, 0, ()), None)
    assert len(found[1].top) == 3


@each_backend
def test_what_leaves_nothing_to_choose_is_named(name: str) -> None:
    only = np.full(9, -np.inf, np.float32)
    assert isinstance(sampled(name, only, [Wish(PLAIN, 0, ())])[0].error, NanLogits)
    masked = sampled(name, row(0, 1), [Wish(PLAIN, 0, ())], np.zeros(2, np.uint8))[0]
    assert "mask forbids every token" in str(masked.error)
    outside, inside = sampled(name, row(0, 1, 2, 3), [Wish(PLAIN, 0, [4]), Wish(GREEDY, 0, [3])])
    assert "outside 0..3" in str(outside.error)
    assert inside.token == 3
    overflowing = Wish(replace(GREEDY, repeat_penalty=1e-320), 0, [1])
    assert isinstance(sampled(name, row(1, 2), [overflowing])[0].error, NanLogits)


@each_backend
@given(logits=rows_with_ties(), n=st.integers(0, 20))
def test_logprobs_are_those_of_the_reference(name: str, logits: F32, n: int) -> None:
    found = sampled(
        name, logits, [Wish(GREEDY, 0, (), n), Wish(replace(PLAIN, seed=n), 1, (), n), Wish(PLAIN, 2, ())]
    )
    for one in found[:2]:
        want, want_top = logprobs_ref(logits, one.token, n)
        assert one.logprob == pytest.approx(want, abs=1e-9)
        assert [i for i, _ in one.top] == [i for i, _ in want_top]
        assert [p for _, p in one.top] == pytest.approx([p for _, p in want_top], abs=1e-9)
    assert found[2].top == ()


def test_weights_are_exponentials_to_the_nearest_whole_number() -> None:
    scaled = -np.linspace(0, 41, 1000)
    want = np.exp(scaled) * 2.0**sampling.WEIGHT_BITS
    got = sampling.weight_of(scaled).astype(np.float64)
    assert np.all(np.abs(got - want) <= 0.5 + 1e-15 * want * 4)


def test_codes_are_those_of_the_cpu() -> None:
    names = ("NOT_FINITE", "ALL_MASKED", "BAD_HISTORY")
    assert [getattr(_cpu, one) for one in names] == [getattr(sampling, one) for one in names]


def test_more_than_there_is_room_for_is_refused() -> None:
    logits, wish = row(1, 2), Wish(PLAIN, 0, ())
    with pytest.raises(ValueError, match="2 rows, at most 1"):
        sampled(EMULATED, logits, [wish, wish], n_rows=1)
    with pytest.raises(ValueError, match=r"0\.\.20"):
        sampled(EMULATED, logits, [wish._replace(n_logprobs=21)])
    with pytest.raises(ValueError, match="at most 524288"):
        CudaSampler(WATCHED._driver, CudaMemory(WATCHED._driver, 0, 0), 1, 2**19 + 1, 1)
    with pytest.raises(ValueError, match="cannot sample"):
        WATCHED.sampler(HostMemory(np.zeros(1, np.uint8)), 1, 2, 1)
