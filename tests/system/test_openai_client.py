"""The unmodified openai client against the real runtime with its built-in model."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import httpx
import ollama
import openai
import pytest
from openai.types.chat import ChatCompletionMessageParam

from actors.sync_client import SyncClient
from tests.system.conftest import MODEL, Runtime
from tests.system.sim_runtime import SETTLED_S, SimRuntime, simulated

QUESTION: list[ChatCompletionMessageParam] = [{"role": "user", "content": "What are you?"}]


@pytest.fixture
def client(runtime: Runtime, monkeypatch: pytest.MonkeyPatch) -> Iterator[openai.OpenAI]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with openai.OpenAI(base_url=f"{runtime.url}/v1", api_key="any", max_retries=0) as made:
        yield made


def test_models_are_listed_and_found(client: openai.OpenAI) -> None:
    assert f"{MODEL}:latest" in {model.id for model in client.models.list()}
    assert client.models.retrieve(MODEL).id == MODEL


def test_a_chat_completion_answers_as_the_native_api_does(runtime: Runtime, client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(model=MODEL, messages=QUESTION, temperature=0)
    choice = answer.choices[0]
    assert choice.message.content == runtime.chat()["message"]["content"]
    assert choice.finish_reason == "stop"
    assert answer.usage is not None
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens


def test_a_next_turn_shows_how_much_of_it_was_computed_before(client: openai.OpenAI) -> None:
    asked: list[ChatCompletionMessageParam] = [
        {"role": "user", "content": "What are you, and what does your scheduler do with memory? " * 4}
    ]
    first = client.chat.completions.create(model=MODEL, messages=asked, max_tokens=4)
    turn: list[ChatCompletionMessageParam] = [
        *asked,
        {"role": "assistant", "content": first.choices[0].message.content},
        {"role": "user", "content": "And why?"},
    ]
    second = client.chat.completions.create(model=MODEL, messages=turn, max_tokens=4)
    assert first.usage is not None
    assert second.usage is not None
    assert second.usage.prompt_tokens_details is not None
    n_cached = second.usage.prompt_tokens_details.cached_tokens
    assert n_cached is not None
    assert first.usage.prompt_tokens - 32 <= n_cached < second.usage.prompt_tokens


def test_a_streamed_chat_says_the_same_in_parts_with_usage(client: openai.OpenAI) -> None:
    whole = client.chat.completions.create(model=MODEL, messages=QUESTION, temperature=0)
    parts = list(
        client.chat.completions.create(
            model=MODEL, messages=QUESTION, temperature=0, stream=True, stream_options={"include_usage": True}
        )
    )
    text = "".join(part.choices[0].delta.content or "" for part in parts if part.choices)
    assert text == whole.choices[0].message.content
    assert parts[-1].usage == whole.usage
    assert parts[-2].choices[0].finish_reason == "stop"


def test_limits_and_stops_are_told(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(
        model=MODEL, messages=QUESTION, temperature=0, max_completion_tokens=3, stop=["zzz"]
    )
    assert answer.choices[0].finish_reason == "length"
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 3


def test_completions_come_whole_and_streamed(client: openai.OpenAI) -> None:
    whole = client.completions.create(model=MODEL, prompt="What are you?", temperature=0)
    parts = client.completions.create(model=MODEL, prompt="What are you?", temperature=0, stream=True)
    assert whole.choices[0].text
    assert "".join(part.choices[0].text for part in parts) == whole.choices[0].text


def test_logprobs_are_given(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(
        model=MODEL, messages=QUESTION, temperature=0, logprobs=True, top_logprobs=3, max_tokens=4
    )
    logprobs = answer.choices[0].logprobs
    assert logprobs is not None
    assert logprobs.content is not None
    assert [len(entry.top_logprobs) for entry in logprobs.content] == [3] * 4


def test_a_seed_gives_the_same_answer_again(client: openai.OpenAI) -> None:
    def say(seed: int) -> str | None:
        answer = client.chat.completions.create(
            model=MODEL, messages=QUESTION, temperature=2.0, seed=seed, max_tokens=24
        )
        return answer.choices[0].message.content

    assert say(1) == say(1)


def test_errors_are_the_clients_own_exceptions(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError, match="not found"):
        client.chat.completions.create(model="no-such-model", messages=QUESTION)
    with pytest.raises(openai.BadRequestError, match="n is not supported"):
        client.chat.completions.create(model=MODEL, messages=QUESTION, n=2)


def test_clients_that_wait_for_a_load_get_the_answer_and_a_look_at_the_stream_says_why() -> None:
    """Comments are for people: OpenAI's client passes over them, and Ollama's is sent none."""
    with simulated({}, OLLAMA_MAX_LOADED_MODELS="1") as sim, ThreadPoolExecutor(3) as threads:
        url = sim.runtime.url
        sim.add_model("m", 1)
        sim.add_model("n", 2)
        asked = {"model": "n", "prompt": "ab", "stream": True}
        with SyncClient(sim.runtime.run_dir) as client, client.lease("m"):
            openai_text = threads.submit(say_openai, url)
            ollama_text = threads.submit(say_ollama, url)
            sim.runtime.wait_until(
                lambda: waiting(sim) == [("n:latest", "waiting for users of m:latest to finish", 2)],
                SETTLED_S,
            )
            # who looks comes after the clients, and so does its comment
            with httpx.stream("POST", f"{url}/v1/completions", json=asked, timeout=60) as seen:
                assert next(seen.iter_lines()) == ": waiting for users of m:latest to finish"
        assert openai_text.result(60) == ollama_text.result(60) != ""


def waiting(sim: SimRuntime) -> list[tuple[str, str, int]]:
    """What /api/ps says of those who wait."""
    shown = sim.runtime.http.get("/api/ps").json().get("waiting", [])
    return [(each["name"], each["status"], each["requests"]) for each in shown]


def say_openai(url: str) -> str:
    with openai.OpenAI(base_url=f"{url}/v1", api_key="any", max_retries=0) as client:
        parts = client.completions.create(
            model="n", prompt="ab", stream=True, max_tokens=8, temperature=0, top_p=1
        )
        return "".join(part.choices[0].text for part in parts)


def say_ollama(url: str) -> str:
    options = {"num_predict": 8, "temperature": 0}
    with ollama.Client(url) as client:
        return "".join(part.response for part in client.generate("n", "ab", stream=True, options=options))
