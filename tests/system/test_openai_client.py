"""The unmodified openai client against the real runtime with its built-in model."""

from collections.abc import Iterator

import openai
import pytest
from openai.types.chat import ChatCompletionMessageParam

from tests.system.conftest import MODEL, Runtime

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
