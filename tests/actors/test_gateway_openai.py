"""/v1 over real sockets, field by field, and with the unmodified openai client's expectations in mind."""

import json
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest
import trio

from actors.errors import CapacityError, QueueFull, RequestError, RuntimeFault
from actors.link import Replies
from actors.protocol import DoneReason, LoadProgress, Queued
from tests.actors.gateway_rig import INFO, THINK_TEMPLATE, Rig, gateway_rig

CHAT: dict[str, Any] = {"model": "tiny", "messages": [{"role": "user", "content": "hi"}]}
TEXT: dict[str, Any] = {"model": "tiny", "prompt": "hi"}
CHAT_PATH = "/v1/chat/completions"
BAD = "invalid_request_error"
TEXT_PATH = "/v1/completions"


@pytest.fixture
async def rig(run_dir: Path, tmp_path: Path) -> AsyncGenerator[Rig, None]:
    async with gateway_rig(run_dir, tmp_path) as made:
        await made.add_model()
        yield made


def events(response: httpx.Response) -> list[dict[str, Any]]:
    assert response.status_code == 200, response.text
    assert response.headers["content-type"].startswith("text/event-stream")
    *parts, done, nothing = response.text.split("\n\n")
    assert (done, nothing) == ("data: [DONE]", "")
    assert all(part.startswith("data: ") for part in parts)
    return [json.loads(part.removeprefix("data: ")) for part in parts]


def error(response: httpx.Response) -> tuple[int, str, str]:
    body = response.json()["error"]
    assert set(body) == {"message", "type", "param", "code"}
    assert (body["param"], body["code"]) == (None, None)
    return response.status_code, body["type"], body["message"]


USAGE = {
    "prompt_tokens": 7,
    "completion_tokens": 4,
    "total_tokens": 11,
    "prompt_tokens_details": {"cached_tokens": 2},
}


async def test_a_chat_completion_has_every_field(rig: Rig) -> None:
    answer = (await rig.post(CHAT_PATH, CHAT)).json()
    assert answer.pop("id").startswith("chatcmpl-")
    assert answer.pop("created") > 1_700_000_000
    assert answer == {
        "object": "chat.completion",
        "model": "tiny",
        "system_fingerprint": "fp_ollama",
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": "Hello, world!"},
                "finish_reason": "stop",
            }
        ],
        "usage": USAGE,
    }


async def test_a_chat_stream_has_the_role_once_and_its_own_last_chunk(rig: Rig) -> None:
    parts = events(await rig.post(CHAT_PATH, {**CHAT, "stream": True}))
    assert len({(part["id"], part["created"]) for part in parts}) == 1
    assert all(part["object"] == "chat.completion.chunk" and "usage" not in part for part in parts)
    assert all(part["system_fingerprint"] == "fp_ollama" and part["model"] == "tiny" for part in parts)
    assert [part["choices"][0] for part in parts] == [
        {"index": 0, "delta": {"role": "assistant", "content": "Hello"}, "finish_reason": None},
        {"index": 0, "delta": {"content": ", "}, "finish_reason": None},
        {"index": 0, "delta": {"content": "world"}, "finish_reason": None},
        {"index": 0, "delta": {"content": "!"}, "finish_reason": None},
        {"index": 0, "delta": {}, "finish_reason": "stop"},
    ]


@pytest.mark.parametrize(("path", "body"), [(CHAT_PATH, CHAT), (TEXT_PATH, TEXT)])
async def test_usage_comes_in_a_chunk_of_its_own_when_asked_for(
    rig: Rig, path: str, body: dict[str, Any]
) -> None:
    asked = {**body, "stream": True, "stream_options": {"include_usage": True}}
    last = events(await rig.post(path, asked))[-1]
    assert last["choices"] == []
    assert last["usage"] == USAGE


async def test_a_completion_has_every_field(rig: Rig) -> None:
    answer = (await rig.post(TEXT_PATH, TEXT)).json()
    assert answer.pop("id").startswith("cmpl-")
    assert answer.pop("created") > 1_700_000_000
    assert answer == {
        "object": "text_completion",
        "model": "tiny",
        "system_fingerprint": "fp_ollama",
        "choices": [{"text": "Hello, world!", "index": 0, "finish_reason": "stop"}],
        "usage": USAGE,
    }
    assert rig.runner.requests[0].prompt == "[user]hi[assistant]"


async def test_a_completion_streams(rig: Rig) -> None:
    parts = events(await rig.post(TEXT_PATH, {**TEXT, "stream": True}))
    assert [part["choices"][0]["text"] for part in parts] == ["Hello", ", ", "world", "!", ""]
    assert [part["choices"][0]["finish_reason"] for part in parts] == [None] * 4 + ["stop"]


async def test_a_prompt_of_token_ids_is_taken_as_it_is(rig: Rig) -> None:
    await rig.post(TEXT_PATH, {**TEXT, "prompt": [5, 6, 7]})
    assert rig.runner.requests[0].prompt == (5, 6, 7)


