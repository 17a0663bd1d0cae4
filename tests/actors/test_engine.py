"""The engine on a tiny real model and the reference backend: streams, limits, cancellation, isolation.

Longer than a module should be, on purpose: every test drives the one loop through the helpers below.
"""

import copy
import time
from collections.abc import Mapping
from collections.abc import Sequence as SequenceOf
from pathlib import Path

import numpy as np
import pytest
import trio
import trio.testing

from actors.errors import ModelError, PeerGone, QueueFull, RequestError
from actors.protocol import Chunk, DoneReason, Finished, Generate, LoadOptions, ModelSpec, Sampling
from actors.runner.engine import Engine
from actors.runner.forward import Drawn, Part, ThreadDevice
from actors.runner.model import Model
from actors.runner.sequence import Sequence
from kernels.cpu.backend import CpuBackend
from kernels.executable import Executable
from kernels.ops.op import Array
from tests.actors.engine_rig import (
    GREEDY,
    PROMPT,
    TINY,
    Step,
    around_steps,
    collect,
    engine_of,
    open_model,
    receive,
    tokens_of,
    write_model,
)
from tests.golden import tiny as t

POISON = 5  # a token whose embedding is not a number


@pytest.fixture(scope="module")
def model_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("engine") / "tiny.gguf")


@pytest.fixture(scope="module")
def poisoned_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    weights = t.weights(TINY)
    weights["token_embd.weight"][POISON] = np.nan
    path = tmp_path_factory.mktemp("poisoned") / "tiny.gguf"
    t.write(path, TINY, weights)
    return path


async def drain(sequence: Sequence) -> None:
    while await sequence.receive():
        pass


async def keep_up(engine: Engine, sequence: Sequence) -> None:
    while await sequence.receive():
        engine.resume()


async def test_a_prompt_longer_than_a_batch_gives_the_tokens_of_one_large_batch(model_path: Path) -> None:
    request = Generate(PROMPT, GREEDY, n_predict=12)
    async with engine_of(model_path, n_batch=8) as small, engine_of(model_path, n_batch=64) as large:
        assert (await collect(small, request))[0] == (await collect(large, request))[0]


async def test_sequences_that_share_batches_give_the_tokens_they_give_alone(model_path: Path) -> None:
    requests = [Generate(PROMPT[i:], GREEDY, n_predict=10) for i in range(5)]
    async with engine_of(model_path, n_parallel=3) as engine:
        alone = [(await collect(engine, request))[0] for request in requests]
        together: dict[int, list[int]] = {}

        async def one(i: int) -> None:
            together[i] = (await collect(engine, requests[i]))[0]

        async with trio.open_nursery() as nursery:
            for i in range(len(requests)):
                nursery.start_soon(one, i)
    assert [together[i] for i in range(len(requests))] == alone


async def test_sequences_that_come_and_go_give_the_tokens_they_give_alone(model_path: Path) -> None:
    # prepared batches: penalties look at tokens drawn last, contexts shift, some end early or are cancelled
    seeded = [Sampling(seed=i, repeat_penalty=1.5, repeat_last_n=-1) for i in range(6)]
    requests = [Generate(PROMPT[i : i + 9], s, n_predict=5 + 9 * (i % 4)) for i, s in enumerate(seeded)]
    async with engine_of(model_path, n_ctx=24, n_parallel=3) as engine:
        alone = [(await collect(engine, request))[0] for request in requests]
        together: dict[int, list[int]] = {}

        async def one(i: int) -> None:
            together[i] = (await collect(engine, requests[i]))[0]
            async with engine.open(requests[i]) as sequence:
                await sequence.receive()

        async with trio.open_nursery() as nursery:
            for i in range(len(requests)):
                nursery.start_soon(one, i)
    assert [together[i] for i in range(len(requests))] == alone


