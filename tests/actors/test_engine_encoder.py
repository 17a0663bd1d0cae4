"""An engine whose model has an encoder: prompts are read at once, and what it made of them is kept."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec
import pytest
import trio

from actors.errors import RequestError
from actors.protocol import DoneReason, Generate, Sampling
from actors.runner.engine import Engine
from actors.runner.forward import Draw, Drawn, Part
from kernels.ops.op import Array
from kernels.ops.sampling import SamplingParams
from tests.actors.engine_rig import GREEDY, Step, around_steps, collect, engine_of, open_model, write_model
from tests.golden import tiny as t

TINY = t.VARIANTS["t5"]
PROMPT = tuple(t.prompt(TINY, 50))
SEEDED = Sampling(seed=5, temperature=0.9, repeat_penalty=1.3)


@pytest.fixture(scope="module")
def model_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("t5") / "tiny.gguf", TINY)


def count_read(engine: Engine) -> list[int]:
    """How many inputs the encoder reads with each batch from now on."""
    n_read: list[int] = []

    async def counted(step: Step, inputs: Mapping[str, Array], parts: Sequence[Part]) -> list[Drawn]:
        del parts
        n_read.append(len(inputs["source_tokens"]))
        return await step()

    around_steps(engine, counted)
    return n_read


async def test_a_prompt_is_read_once_and_known_when_it_is_asked_again(model_path: Path) -> None:
    async with engine_of(model_path) as engine:
        n_read = count_read(engine)
        tokens, _, done = await collect(engine, Generate(PROMPT, GREEDY, n_predict=8))
        again, _, known = await collect(engine, Generate(PROMPT, GREEDY, n_predict=8))
        assert again == tokens
        assert done.context == (*PROMPT, *tokens)
        assert sum(n_read) == max(n_read) == len(PROMPT)  # whole pages are no inputs
        assert (done.prompt_tokens, done.cached_tokens) == (len(PROMPT), 0)
        assert (known.prompt_tokens, known.cached_tokens) == (len(PROMPT), len(PROMPT))
        # its rows saw all of the prompt: of another one nothing is known, however it begins
        _, _, longer = await collect(engine, Generate((*PROMPT, 3), GREEDY, n_predict=1))
        assert longer.cached_tokens == 0


async def test_a_full_context_drops_of_the_answer_and_not_of_the_prompt(model_path: Path) -> None:
    async with engine_of(model_path, n_ctx=32) as engine:
        n_read = count_read(engine)
        prompt = PROMPT[:30]
        tokens, _, done = await collect(engine, Generate(prompt, GREEDY, n_predict=70))
        assert (done.reason, len(tokens), sum(n_read)) == (DoneReason.LIMIT, 70, len(prompt))
        _, _, short = await collect(engine, Generate(prompt, GREEDY, n_predict=70, shift=False))
        assert (short.reason, short.predicted_tokens) == (DoneReason.CONTEXT, 32)  # behind its first input


@pytest.mark.parametrize("sampling", [GREEDY, SEEDED])
@pytest.mark.parametrize("n_delivered", [1, 5, 40])
async def test_a_resumed_stream_continues_as_if_nothing_had_happened(
    sampling: Sampling, n_delivered: int, model_path: Path
) -> None:
    request = Generate(PROMPT[:30], sampling, n_predict=60, n_keep=0)
    async with engine_of(model_path, n_ctx=32) as engine:
        tokens, text, _ = await collect(engine, request)
    async with engine_of(model_path, n_ctx=32) as engine:
        resumed = msgspec.structs.replace(request, resume=tuple(tokens[:n_delivered]))
        rest, rest_text, done = await collect(engine, resumed)
    assert (rest, done.reason) == (tokens[n_delivered:], DoneReason.LIMIT)
    assert text.endswith(rest_text)


async def test_prompts_begin_beside_running_streams_and_change_nothing(model_path: Path) -> None:
    requests = [Generate(PROMPT[i : i + 20 + 5 * i], SEEDED, n_predict=20) for i in range(4)]
    async with engine_of(model_path, n_parallel=1) as engine:
        alone = [(await collect(engine, request))[0] for request in requests]
    together: dict[int, list[int]] = {}
    async with engine_of(model_path, n_parallel=4) as engine:
        n_read = count_read(engine)

        async def ask(i: int) -> None:
            together[i] = (await collect(engine, requests[i]))[0]

        async with trio.open_nursery() as nursery:
            for i in range(4):
                nursery.start_soon(ask, i)
                while len(n_read) < 3 * i:  # some streams run, others begin
                    await trio.lowlevel.checkpoint()
    assert [together[i] for i in range(4)] == alone


async def test_what_is_too_long_is_cut_and_counted_or_refused_with_the_numbers(model_path: Path) -> None:
    async with engine_of(model_path, n_ctx=32) as engine:
        _, _, done = await collect(engine, Generate(PROMPT, GREEDY, n_predict=2))
        assert (done.prompt_tokens, done.dropped_tokens) == (32, len(PROMPT) - 32)
        with pytest.raises(RequestError, match="50 tokens, 32 fit"):
            await collect(engine, Generate(PROMPT, GREEDY, truncate=False))


def test_the_longest_prompt_fits_into_a_batch_whatever_was_asked_for(model_path: Path) -> None:
    model = open_model(model_path, n_ctx=50, n_batch=8, n_parallel=1)
    assert model.n_batch == 65  # whole pages, and the decoder's first input
    assert model.n_pages == 4  # a prompt and an answer, each as long as the context
    model.close()


def test_penalties_look_at_the_answer_alone() -> None:
    params = SamplingParams(repeat_last_n=4, repeat_penalty=1.5)
    history = [1, 2, 3, 4, 5]
    assert Draw(params, history, 5, -1, n_unseen=3).seen == [4, 5]
    assert Draw(params, history, 5, -1, (9,), n_unseen=3).seen == [4, 5, 9]
    assert Draw(params, history, 5, -1).seen == [2, 3, 4, 5]
