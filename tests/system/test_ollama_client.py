"""The unmodified ollama client against the real runtime with its built-in model."""

import threading
from collections.abc import Iterator
from typing import Any

import ollama
import pytest

from tests.system.conftest import MODEL, QUESTION, Runtime

GREEDY = {"temperature": 0}


@pytest.fixture
def client(runtime: Runtime) -> Iterator[ollama.Client]:
    with ollama.Client(host=runtime.url, trust_env=False) as made:
        yield made


def test_the_built_in_model_is_listed_with_its_details(client: ollama.Client) -> None:
    (model,) = client.list().models
    assert model.model == f"{MODEL}:latest"
    assert model.details is not None
    assert model.details.format == "gguf"
    assert model.details.parameter_size
    assert len(model.digest or "") == 64


def test_show_tells_what_the_model_is(client: ollama.Client) -> None:
    shown = client.show(MODEL)
    assert shown.modelinfo is not None
    assert shown.modelinfo["general.parameter_count"] > 0
    assert shown.capabilities is not None
    assert "completion" in shown.capabilities
    assert shown.template


def test_chat_answers_and_counts(client: ollama.Client) -> None:
    answer = client.chat(MODEL, QUESTION, options=GREEDY)
    assert "runtime" in str(answer.message.content).lower()
    assert (answer.message.role, answer.done, answer.done_reason) == ("assistant", True, "stop")
    assert answer.prompt_eval_count is not None
    assert answer.prompt_eval_count > 5
    assert answer.eval_count is not None
    assert answer.eval_count > 3
    assert answer.total_duration is not None
    assert answer.eval_duration is not None
    assert 0 < answer.eval_duration <= answer.total_duration


def test_a_streamed_chat_says_the_same_in_parts(client: ollama.Client) -> None:
    whole = client.chat(MODEL, QUESTION, options=GREEDY)
    *parts, last = client.chat(MODEL, QUESTION, options=GREEDY, stream=True)
    assert "".join(str(part.message.content) for part in parts) == whole.message.content
    assert len(parts) > 3
    assert not any(part.done for part in parts)
    assert (last.done, last.eval_count) == (True, whole.eval_count)


def test_generate_streams_and_its_context_goes_on(client: ollama.Client) -> None:
    *_, last = client.generate(MODEL, "What are you?", options=GREEDY, stream=True)
    assert last.context
    following = client.generate(
        MODEL, "What can you do?", context=last.context, options={"num_predict": 4, **GREEDY}
    )
    assert following.context is not None
    assert list(following.context[: len(last.context)]) == list(last.context)


def test_a_seed_gives_the_same_answer_again_and_another_seed_another(client: ollama.Client) -> None:
    def say(seed: int) -> str:
        options = {"seed": seed, "temperature": 3.0, "top_k": 0, "top_p": 1.0, "num_predict": 24}
        return client.generate(MODEL, "a story", raw=True, options=options).response or ""

    assert say(1) == say(1) != say(2)


def test_num_predict_ends_with_length_and_a_stop_string_with_stop(client: ollama.Client) -> None:
    cut = client.chat(MODEL, QUESTION, options={"num_predict": 3, **GREEDY})
    assert (cut.done_reason, cut.eval_count) == ("length", 3)
    whole = str(client.chat(MODEL, QUESTION, options=GREEDY).message.content)
    word = whole.split()[2]
    stopped = client.chat(MODEL, QUESTION, options={"stop": [word], **GREEDY})
    assert stopped.done_reason == "stop"
    assert stopped.message.content == whole[: whole.index(word)]


@pytest.mark.parametrize(
    "option",
    [
        {"top_k": 1, "temperature": 1.0},
        {"top_p": 1e-6, "temperature": 1.0},
        {"min_p": 1.0, "temperature": 1.0},
    ],
)
def test_narrow_sampling_is_greedy(client: ollama.Client, option: dict[str, Any]) -> None:
    greedy = client.chat(MODEL, QUESTION, options=GREEDY).message.content
    assert client.chat(MODEL, QUESTION, options=option).message.content == greedy


