"""Where an answer ends, or goes on: stop strings, limits, loops, a context that is full."""

from pathlib import Path

import msgspec
import pytest

from actors.errors import RequestError
from actors.protocol import DoneReason, Generate, Sampling
from actors.runner.engine import Engine
from actors.runner.repetition import LOOK_EVERY
from tests.actors.engine_rig import GREEDY, PROMPT, collect, engine_of, write_model


@pytest.fixture(scope="module")
def model_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("ends") / "tiny.gguf")


async def test_a_stop_string_ends_the_answer_and_does_not_leak(model_path: Path) -> None:
    async with engine_of(model_path) as engine:
        _, text, _ = await collect(engine, Generate(PROMPT, GREEDY, n_predict=20))
        stop = text[3:5]
        _, cut, done = await collect(engine, Generate(PROMPT, GREEDY, n_predict=20, stop=(stop,)))
    assert cut == text[: text.index(stop)]
    assert (done.reason, done.stop_string) == (DoneReason.STOP_STRING, stop)


async def test_a_stop_string_completed_by_the_last_allowed_token_does_not_leak(model_path: Path) -> None:
    async with engine_of(model_path) as engine:
        _, text, _ = await collect(engine, Generate(PROMPT, GREEDY, n_predict=6))
        _, cut, done = await collect(engine, Generate(PROMPT, GREEDY, n_predict=6, stop=(text[-2:],)))
    assert text[-2:] not in cut
    assert done.reason is DoneReason.STOP_STRING


async def test_what_ends_a_text_is_a_token_like_any_other_where_it_is_ignored(model_path: Path) -> None:
    async with engine_of(model_path, n_ctx=512) as engine:
        request, tokens, text = await said_to_the_end(engine)
        further = msgspec.structs.replace(request, ignore_eos=True)
        more, longer, done = await collect(engine, further)
        resumed = msgspec.structs.replace(further, resume=tuple(more[: len(tokens) + 1]))
        rest, _, _ = await collect(engine, resumed)
    assert (done.reason, len(more)) == (DoneReason.LIMIT, 200)
    assert (more[: len(tokens)], longer[: len(text)]) == (tokens, text)
    assert more[len(tokens)] not in tokens
    assert rest == more[len(tokens) + 1 :]


async def said_to_the_end(engine: Engine) -> tuple[Generate, list[int], str]:
    """A request whose answer the model ends before 200 tokens, and the answer."""
    for seed in range(50):
        sampling = Sampling(temperature=5.0, top_k=0, top_p=1.0, seed=seed)
        request = Generate(PROMPT, sampling, n_predict=200)
        tokens, text, done = await collect(engine, request)
        if done.reason is DoneReason.EOS:
            return request, tokens, text
    raise AssertionError("no answer came to its end")


@pytest.mark.parametrize(
    ("request_", "said"),
    [
        (Generate("text", GREEDY, groups=((0, 2),)), "groups are of token ids, and the prompt is text"),
        (
            Generate(PROMPT, GREEDY, groups=((30, 11),)),
            "a group of 11 inputs from 30 on goes beyond the prompt's 40",
        ),
        (
            Generate(PROMPT, GREEDY, groups=((0, 9), (8, 9))),
            "a group of 17 inputs does not fit into a batch of 16",
        ),
    ],
)
async def test_groups_that_cannot_be_are_refused(model_path: Path, request_: Generate, said: str) -> None:
    async with engine_of(model_path, n_batch=16) as engine:
        with pytest.raises(RequestError, match=said):
            await collect(engine, request_)


async def test_a_group_that_the_context_would_cut_is_dropped_whole(model_path: Path) -> None:
    async with engine_of(model_path, n_ctx=32, n_parallel=1) as engine:
        grouped = Generate(PROMPT, GREEDY, n_predict=20, n_keep=4, groups=((8, 10),))
        _, _, done = await collect(engine, grouped)
        # 8 of 40 do not fit: the cut would lie at 12
        assert (done.prompt_tokens, done.dropped_tokens) == (40 - 14, 14)
        assert done.context[:4] == PROMPT[:4]
        kept = (*PROMPT[:4], *PROMPT[18:])
        same = await collect(engine, Generate(kept, GREEDY, n_predict=20, n_keep=4))
        assert same[2].context == done.context


async def test_a_full_context_is_shifted_and_the_answer_goes_on(model_path: Path) -> None:
    async with engine_of(model_path, n_ctx=48, n_parallel=1) as engine:
        tokens, _, done = await collect(engine, Generate(PROMPT, GREEDY, n_predict=40, n_keep=4))
    assert (done.reason, len(tokens)) == (DoneReason.LIMIT, 40)
    assert done.context[:4] == PROMPT[:4]


async def test_a_full_context_without_shift_ends_the_answer(model_path: Path) -> None:
    async with engine_of(model_path, n_ctx=48, n_parallel=1) as engine:
        tokens, _, done = await collect(engine, Generate(PROMPT, GREEDY, n_predict=40, shift=False))
    assert done.reason is DoneReason.CONTEXT
    assert len(PROMPT) + len(tokens) == 48 + 1


