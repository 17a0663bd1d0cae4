"""One runner as a process of its own, driven over its socket: fit, alloc, commit, generate, close."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import trio

from actors.errors import ModelError, ModelNotFound, PeerGone, RequestError, RuntimeFault
from actors.link import ItemStream, Link
from actors.protocol import (
    Alloc,
    Commit,
    Detokenize,
    Fit,
    Generate,
    LayerPlacement,
    LoadOptions,
    LoadProgress,
    MemoryReport,
    ModelSpec,
    Sampling,
    Text,
    Tokenize,
    Tokens,
)
from tests.actors.runner_process import CEILING_S, close, generate, report_of, runner, told
from tests.golden import tiny as t

TINY = t.VARIANTS["llama"]
OPTIONS = LoadOptions(n_ctx=64, n_batch=16, n_parallel=2, n_thread=1)


@pytest.fixture(scope="module")
def spec(tmp_path_factory: pytest.TempPathFactory) -> ModelSpec:
    path = tmp_path_factory.mktemp("runner") / "tiny.gguf"
    t.write(path, TINY, t.weights(TINY))
    return ModelSpec("tiny:latest", "sha256:0", str(path), path.stat().st_size)


async def load(link: Link, spec: ModelSpec) -> tuple[list[LoadProgress], MemoryReport]:
    await report_of(link, Alloc(spec, OPTIONS, ()))
    return await told(link, Commit())


async def test_a_model_is_sized_allocated_loaded_used_and_closed(tmp_path: Path, spec: ModelSpec) -> None:
    async with runner(tmp_path) as link:
        planned = await link.ask(Fit(spec, OPTIONS, ()), MemoryReport)
        progress, measured = await load(link, spec)
        assert progress[-1].done_bytes == progress[-1].total_bytes > 0
        device = measured.devices[0]
        assert [w.measured_bytes for w in device.weights] == [
            w.planned_bytes for w in planned.devices[0].weights
        ]
        assert [c.status for c in device.cache] == ["allocated"] * TINY.n_layer + ["planned"]
        assert (device.graph.status, device.graph.measured_bytes) == ("allocated", device.graph.planned_bytes)
        text, done = await generate(link, Generate("hello", Sampling(temperature=0), n_predict=5))
        assert done.predicted_tokens == 5
        assert text
        await close(link)
        with pytest.raises(RequestError, match="empty"):
            await generate(link, Generate("hello", Sampling()))


async def test_a_closed_runner_can_load_again(tmp_path: Path, spec: ModelSpec) -> None:
    async with runner(tmp_path) as link:
        await load(link, spec)
        first, _ = await generate(link, Generate("abc", Sampling(temperature=0), n_predict=5))
        await close(link)
        await load(link, spec)
        second, _ = await generate(link, Generate("abc", Sampling(temperature=0), n_predict=5))
    assert first == second


async def test_text_becomes_tokens_and_text_again(tmp_path: Path, spec: ModelSpec) -> None:
    async with runner(tmp_path) as link:
        await load(link, spec)
        tokens = await link.ask(Tokenize("abacus ½"), Tokens)
        assert (await link.ask(Detokenize(tokens.tokens), Text)).text == "abacus ½"


@pytest.mark.parametrize(
    ("spoil", "error", "said"),
    [
        (lambda path: path.unlink(), ModelNotFound, "no such file|not found|does not exist"),
        (lambda path: path.write_bytes(b"GGML" + bytes(40)), ModelError, "not a GGUF file"),
        (lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]), ModelError, None),
        (lambda path: path.write_bytes(path.read_bytes()[:8] + b"\xff" * 8 + bytes(64)), ModelError, None),
    ],
    ids=["missing", "wrong magic", "cut short", "absurd count"],
)
async def test_a_bad_file_is_refused_and_the_runner_lives(
    tmp_path: Path,
    spec: ModelSpec,
    spoil: Callable[[Path], object],
    error: type[RuntimeFault],
    said: str | None,
) -> None:
    bad = Path(shutil.copy(spec.path, tmp_path / "bad.gguf"))
    spoil(bad)
    async with runner(tmp_path) as link:
        with pytest.raises(error, match=said):
            await link.ask(Fit(ModelSpec("bad", "", str(bad), 0), OPTIONS, ()), MemoryReport)
        assert (await link.ask(Fit(spec, OPTIONS, ()), MemoryReport)).n_ctx == 64


async def test_a_device_this_runner_cannot_use_is_refused_by_name(tmp_path: Path, spec: ModelSpec) -> None:
    async with runner(tmp_path) as link:
        with pytest.raises(RuntimeFault, match="GPU-7"):
            await link.ask(Fit(spec, OPTIONS, (LayerPlacement("GPU-7", (0,)),)), MemoryReport)


async def test_steps_out_of_order_are_refused(tmp_path: Path, spec: ModelSpec) -> None:
    async with runner(tmp_path) as link:
        with pytest.raises(RequestError, match="alloc comes first"):
            await report_of(link, Commit())
        await report_of(link, Alloc(spec, OPTIONS, ()))
        with pytest.raises(RequestError, match="allocated already"):
            await report_of(link, Alloc(spec, OPTIONS, ()))


async def test_a_token_outside_the_vocabulary_is_refused_and_the_runner_lives(
    tmp_path: Path, spec: ModelSpec
) -> None:
    async with runner(tmp_path) as link:
        await load(link, spec)
        with pytest.raises(RequestError, match="token 260 is outside the vocabulary of 260"):
            await link.ask(Detokenize((1, 260)), Text)
        with pytest.raises(RequestError, match="log-probabilities"):
            await generate(link, Generate("abc", Sampling(), n_logprobs=21))
        assert (await generate(link, Generate("abc", Sampling(), n_predict=1)))[1].predicted_tokens <= 1


async def test_closing_while_a_load_is_committed_leaves_a_runner_that_loads_again(
    tmp_path: Path, spec: ModelSpec
) -> None:
    async with runner(tmp_path) as link:
        with trio.fail_after(CEILING_S):
            for _ in range(10):
                await report_of(link, Alloc(spec, OPTIONS, ()))
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(commit, link)
                    nursery.start_soon(close, link)
                    nursery.start_soon(close, link)
                await close(link)
            await load(link, spec)
            assert (await generate(link, Generate("abc", Sampling(), n_predict=1)))[0] is not None


async def commit(link: Link) -> None:
    try:
        async with link.request(Commit()) as stream:
            async for _ in stream:
                continue
    except RequestError:
        return  # a close came first


async def test_a_commit_that_is_given_up_can_be_asked_for_again(tmp_path: Path, spec: ModelSpec) -> None:
    async with runner(tmp_path) as link:
        await report_of(link, Alloc(spec, OPTIONS, ()))
        for _ in range(5):
            async with link.request(Commit()) as stream:
                await stream.receive()
            await close(link)
            await report_of(link, Alloc(spec, OPTIONS, ()))
        await close(link)
        assert (await load(link, spec))[0]


async def test_closing_ends_the_answers_under_way(tmp_path: Path, spec: ModelSpec) -> None:
    async with runner(tmp_path) as link:
        await load(link, spec)
        async with link.request(Generate("abc", Sampling(seed=1), n_predict=600)) as stream:
            await stream.receive()
            await close(link)
            with pytest.raises(PeerGone, match="unloaded"):
                await read_all(stream)


async def read_all(stream: ItemStream) -> None:
    async for _ in stream:
        continue


async def test_a_model_with_an_encoder_answers_text(tmp_path: Path) -> None:
    path = tmp_path / "t5.gguf"
    tiny = t.VARIANTS["t5"]
    t.write(path, tiny, t.weights(tiny))
    spec = ModelSpec("t5:latest", "sha256:1", str(path), path.stat().st_size)
    prompt = "translate this  text"
    request = Generate(prompt, Sampling(temperature=0), n_predict=9)
    async with runner(tmp_path) as link:
        _, measured = await load(link, spec)
        assert (measured.n_layer, measured.n_ctx) == (tiny.n_encoder + tiny.n_layer, 64)
        asked = await link.ask(Tokenize(prompt), Tokens)
        assert asked.tokens[-1] == tiny.n_vocab - 1  # the end of the text
        text, done = await generate(link, request)
        again, known = await generate(link, request)
        assert text
        assert again == text
        assert (done.prompt_tokens, done.cached_tokens, done.predicted_tokens) == (len(asked.tokens), 0, 9)
        assert known.cached_tokens == known.prompt_tokens