@pytest.mark.parametrize("penalty", ["repeat_penalty", "presence_penalty", "frequency_penalty"])
def test_penalties_change_the_answer(client: ollama.Client, penalty: str) -> None:
    greedy = client.chat(MODEL, QUESTION, options=GREEDY).message.content
    # far beyond what anybody would ask for, since the built-in model is very sure of its words
    options = {penalty: 30.0, "repeat_last_n": 256, "num_predict": 40, **GREEDY}
    strong = client.chat(MODEL, QUESTION, options=options)
    assert strong.message.content != greedy


def test_num_ctx_is_a_limit_of_the_request_and_no_reason_to_load_anew(
    runtime: Runtime, client: ollama.Client
) -> None:
    def ask(n_ctx: int) -> tuple[int | None, set[int]]:
        """The context that is loaded, and the runners that hold it."""
        options = {"num_ctx": n_ctx, "num_keep": 2, **GREEDY}
        client.chat(MODEL, QUESTION, options=options, keep_alive="7m")
        (loaded,) = client.ps().models
        assert loaded.model == f"{MODEL}:latest"
        assert (loaded.size or 0) > 0
        assert loaded.size_vram is not None
        assert loaded.expires_at is not None
        return loaded.context_length, set(runtime.runner_pids())

    client.generate(MODEL, "", keep_alive=0)
    runtime.wait_until(lambda: client.ps().models == [], 10)
    loaded = ask(256)
    assert loaded[0] == 1024  # as long as the model was trained for
    assert ask(128) == ask(300) == loaded


def test_keep_alive_0_unloads(runtime: Runtime, client: ollama.Client) -> None:
    assert client.generate(MODEL, "").done_reason == "load"
    assert len(client.ps().models) == 1
    assert client.generate(MODEL, "", keep_alive=0).done_reason == "unload"
    runtime.wait_until(lambda: client.ps().models == [], 10)


def test_a_prompt_over_the_context_is_cut_or_refused(client: ollama.Client) -> None:
    options = {"num_ctx": 64, "num_predict": 2, **GREEDY}
    answer = client.generate(MODEL, "word " * 500, raw=True, options=options)
    assert answer.prompt_eval_count == 64
    with pytest.raises(ollama.ResponseError) as caught:
        client._request(
            ollama.GenerateResponse,
            "POST",
            "/api/generate",
            json={
                "model": MODEL, "prompt": "word " * 500, "raw": True, "options": options,
                "truncate": False, "stream": False,
            },
        )  # fmt: skip
    assert caught.value.status_code == 400


def test_logprobs_are_given_and_likely(client: ollama.Client) -> None:
    answer = client.chat(MODEL, QUESTION, options={"num_predict": 5, **GREEDY}, logprobs=True, top_logprobs=2)
    assert answer.logprobs is not None
    assert len(answer.logprobs) == 5
    for entry in answer.logprobs:
        assert entry.top_logprobs is not None
        assert entry.logprob == pytest.approx(entry.top_logprobs[0].logprob)


def test_what_is_not_there_is_404(client: ollama.Client) -> None:
    with pytest.raises(ollama.ResponseError, match="not found") as caught:
        client.chat("no-such-model", QUESTION)
    assert caught.value.status_code == 404


def test_copies_are_served_and_deleted(client: ollama.Client) -> None:
    client.copy(MODEL, "twin")
    assert f"{MODEL}:latest" in {model.model for model in client.list().models}
    assert "twin:latest" in {model.model for model in client.list().models}
    assert client.chat("twin", QUESTION, options={"num_predict": 2}).done
    client.delete("twin")
    assert "twin:latest" not in {model.model for model in client.list().models}


def test_a_model_is_created_from_another_with_parameters_and_system(client: ollama.Client) -> None:
    statuses = [
        part.status
        for part in client.create(
            "short",
            from_=MODEL,
            parameters={"num_predict": 3, "temperature": 0},
            system="Be brief.",
            stream=True,
        )
    ]
    assert statuses[-1] == "success"
    assert client.chat("short", QUESTION).eval_count == 3
    client.delete("short")


def test_eight_clients_at_once_get_the_answer_that_one_gets(client: ollama.Client) -> None:
    alone = client.chat(MODEL, QUESTION, options=GREEDY).message.content
    answers: list[str | None] = []
    threads = [
        threading.Thread(
            target=lambda: answers.append(client.chat(MODEL, QUESTION, options=GREEDY).message.content)
        )
        for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert answers == [alone] * 8