async def test_a_batch_is_prepared_while_the_one_before_computes(
    model_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    composed: list[int] = []
    compose_anew = Engine._compose  # pyright: ignore[reportPrivateUsage]  # what is not to be called each time

    def noted(self: Engine) -> object:
        composed.append(self.n_batches)
        return compose_anew(self)

    monkeypatch.setattr(Engine, "_compose", noted)
    async with engine_of(model_path) as engine:
        await collect(engine, Generate(PROMPT[:4], GREEDY, n_predict=20))
    assert set(composed) <= {0, 20}  # when the sequence came, and when it had gone


async def test_counts_and_reason_say_what_happened(model_path: Path) -> None:
    async with engine_of(model_path) as engine:
        tokens, _, done = await collect(engine, Generate(PROMPT, GREEDY, n_predict=7))
    assert (done.reason, done.prompt_tokens, done.predicted_tokens) == (DoneReason.LIMIT, len(PROMPT), 7)
    assert done.context == (*PROMPT, *tokens)


async def test_a_second_turn_computes_only_what_is_new(model_path: Path) -> None:
    async with engine_of(model_path) as engine:
        _, _, first = await collect(engine, Generate(PROMPT, GREEDY, n_predict=3))
        _, _, second = await collect(engine, Generate((*first.context, 1, 2), GREEDY, n_predict=3))
    assert second.prompt_tokens - second.cached_tokens < 32 + 2


async def test_a_resumed_stream_continues_as_if_nothing_had_happened(model_path: Path) -> None:
    sampling = Sampling(temperature=1.5, top_k=0, top_p=1.0, seed=7)
    async with engine_of(model_path) as engine:
        tokens, text, _ = await collect(engine, Generate(PROMPT, sampling, n_predict=16))
    async with engine_of(model_path) as other:
        request = Generate(PROMPT, sampling, n_predict=16, resume=tuple(tokens[:6]))
        rest, rest_text, done = await collect(other, request)
    assert tokens[:6] + rest == tokens
    assert text.endswith(rest_text)
    assert done.predicted_tokens == 10


async def test_the_same_seed_gives_the_same_tokens_and_another_seed_others(model_path: Path) -> None:
    async def sample(engine: Engine, seed: int) -> list[int]:
        sampling = Sampling(temperature=1.5, top_k=0, top_p=1.0, seed=seed)
        return (await collect(engine, Generate(PROMPT, sampling, n_predict=16)))[0]

    async with engine_of(model_path) as engine:
        assert await sample(engine, 1) == await sample(engine, 1)
        assert await sample(engine, 1) != await sample(engine, 2)


async def test_probabilities_that_are_no_numbers_fail_their_own_sequence_only(poisoned_path: Path) -> None:
    async with engine_of(poisoned_path) as engine:
        results: list[list[int]] = []

        async def healthy() -> None:
            results.append((await collect(engine, Generate(PROMPT, GREEDY, n_predict=10)))[0])

        async with trio.open_nursery() as nursery:
            nursery.start_soon(healthy)
            with pytest.raises(ModelError, match="no usable probabilities"):
                await collect(engine, Generate((1, POISON), GREEDY, n_predict=10))
    assert len(results[0]) == 10


async def test_ends_are_counted_by_reason(poisoned_path: Path) -> None:
    async with engine_of(poisoned_path, n_ctx=32) as engine:
        await collect(engine, Generate(PROMPT[:4], GREEDY, n_predict=2))
        await collect(engine, Generate(PROMPT[:4], GREEDY, shift=False))
        with pytest.raises(ModelError):
            await collect(engine, Generate((1, POISON), GREEDY))
        async with engine.open(Generate(PROMPT[:4], GREEDY)):
            pass
        ended = {name: n for name, n in engine.gauges().items() if name.startswith("sequences_ended") and n}
    assert ended == {f"sequences_ended_total:{why}": 1 for why in ("limit", "context", "cancelled", "error")}


async def test_leaving_in_the_middle_of_a_prompt_gives_everything_back(model_path: Path) -> None:
    async with engine_of(model_path, n_batch=4) as engine:
        async with engine.open(Generate(PROMPT, GREEDY)):
            await trio.testing.wait_all_tasks_blocked()
        gauges = engine.gauges()
        assert (gauges["sequences_active"], gauges["cache_pages_held"]) == (0, 0)
        assert (await collect(engine, Generate(PROMPT, GREEDY, n_predict=2)))[2].predicted_tokens == 2


async def test_a_reader_that_stops_pauses_its_own_sequence_only(model_path: Path) -> None:
    request = Generate(PROMPT, GREEDY, n_predict=80)
    async with engine_of(model_path, n_ctx=128) as engine, engine.open(request) as lazy:
        _, _, done = await collect(engine, request)
        assert done.predicted_tokens == 80
        assert len(lazy.unsent) < 80
        n_taken = 0
        while not isinstance(item := await lazy.receive(), Finished):
            engine.resume()
            n_taken += len(item.tokens)
        assert n_taken == 80


async def test_when_every_reader_stops_nothing_is_computed_until_one_goes_on(model_path: Path) -> None:
    request = Generate(PROMPT[:8], GREEDY, n_predict=80)
    n_begun = n_ended = 0

    async def counted(step: Step, inputs: Mapping[str, Array], parts: SequenceOf[Part]) -> list[Drawn]:
        nonlocal n_begun, n_ended
        del inputs, parts
        n_begun += 1
        drawn = await step()
        n_ended += 1
        return drawn

    async with engine_of(model_path, n_ctx=128, n_parallel=2) as engine:
        expected, _, _ = await collect(engine, request)
        around_steps(engine, counted)
        async with engine.open(request) as first, engine.open(request) as second:
            while first.keeps_up or second.keeps_up or n_begun != n_ended:
                await trio.testing.wait_all_tasks_blocked(0.01)
            assert n_begun == n_ended  # the loop sleeps, and no batch is under way
            for sequence in (first, second):
                assert tokens_of((await receive(engine, sequence))[0]) == expected


async def test_more_sequences_than_the_queue_holds_are_refused(model_path: Path) -> None:
    request = Generate(PROMPT, GREEDY)
    async with engine_of(model_path, n_parallel=1, max_queue=1) as engine, engine.open(request) as running:
        assert isinstance(await running.receive(), Chunk)
        async with engine.open(request):
            with pytest.raises(QueueFull, match="maximum pending requests exceeded"):
                await collect(engine, request)


async def test_stopping_the_engine_ends_every_sequence_with_an_error(model_path: Path) -> None:
    model = open_model(model_path)
    engine = Engine(model, max_queue=8)
    async with trio.open_nursery() as nursery, engine.open(Generate(PROMPT, GREEDY)) as sequence:
        nursery.start_soon(engine.run)
        assert isinstance(await sequence.receive(), Chunk)
        await engine.stop()
        with pytest.raises(PeerGone, match="unloaded"):
            await drain(sequence)
    model.close()


async def test_stopping_does_not_wait_for_the_end_of_an_answer_that_is_read(model_path: Path) -> None:
    spec = ModelSpec("tiny", "sha256:0", str(model_path), 0)
    options = LoadOptions(n_ctx=64, n_parallel=2, n_batch=16)
    model = Model.open(spec, options, (), {"cpu": CpuBackend(1)})  # whose steps no cancellation cuts short
    assert model.allocate()
    engine = Engine(model, max_queue=8)
    async with trio.open_nursery() as nursery, engine.open(Generate(PROMPT, GREEDY)) as sequence:
        await nursery.start(engine.run)
        assert isinstance(await sequence.receive(), Chunk)
        nursery.start_soon(engine.stop)
        with trio.fail_after(30), pytest.raises(PeerGone, match="unloaded"):
            await keep_up(engine, sequence)
    model.close()


async def test_a_prompt_still_being_tokenised_when_the_engine_stops_ends_with_an_error(
    model_path: Path,
) -> None:
    model = open_model(model_path)
    engine = Engine(model, max_queue=8)
    threads = trio.to_thread.current_default_thread_limiter()
    n_threads, threads.total_tokens = threads.total_tokens, 1
    async with trio.open_nursery() as nursery:
        await nursery.start(engine.run)
        await threads.acquire()  # nobody tokenises until this is released
        nursery.start_soon(_expect_unloaded, engine)
        await trio.testing.wait_all_tasks_blocked()
        await engine.stop()
        model.close()
        threads.release()
        threads.total_tokens = n_threads


async def _expect_unloaded(engine: Engine) -> None:
    with pytest.raises(PeerGone, match="unloaded"):
        await collect(engine, Generate(PROMPT, GREEDY))


async def test_prompts_being_tokenised_count_as_waiting(model_path: Path) -> None:
    threads = trio.to_thread.current_default_thread_limiter()
    n_threads, threads.total_tokens = threads.total_tokens, 1
    request = Generate(PROMPT, GREEDY, n_predict=1)
    async with engine_of(model_path, n_parallel=1, max_queue=1) as engine, trio.open_nursery() as nursery:
        await threads.acquire()
        for _ in range(2):  # one for the free slot, one to wait for it
            nursery.start_soon(collect, engine, request)
        await trio.testing.wait_all_tasks_blocked()
        with pytest.raises(QueueFull):
            await collect(engine, request)
        threads.release()
        threads.total_tokens = n_threads


async def test_a_long_prompt_is_tokenised_without_holding_up_anybody(model_path: Path) -> None:
    async with engine_of(model_path) as engine, trio.open_nursery() as nursery:
        longest_s = 0.0

        async def step() -> None:
            nonlocal longest_s
            while True:
                began_s = time.monotonic()
                await trio.lowlevel.checkpoint()
                longest_s = max(longest_s, time.monotonic() - began_s)

        nursery.start_soon(step)
        began_s = time.monotonic()
        await collect(engine, Generate("a word " * 100_000, GREEDY, n_predict=1))
        took_s = time.monotonic() - began_s
        nursery.cancel_scope.cancel()
    assert longest_s < took_s / 2


async def test_a_slow_reader_of_a_finished_answer_holds_no_slot(model_path: Path) -> None:
    request = Generate(PROMPT, GREEDY, n_predict=2)
    async with engine_of(model_path, n_parallel=1) as engine, engine.open(request) as lazy:
        assert (await collect(engine, request))[2].predicted_tokens == 2
        assert lazy.is_done


async def test_readers_that_leave_at_any_time_give_everything_back(model_path: Path) -> None:
    async def leave_after(engine: Engine, n_items: int) -> None:
        request = Generate(PROMPT[n_items:], GREEDY, n_predict=30)
        async with engine.open(request) as sequence:
            for _ in range(n_items):
                if isinstance(await sequence.receive(), Finished):
                    return
                engine.resume()

    async with engine_of(model_path, n_parallel=3, n_batch=8, max_queue=64) as engine:
        async with trio.open_nursery() as nursery:
            for n_items in range(30):
                nursery.start_soon(leave_after, engine, n_items)
        gauges = engine.gauges()
        assert (gauges["sequences_active"], gauges["sequences_queued"], gauges["cache_pages_held"]) == (
            0,
            0,
            0,
        )
        assert (await collect(engine, Generate(PROMPT, GREEDY, n_predict=2)))[2].predicted_tokens == 2


async def test_an_error_of_the_device_ends_the_engine_and_every_sequence(
    model_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> dict[str, Array]:
        raise RuntimeError("the device is gone")

    monkeypatch.setattr(Executable, "run", broken)
    model = open_model(model_path)
    engine = Engine(model, max_queue=8)
    reader: list[PeerGone] = []

    async def read() -> None:
        try:
            await collect(engine, Generate(PROMPT, GREEDY))
        except PeerGone as gone:
            reader.append(gone)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(read)
        with pytest.raises(RuntimeError, match="the device is gone"):
            await engine.run()
    assert "the runner is ending" in str(reader)
    model.close()


async def test_nothing_is_allocated_on_the_device_after_the_load(model_path: Path) -> None:
    backend = CpuBackend(1)
    spec = ModelSpec("tiny", "sha256:0", str(model_path), 0)
    model = Model.open(spec, LoadOptions(n_ctx=48, n_parallel=2, n_batch=16), (), {"cpu": backend})
    assert backend.allocations.n_allocations == 0  # fit
    assert model.allocate()
    loaded = copy.deepcopy(backend.allocations)
    engine = Engine(model, max_queue=8)
    async with trio.open_nursery() as nursery:
        await nursery.start(engine.run)
        await collect(engine, Generate(PROMPT, GREEDY, n_predict=60, n_logprobs=3))
        await engine.stop()
    assert backend.allocations == loaded
    model.close()
    assert (backend.allocations.given_bytes, backend.allocations.asked_bytes) == (0, 0)


@pytest.mark.parametrize(
    ("request_", "said"),
    [
        (Generate((), GREEDY), "the prompt is empty"),
        (Generate((10_000,), GREEDY), "outside the vocabulary"),
        (Generate((1,), GREEDY, stop=("",)), "empty"),
        (Generate((1,), Sampling(repeat_penalty=0.0)), "repeat_penalty"),
        (Generate((1,), Sampling(temperature=float("nan"))), "temperature"),
        (Generate((1,), GREEDY, n_logprobs=21), "at most 20"),
    ],
)
async def test_an_impossible_request_is_refused_in_words(
    model_path: Path, request_: Generate, said: str
) -> None:
    async with engine_of(model_path) as engine:
        with pytest.raises(RequestError, match=said):
            await collect(engine, request_)


async def test_logprobs_come_one_a_token_in_falling_order(model_path: Path) -> None:
    async with (
        engine_of(model_path) as engine,
        engine.open(Generate(PROMPT, GREEDY, n_predict=5, n_logprobs=3)) as sequence,
    ):
        entries = []
        while isinstance(item := await sequence.receive(), Chunk):
            entries += item.logprobs
    assert len(entries) == 5
    for entry in entries:
        assert entry.chosen == entry.top[0]
        assert [x.logprob for x in entry.top] == sorted((x.logprob for x in entry.top), reverse=True)


async def test_tokens_that_are_no_text_keep_their_log_probabilities(model_path: Path) -> None:
    # at this temperature every byte is as likely as any other, and most make no UTF-8
    sampling = Sampling(seed=5, temperature=50.0, top_k=0, top_p=1.0)
    async with (
        engine_of(model_path, n_ctx=128) as engine,
        engine.open(Generate(PROMPT[:8], sampling, n_predict=60, n_logprobs=1)) as sequence,
    ):
        chunks, done = await receive(engine, sequence)
    text = "".join(chunk.text for chunk in chunks)
    entries = [entry for chunk in chunks for entry in chunk.logprobs]
    assert "\ufffd" in text
    assert [entry.chosen.token for entry in entries] == tokens_of(chunks)
    assert len(entries) == done.predicted_tokens == 60
    raw = b"".join(engine._tokenizer.piece(token) for token in tokens_of(chunks))  # pyright: ignore[reportPrivateUsage]
    assert text == raw.decode("utf-8", "replace")


@pytest.mark.parametrize("n_threads", [1, 3])
async def test_the_native_thread_draws_what_a_python_thread_draws(
    model_path: Path, n_threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    requests = [
        Generate(PROMPT[i:], Sampling(seed=i, repeat_penalty=1.2), n_predict=12, n_logprobs=2)
        for i in range(3)
    ]

    async def answers() -> list[tuple[list[int], str]]:
        spec = ModelSpec("tiny", "sha256:0", str(model_path), 0)
        options = LoadOptions(n_ctx=64, n_parallel=3, n_batch=16)
        model = Model.open(spec, options, (), {"cpu": CpuBackend(n_threads, small_bytes=0)})
        assert model.allocate()
        engine = Engine(model, max_queue=8)
        got: dict[int, tuple[list[int], str]] = {}

        async def one(i: int) -> None:
            tokens, text, _ = await collect(engine, requests[i])
            got[i] = tokens, text

        async with trio.open_nursery() as nursery:
            await nursery.start(engine.run)
            async with trio.open_nursery() as readers:
                for i in range(len(requests)):
                    readers.start_soon(one, i)
            await engine.stop()
        model.close()
        return [got[i] for i in range(len(requests))]

    native = await answers()
    monkeypatch.setattr("actors.runner.engine.device_of", lambda _, tokenizer: ThreadDevice(tokenizer))
    assert native == await answers()


async def test_what_is_offered_and_what_is_received_make_the_answer_in_order(model_path: Path) -> None:
    request = Generate(PROMPT, GREEDY, n_predict=30)
    async with engine_of(model_path) as engine:
        whole, _, _ = await collect(engine, request)
        items: list[Chunk | Finished] = []
        n_offers = 0

        def offer(item: Chunk | Finished) -> bool:
            nonlocal n_offers
            n_offers += 1
            if n_offers % 3 == 0:
                return False  # as a reader without credit
            items.append(item)
            return True

        async with engine.open(request, offer) as sequence:
            while not (items and isinstance(items[-1], Finished)):
                try:
                    items.append(await sequence.receive())
                except trio.EndOfChannel:
                    break
                engine.resume()
    assert [token for item in items if isinstance(item, Chunk) for token in item.tokens] == whole
    assert [type(item) for item in items].count(Finished) == 1


async def test_a_reader_that_takes_every_offer_is_woken_once(model_path: Path) -> None:
    items: list[Chunk | Finished] = []

    def offer(item: Chunk | Finished) -> bool:
        items.append(item)
        return True

    async with (
        engine_of(model_path) as engine,
        engine.open(Generate(PROMPT, GREEDY, n_predict=9), offer) as sequence,
    ):
        with pytest.raises(trio.EndOfChannel):
            await sequence.receive()
    assert isinstance(items[-1], Finished)
    assert items[-1].predicted_tokens == 9