async def test_a_prompt_over_the_context_is_cut_and_says_so(model_path: Path) -> None:
    async with engine_of(model_path, n_ctx=32, n_parallel=1) as engine:
        _, _, done = await collect(engine, Generate(PROMPT, GREEDY, n_predict=1, n_keep=4))
    assert (done.prompt_tokens, done.dropped_tokens) == (32, 8)
    assert done.context[:4] == PROMPT[:4]


async def test_a_prompt_over_the_context_is_refused_with_the_numbers_when_it_may_not_be_cut(
    model_path: Path,
) -> None:
    async with engine_of(model_path, n_ctx=32, n_parallel=1) as engine:
        with pytest.raises(RequestError, match="40 tokens, 32 fit"):
            await collect(engine, Generate(PROMPT, GREEDY, truncate=False))


@pytest.mark.parametrize("n_delivered", [1, 8, 9, 10, 33, 70, 99])
async def test_a_stream_resumed_after_context_shifts_continues_as_if_nothing_had_happened(
    model_path: Path, n_delivered: int
) -> None:
    sampling = Sampling(temperature=1.5, top_k=0, top_p=1.0, seed=7, repeat_last_n=-1, repeat_penalty=1.3)
    request = Generate(PROMPT, sampling, n_predict=100, n_keep=4)
    async with engine_of(model_path, n_ctx=48, n_parallel=1) as engine:
        tokens, _, whole = await collect(engine, request)
    assert len(tokens) == 100
    async with engine_of(model_path, n_ctx=48, n_parallel=1) as other:
        resumed = msgspec.structs.replace(request, resume=tuple(tokens[:n_delivered]))
        rest, _, done = await collect(other, resumed)
    assert (tokens[:n_delivered] + rest, done.context) == (tokens, whole.context)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"n_predict": 4}, DoneReason.LIMIT),
        ({"n_predict": 2}, DoneReason.LIMIT),
        ({"stop": ("d",)}, DoneReason.STOP_STRING),
        ({"prompt": PROMPT + PROMPT[:5], "shift": False}, DoneReason.CONTEXT),
    ],
)
async def test_a_stream_whose_last_words_alone_were_lost_ends_without_drawing(
    model_path: Path, changes: dict[str, object], reason: DoneReason
) -> None:
    letters = (97, 98, 99, 100)  # "abcd" in the tiny vocabulary
    request = msgspec.structs.replace(Generate(PROMPT, GREEDY, resume=letters), **changes)
    async with engine_of(model_path, n_ctx=48) as engine:
        tokens, text, done = await collect(engine, request)
        assert engine.n_batches == 0
    assert (tokens, text, done.reason, done.predicted_tokens) == ([], "", reason, 0)


async def test_a_loop_is_ended_by_a_reason_of_its_own_also_by_a_second_runner(model_path: Path) -> None:
    again = Sampling(temperature=0, frequency_penalty=-2.0, repeat_last_n=-1)
    request = Generate(PROMPT[:4], again, n_predict=200, max_repetition=50)
    async with engine_of(model_path, n_ctx=256) as engine:
        endless, _, done = await collect(engine, msgspec.structs.replace(request, max_repetition=0))
        assert (done.reason, len(endless)) == (DoneReason.LIMIT, 200)
        tokens, _, done = await collect(engine, request)
        assert (done.reason, tokens) == (DoneReason.REPETITION, endless[: len(tokens)])
        assert 50 <= len(tokens) < 50 + 2 * LOOK_EVERY
        for n_delivered in (len(tokens) - 1, len(tokens)):
            rest, _, done = await collect(
                engine, msgspec.structs.replace(request, resume=tuple(tokens[:n_delivered]))
            )
            assert (done.reason, rest) == (DoneReason.REPETITION, tokens[n_delivered:])


async def test_an_unlimited_or_absurd_length_ends_after_ten_contexts(model_path: Path) -> None:
    async with engine_of(model_path, n_ctx=4, n_parallel=1) as engine:
        for n_predict in (-1, 2**62):
            async with engine.open(Generate((1, 2), GREEDY, n_predict=n_predict)) as sequence:
                assert sequence.n_limit == 40


@pytest.mark.parametrize("n_keep", [-1, 0, 1, 3, 4, 5, 2**62])
@pytest.mark.parametrize("n_prompt", [1, 3, 4, 5, 9])
async def test_any_prompt_and_n_keep_shift_for_long_without_losing_a_page(
    model_path: Path, n_prompt: int, n_keep: int
) -> None:
    async with engine_of(model_path, n_ctx=4, n_parallel=1, n_batch=1) as engine:
        request = Generate(PROMPT[:n_prompt], GREEDY, n_predict=12, n_keep=n_keep)
        tokens, _, done = await collect(engine, request)
        gauges = engine.gauges()
    assert len(tokens) == 12 or done.reason is DoneReason.EOS
    assert (done.prompt_tokens, done.dropped_tokens) == (min(4, n_prompt), max(0, n_prompt - 4))
    assert (gauges["sequences_active"], gauges["sequences_queued"], gauges["cache_pages_held"]) == (0, 0, 0)


async def test_a_context_of_one_token_answers(model_path: Path) -> None:
    async with engine_of(model_path, n_ctx=1, n_parallel=4) as engine:
        tokens, _, _ = await collect(engine, Generate((1, 2, 3), GREEDY, n_predict=5))
    assert len(tokens) == 5