async def test_openais_parameters_reach_the_runner(rig: Rig) -> None:
    body = {
        **CHAT, "temperature": 0.5, "top_p": 0.25, "frequency_penalty": 0.125, "presence_penalty": 0.75,
        "seed": 9, "stop": "END", "max_tokens": 9, "max_completion_tokens": 3, "top_k": 7, "min_p": 0.0625,
    }  # fmt: skip
    await rig.post(CHAT_PATH, body)
    request = rig.runner.requests[0]
    sampling = request.sampling
    assert (sampling.temperature, sampling.top_p, sampling.top_k, sampling.min_p) == (0.5, 0.25, 7, 0.0625)
    assert (sampling.frequency_penalty, sampling.presence_penalty, sampling.seed) == (0.125, 0.75, 9)
    assert (request.n_predict, request.stop) == (3, ("END",))


async def test_openais_defaults_hold_unless_the_model_says_otherwise(rig: Rig) -> None:
    await rig.add_model("tuned", parameters={"temperature": 0.25})
    await rig.post(CHAT_PATH, CHAT)
    await rig.post(CHAT_PATH, {**CHAT, "model": "tuned"})
    found = [(request.sampling.temperature, request.sampling.top_p) for request in rig.runner.requests]
    assert found == [(1.0, 1.0), (0.25, 1.0)]


async def test_the_limit_is_told_as_length(rig: Rig) -> None:
    rig.runner.reason = DoneReason.LIMIT
    answer = (await rig.post(CHAT_PATH, {**CHAT, "max_tokens": 2})).json()
    assert answer["choices"][0]["finish_reason"] == "length"


async def test_content_may_come_in_text_parts_and_the_developer_is_the_system(rig: Rig) -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    messages = [{"role": "developer", "content": "d"}, {"role": "user", "content": parts}]
    await rig.post(CHAT_PATH, {**CHAT, "messages": messages})
    assert rig.runner.requests[0].prompt == "[system]d[user]a\nb[assistant]"


async def test_reasoning_and_answer_come_in_separate_chunks(rig: Rig) -> None:
    await rig.add_model("thinker", msgspec.structs.replace(INFO, chat_template=THINK_TEMPLATE))
    rig.runner.words = ("hm</think>4",)
    parts = events(await rig.post(CHAT_PATH, {**CHAT, "model": "thinker", "stream": True}))
    assert [part["choices"][0]["delta"] for part in parts] == [
        {"role": "assistant", "content": "", "reasoning": "hm"},
        {"content": "4"},
        {},
    ]


async def test_reasoning_effort_none_turns_thinking_off(rig: Rig) -> None:
    await rig.add_model("thinker", msgspec.structs.replace(INFO, chat_template=THINK_TEMPLATE))
    await rig.post(CHAT_PATH, {**CHAT, "model": "thinker", "reasoning_effort": "none"})
    assert not str(rig.runner.requests[0].prompt).endswith("<think>")


async def test_chat_logprobs_are_listed_by_token(rig: Rig) -> None:
    answer = (await rig.post(CHAT_PATH, {**CHAT, "logprobs": True})).json()
    content = answer["choices"][0]["logprobs"]["content"]
    assert content[0] == {"token": "Hello", "logprob": -0.5, "bytes": list(b"Hello"), "top_logprobs": []}
    assert len(content) == 4


async def test_completion_logprobs_are_parallel_lists(rig: Rig) -> None:
    answer = (await rig.post(TEXT_PATH, {**TEXT, "logprobs": 1})).json()
    assert answer["choices"][0]["logprobs"] == {
        "tokens": ["Hello", ", ", "world", "!"],
        "token_logprobs": [-0.5] * 4,
        "top_logprobs": [{"t0": -1.0}] * 4,
        "text_offset": [0, 5, 7, 12],
    }


async def test_models_are_listed_and_found_by_name(rig: Rig) -> None:
    listed = (await rig.client.get("/v1/models")).json()
    assert listed["object"] == "list"
    tiny = next(model for model in listed["data"] if model["id"] == "tiny:latest")
    assert set(tiny) == {"id", "object", "created", "owned_by"}
    assert (tiny["object"], tiny["owned_by"]) == ("model", "library")
    found = (await rig.client.get("/v1/models/tiny")).json()
    assert found == {**tiny, "id": "tiny"}


