"""Sequences that share a pool of cells too small for all: whatever happens, each says what it says alone."""

import random
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import trio

from actors.protocol import DoneReason, Generate, Logprob, Sampling
from actors.runner.cache.rows import ZERO
from actors.runner.cache.shape import PAGE_SIZE
from actors.runner.engine import Engine
from actors.runner.forward import Drawn, Part
from actors.runner.lookup import Lookup
from actors.runner.sequence import Sequence as EngineSequence
from kernels.ops.op import Array
from tests.actors.engine_rig import (
    GREEDY,
    PROMPT,
    TINY,
    Step,
    around_steps,
    collect,
    engine_of,
    receive,
    tokens_of,
    write_model,
)
from tests.golden import tiny as t

N_CTX = 96
N_BATCH = 16


@pytest.fixture(scope="module")
def model_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("pool") / "tiny.gguf")


def variant_path(variant: str, folder: Path) -> Path:
    tiny = t.VARIANTS[variant]
    if tiny.chunk:  # chunks that begin and end within pages, and are longer than one
        tiny = replace(tiny, chunk=PAGE_SIZE + 8)
    return write_model(folder / "tiny.gguf", tiny)


@pytest.fixture(scope="module", params=["qwen3", "gemma3", "lfm2", "qwen3moe", "llama4"])
def decoder_path(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of models whose layers see all, look back a window or into their chunk, recur, or have experts."""
    return variant_path(request.param, tmp_path_factory.mktemp(request.param))


@pytest.fixture(scope="module", params=["qwen3", "gemma3", "lfm2", "qwen3moe", "llama4", "t5"])
def any_path(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of those, and of a model with an encoder."""
    return variant_path(request.param, tmp_path_factory.mktemp(request.param))


def check_pages(engine: Engine) -> None:
    """Pages in use are those that slots list, and none of what is written lies in two of them."""
    roster, cache = engine._roster, engine._cache  # pyright: ignore[reportPrivateUsage]
    slots = [s.slot for s in roster if s.slot is not None]
    assert len(slots) == len(roster.active)
    assert cache.n_held == len({page for slot in slots for page in slot.table.pages})
    written = [page for slot in slots for page in slot.table.pages[len(slot.digests) :]]
    assert len(written) == len(set(written))
    if cache.window is not None:
        listed = {page for slot in slots for page in slot.window.pages[slot.window.n_gone :]}
        assert cache.window.pool.n - cache.window.pool.n_free == len(listed)
    if cache.rows is not None:
        rows = {row for s in slots for row in (s.state.current, s.state.work, s.state.spare)}
        assert cache.rows.pool.n - cache.rows.pool.n_free == len(rows | {ZERO})


def watch_pages(engine: Engine) -> None:
    """`check_pages` before and after every batch."""

    async def checked(step: Step, inputs: Mapping[str, Array], parts: Sequence[Part]) -> list[Drawn]:
        check_pages(engine)
        for part in parts:
            groups = engine._roster.active[part.seq_id].groups  # pyright: ignore[reportPrivateUsage]
            for place in (part.slot.n_cells, part.slot.n_cells + len(part.tokens)):
                assert groups.before(place) == place
        cells = [*inputs["cells"].tolist(), *inputs.get("kept_cells", np.zeros(0, np.int32)).tolist()]
        assert len(cells) == len(set(cells))
        for name in ("window_cells", "targets", "source_cells"):  # what else is written
            assert name not in inputs or len(set(inputs[name].tolist())) == len(inputs[name])
        drawn = await step()
        check_pages(engine)
        return drawn

    around_steps(engine, checked)


def hold_until(engine: Engine, n_sequences: int) -> list[int]:
    """Nothing is computed before so many sequences have come; how many shared each batch from then on."""
    n_parts: list[int] = []

    async def held(step: Step, inputs: Mapping[str, Array], parts: Sequence[Part]) -> list[Drawn]:
        del inputs
        while not n_parts and len([*engine._roster]) < n_sequences:  # pyright: ignore[reportPrivateUsage]
            await trio.lowlevel.checkpoint()
        n_parts.append(len(parts))
        return await step()

    around_steps(engine, held)
    return n_parts


class Guesses(Lookup):
    """Drafts what the sequence says next, but for a mistake now and then."""

    def __init__(self, sequence: EngineSequence, answer: Sequence[int], rng: random.Random) -> None:
        super().__init__()
        self._sequence = sequence
        self._answer = answer
        self._rng = rng

    def draft(self, history: Sequence[int], n_most: int, input_cost: float | None) -> Sequence[int]:
        """Up to five tokens."""
        del history, input_cost
        begin = self._sequence.n_drawn
        guesses = self._answer[begin : begin + max(0, min(n_most, self._rng.randrange(6)))]
        return [token if self._rng.random() < 0.9 else (token + 1) % TINY.n_vocab for token in guesses]


async def guessed(engine: Engine, request: Generate, answer: Sequence[int], rng: random.Random) -> list[int]:
    """The tokens of a request whose drafts are mostly right."""
    async with engine.open(request) as sequence:
        sequence.lookup = Guesses(sequence, answer, rng)
        chunks, _ = await receive(engine, sequence)
    return tokens_of(chunks)


def random_request(rng: random.Random) -> Generate:
    """Greedy or sampled, with or without penalties, short or longer than the context in all."""
    begin = rng.randrange(20)
    prompt = rng.choice([PROMPT[begin:], PROMPT[:4] * 5, PROMPT[: begin + 1], PROMPT])
    sampling = rng.choice(
        [
            GREEDY,
            Sampling(seed=rng.randrange(99), temperature=1.2, repeat_penalty=rng.choice([1.0, 1.4])),
            Sampling(temperature=0, repeat_penalty=1.2, repeat_last_n=-1),
        ]
    )
    n_ctx = rng.choice([0, 0, 48, 64])
    groups = random_groups(rng, len(prompt)) if rng.random() < 0.5 else ()
    return Generate(prompt, sampling, n_predict=rng.choice([1, 9, 40, 90]), n_ctx=n_ctx, groups=groups)


def random_groups(rng: random.Random, n_inputs: int) -> tuple[tuple[int, int], ...]:
    """Apart, none larger than N_BATCH."""
    spans: list[tuple[int, int]] = []
    begin = rng.randrange(4)
    while begin + 2 <= n_inputs:
        size = rng.randrange(2, min(N_BATCH, n_inputs - begin) + 1)
        spans.append((begin, size))
        begin += size + rng.randrange(8)
    return tuple(spans)


@pytest.mark.parametrize("seed", range(8))
async def test_any_interleaving_gives_each_sequence_the_tokens_it_gives_alone(
    seed: int, any_path: Path
) -> None:
    rng = random.Random(seed)
    requests = [random_request(rng) for _ in range(10)]
    async with engine_of(any_path, N_CTX, n_parallel=1, is_speculating=False) as engine:
        alone = [(await collect(engine, request))[0] for request in requests]
    together: dict[int, list[int]] = {}
    async with engine_of(
        any_path, N_CTX, n_each=N_CTX // 4, n_parallel=4, n_batch=N_BATCH, max_queue=99
    ) as engine:
        watch_pages(engine)

        async def ask(i: int) -> None:
            together[i] = await guessed(engine, requests[i], alone[i], rng)

        async def give_up(request: Generate, n_items: int) -> None:
            async with engine.open(request) as sequence:
                for _ in range(n_items):
                    if await sequence.receive():
                        engine.resume()

        async with trio.open_nursery() as nursery:
            for i, request in enumerate(requests):
                nursery.start_soon(ask, i)
                if rng.random() < 0.5:
                    nursery.start_soon(give_up, request, rng.choice([0, 1]))
                for _ in range(rng.randrange(20)):
                    await trio.lowlevel.checkpoint()
        gauges = engine.gauges()
        can_rewind = engine._cache.can_rewind  # pyright: ignore[reportPrivateUsage]
    assert [together[i] for i in range(len(requests))] == alone
    assert (gauges["cache_pages_held"], gauges["sequences_active"]) == (0, 0)
    assert (gauges["drafted_tokens_right_total"] > 0) == can_rewind


async def test_a_next_turn_costs_its_own_tokens_and_a_page(decoder_path: Path) -> None:
    async with engine_of(decoder_path, n_ctx=128, n_parallel=2, n_batch=32) as engine:
        _, _, first = await collect(engine, Generate(PROMPT, GREEDY, n_predict=40))
        turn = (*first.context, 1, 2, 3)
        await collect(engine, Generate(PROMPT[5:30], GREEDY, n_predict=20))  # somebody else
        _, _, second = await collect(engine, Generate(turn, GREEDY, n_predict=3))
        _, _, other = await collect(engine, Generate((*PROMPT, 7, 8), GREEDY, n_predict=3))
    assert second.prompt_tokens - second.cached_tokens < 32 + 3
    assert other.cached_tokens == 32  # another answer to the same prompt


async def test_more_sequences_run_than_would_fit_at_full_length(model_path: Path) -> None:
    async with engine_of(model_path, n_ctx=64, n_each=53, n_parallel=3, n_batch=16) as engine:
        n_parts = hold_until(engine, 3)
        async with trio.open_nursery() as nursery:
            for begin in range(3):
                request = Generate(PROMPT[begin : begin + 8], GREEDY, n_predict=8)
                nursery.start_soon(collect, engine, request)
    assert max(n_parts) == 3


async def test_the_youngest_is_paused_and_the_oldest_goes_on(model_path: Path) -> None:
    ended: list[tuple[str, DoneReason, int]] = []
    async with engine_of(model_path, n_each=48, n_parallel=2, n_batch=16) as engine:
        hold_until(engine, 2)

        async def ask(name: str, prompt: tuple[int, ...]) -> None:
            _, _, done = await collect(engine, Generate(prompt, GREEDY, n_predict=25, shift=False))
            ended.append((name, done.reason, done.predicted_tokens))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(ask, "old", PROMPT[:30])
            while not engine.gauges()["sequences_active"]:
                await trio.lowlevel.checkpoint()
            nursery.start_soon(ask, "young", PROMPT[5:33])
        assert engine.gauges()["sequences_paused_total"] > 0
    assert ended == [("old", DoneReason.LIMIT, 25), ("young", DoneReason.LIMIT, 25)]


async def test_a_reader_that_stops_gives_way_to_everybody(model_path: Path) -> None:
    request = Generate(PROMPT[:4], GREEDY, n_predict=60)
    async with engine_of(model_path, n_each=32, n_parallel=2, n_batch=16) as engine:
        expected, _, _ = await collect(engine, request)
        async with engine.open(request) as stopped:
            while stopped.can_run or stopped.slot is None:
                await trio.lowlevel.checkpoint()
            await collect(engine, Generate(PROMPT[5:40], GREEDY, n_predict=20))  # takes both pages
            assert stopped.slot is None
            chunks, _ = await receive(engine, stopped)
    assert tokens_of(chunks) == expected


@pytest.mark.parametrize("sampling", [GREEDY, Sampling(seed=3, temperature=0.7, repeat_penalty=1.3)])
async def test_right_guesses_make_fewer_batches_of_the_same_tokens_and_probabilities(
    sampling: Sampling, model_path: Path
) -> None:
    request = Generate(PROMPT, sampling, n_predict=60, n_logprobs=2)

    async def said(engine: Engine, answer: Sequence[int]) -> list[Logprob]:
        async with engine.open(request) as sequence:
            sequence.lookup = Guesses(sequence, answer, random.Random(1))
            chunks, _ = await receive(engine, sequence)
        return [entry for chunk in chunks for entry in chunk.logprobs]

    async with engine_of(model_path, n_ctx=128, is_speculating=False) as plain:
        expected = await said(plain, ())
    async with engine_of(model_path, n_ctx=128) as engine:
        entries = await said(engine, [entry.chosen.token for entry in expected])
    assert [entry.chosen.token for entry in entries] == [entry.chosen.token for entry in expected]
    for entry, other in zip(entries, expected, strict=True):  # numpy sums a larger batch in another order
        assert entry.chosen.logprob == pytest.approx(other.chosen.logprob, abs=1e-4)
    assert engine.n_batches < 0.7 * plain.n_batches


async def test_a_limit_of_the_request_shifts_as_a_context_of_that_length_does(model_path: Path) -> None:
    request = Generate(PROMPT[:20], GREEDY, n_predict=60)
    async with engine_of(model_path, n_ctx=32) as small:
        expected = await collect(small, request)
    async with engine_of(model_path, n_ctx=96) as large:
        limited = Generate(request.prompt, GREEDY, n_predict=60, n_ctx=32)
        assert (await collect(large, limited))[:2] == expected[:2]


async def test_a_limit_beyond_the_model_is_the_models(model_path: Path) -> None:
    async with engine_of(model_path, n_ctx=32) as engine:
        request = Generate(PROMPT[:20], GREEDY, n_predict=60, n_ctx=10**6, shift=False)
        _, _, done = await collect(engine, request)
    assert done.prompt_tokens + done.predicted_tokens == 32 + 1