@pytest.mark.parametrize(
    ("path", "change", "status", "kind", "text"),
    [
        (CHAT_PATH, {"model": "no"}, 404, "not_found_error", "model 'no' not found"),
        (CHAT_PATH, {"model": ""}, 400, BAD, "model is required"),
        (CHAT_PATH, {"messages": []}, 400, BAD, "[] is too short - 'messages'"),
        (CHAT_PATH, {"n": 2}, 400, BAD, "n is not supported here"),
        (CHAT_PATH, {"logit_bias": {"5": 1}}, 400, BAD, "logit_bias is not supported here"),
        (CHAT_PATH, {"response_format": {"type": "json_object"}}, 400, BAD,
         "structured output (response_format) is not supported yet"),
        (CHAT_PATH, {"tools": [{"type": "function", "function": {"name": "f"}}]}, 400, BAD,
         "registry.ollama.ai/library/tiny:latest does not support tools"),
        (CHAT_PATH, {"max_tokens": "x"}, 400, BAD,
         "json: cannot unmarshal string into Go struct field ChatCompletionRequest.max_tokens of type int"),
        (CHAT_PATH, {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, 400,
         BAD, "this model does not support images"),
        (CHAT_PATH, {"reasoning_effort": "high"}, 400, BAD,
         '"tiny" does not support thinking'),
        (TEXT_PATH, {"best_of": 2}, 400, BAD, "best_of is not supported here"),
        (TEXT_PATH, {"echo": True}, 400, BAD, "echo is not supported here"),
        (TEXT_PATH, {"prompt": ["a", "b"]}, 400, BAD,
         "prompt must be one string or one array of token ids"),
        (TEXT_PATH, {"model": ""}, 404, "not_found_error", "model '' not found"),
    ],
)  # fmt: skip
async def test_what_cannot_be_done_is_refused_by_name(
    rig: Rig, path: str, change: dict[str, Any], status: int, kind: str, text: str
) -> None:
    body = {**(CHAT if path == CHAT_PATH else TEXT), **change}
    assert error(await rig.post(path, body)) == (status, kind, text)


async def test_an_empty_body_and_a_full_queue_have_openais_shape(rig: Rig) -> None:
    assert error(await rig.client.post(CHAT_PATH, content=b"")) == (400, BAD, "EOF")
    rig.scheduler.fault = QueueFull("full")
    assert error(await rig.post(CHAT_PATH, CHAT))[:2] == (503, "api_error")


async def test_an_error_in_mid_stream_is_an_event_of_its_own_and_the_end(rig: Rig) -> None:
    async def fail(n: int) -> None:
        if n == 1:
            raise RequestError("no more")

    rig.runner.before_chunk = fail
    response = await rig.post(CHAT_PATH, {**CHAT, "stream": True})
    first, last, nothing = response.text.split("\n\n")
    assert json.loads(first.removeprefix("data: "))["choices"][0]["delta"]["content"] == "Hello"
    assert json.loads(last.removeprefix("data: "))["error"]["message"] == "no more"
    assert nothing == ""


class Slow:
    """A load that tells its news one by one, and ends when a client has heard all of it."""

    def __init__(self, *news: Queued | LoadProgress) -> None:
        self._news = news
        self._heard = trio.Semaphore(0)
        self.lines: list[str] = []

    async def load(self, replies: Replies) -> None:
        for item in self._news:
            await replies.send(item)
            await self._heard.acquire()

    async def ask(self, rig: Rig, path: str, body: dict[str, Any]) -> int:
        """The status; every line goes to `lines` as it comes."""
        async with rig.client.stream("POST", path, json={**body, "stream": True}) as response:
            async for line in response.aiter_lines():
                self.lines.append(line)
                if line.startswith(":"):
                    self._heard.release()
            return response.status_code


@pytest.mark.parametrize(("path", "body"), [(CHAT_PATH, CHAT), (TEXT_PATH, TEXT)])
async def test_a_stream_says_in_comments_what_it_waits_for(rig: Rig, path: str, body: dict[str, Any]) -> None:
    slow = Slow(Queued(2, "evicting a\nb"), LoadProgress("reading", 37, 100))
    rig.scheduler.before_lease = slow.load
    assert await slow.ask(rig, path, body) == 200
    assert slow.lines[:4] == [": evicting a b, 2 before it", "", ": reading 37 %", ""]
    assert all(line.startswith("data: ") for line in slow.lines[4::2])
    assert not any(slow.lines[5::2])
    assert slow.lines[-2:] == ["data: [DONE]", ""]


async def test_a_load_that_fails_after_comments_is_told_in_the_stream(rig: Rig) -> None:
    slow = Slow(LoadProgress("reading", 37, 100))
    rig.scheduler.before_lease, rig.scheduler.fault = slow.load, CapacityError("it stalled")
    assert await slow.ask(rig, CHAT_PATH, CHAT) == 200
    assert slow.lines[:2] == [": reading 37 %", ""]
    (event,) = (line for line in slow.lines[2:] if line)
    assert json.loads(event.removeprefix("data: "))["error"]["message"] == "it stalled"


@pytest.mark.parametrize("fault", [QueueFull("full"), CapacityError("too large")])
async def test_what_is_refused_at_once_keeps_its_status_though_news_came(
    rig: Rig, fault: RuntimeFault
) -> None:
    async def tell(replies: Replies) -> None:
        await replies.send(Queued(2, "evicting a"))

    rig.scheduler.before_lease, rig.scheduler.fault = tell, fault
    response = await rig.post(CHAT_PATH, {**CHAT, "stream": True})
    assert response.status_code == fault.http_status
    assert response.headers["content-type"].startswith("application/json")
