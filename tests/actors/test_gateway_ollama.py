"""/api/generate and /api/chat over real sockets, field by field."""

import json
import re
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest
import trio

from actors.errors import CapacityError, QueueFull, RequestError
from actors.link import Replies
from actors.protocol import DoneReason, Generate
from tests.actors.gateway_rig import INFO, TEMPLATE, THINK_TEMPLATE, FakeRunner, Rig, gateway_rig

TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d+Z")
CHAT: dict[str, Any] = {"model": "tiny", "messages": [{"role": "user", "content": "hi"}]}


@pytest.fixture
async def rig(run_dir: Path, tmp_path: Path) -> AsyncGenerator[Rig, None]:
    async with gateway_rig(run_dir, tmp_path) as made:
        await made.add_model()
        yield made


def lines(response: httpx.Response) -> list[dict[str, Any]]:
    assert response.status_code == 200, response.text
    assert response.headers["content-type"] == "application/x-ndjson"
    assert response.text.endswith("\n")
    return [json.loads(line) for line in response.text.splitlines()]


def error(response: httpx.Response) -> tuple[int, str]:
    return response.status_code, response.json()["error"]


async def test_generate_streams_a_line_per_chunk_and_counts_last(rig: Rig) -> None:
    *parts, last = lines(await rig.post("/api/generate", {"model": "tiny", "prompt": "hi"}))
    assert [part["response"] for part in parts] == ["Hello", ", ", "world", "!"]
    for part in parts:
        assert set(part) == {"model", "created_at", "response", "done"}
        assert part["model"] == "tiny"
        assert TIME.fullmatch(part["created_at"])
        assert part["done"] is False
    assert last.pop("total_duration") > 0
    assert last.pop("load_duration") > 0
    assert TIME.fullmatch(last.pop("created_at"))
    assert last == {
        "model": "tiny",
        "response": "",
        "done": True,
        "done_reason": "stop",
        "context": [1, 2, 3],
        "prompt_eval_count": 7,
        "prompt_cached_count": 2,
        "prompt_eval_duration": 250_000_000,
        "eval_count": 4,
        "eval_duration": 500_000_000,
    }


async def test_generate_without_stream_is_one_json_object(rig: Rig) -> None:
    response = await rig.post("/api/generate", {"model": "tiny", "prompt": "hi", "stream": False})
    assert response.headers["content-type"] == "application/json; charset=utf-8"
    answer = response.json()
    assert answer["response"] == "Hello, world!"
    assert answer["done"] is True
    assert answer["context"] == [1, 2, 3]


async def test_chat_streams_messages_and_counts_last(rig: Rig) -> None:
    *parts, last = lines(await rig.post("/api/chat", CHAT))
    assert [part["message"] for part in parts] == [
        {"role": "assistant", "content": word} for word in ("Hello", ", ", "world", "!")
    ]
    assert all(set(part) == {"model", "created_at", "message", "done"} for part in parts)
    assert set(last) == {
        "model", "created_at", "message", "done", "done_reason", "total_duration", "load_duration",
        "prompt_eval_count", "prompt_cached_count", "prompt_eval_duration", "eval_count", "eval_duration",
    }  # fmt: skip
    assert last["message"] == {"role": "assistant", "content": ""}
    assert (last["done"], last["done_reason"]) == (True, "stop")


async def test_chat_without_stream_is_one_json_object(rig: Rig) -> None:
    answer = (await rig.post("/api/chat", {**CHAT, "stream": False})).json()
    assert answer["message"] == {"role": "assistant", "content": "Hello, world!"}
    assert answer["done"] is True


async def test_chat_renders_the_models_template_with_every_message(rig: Rig) -> None:
    messages = [
        {"role": "system", "content": "be"},
        {"role": "USER", "content": "hi"},
        {"role": "assistant", "content": "ok"},
        {"role": "user", "content": "go"},
    ]
    await rig.post("/api/chat", {**CHAT, "messages": messages})
    assert rig.runner.requests[0].prompt == "[system]be[user]hi[assistant]ok[user]go[assistant]"


async def test_generate_takes_system_and_template_from_the_request(rig: Rig) -> None:
    body = {"model": "tiny", "prompt": "hi", "system": "be brief", "template": "T" + TEMPLATE}
    await rig.post("/api/generate", body)
    assert rig.runner.requests[0].prompt == "T[system]be brief[user]hi[assistant]"


async def test_raw_prompts_go_to_the_runner_as_they_are(rig: Rig) -> None:
    *_, last = lines(await rig.post("/api/generate", {"model": "tiny", "prompt": "once", "raw": True}))
    assert rig.runner.requests[0].prompt == "once"
    assert "context" not in last


async def test_raw_with_a_system_text_is_refused(rig: Rig) -> None:
    body = {"model": "tiny", "prompt": "once", "raw": True, "system": "s"}
    assert error(await rig.post("/api/generate", body))[0] == 400


async def test_context_is_put_in_front_of_the_new_prompts_tokens(rig: Rig) -> None:
    await rig.post("/api/generate", {"model": "tiny", "prompt": "a", "context": [7, 8]})
    assert rig.runner.requests[0].prompt == (7, 8, *b"[user]a[assistant]")
    assert rig.runner.tokenized[0].add_special is False


async def test_every_option_reaches_scheduler_and_runner(rig: Rig) -> None:
    options = {
        "num_ctx": 1024, "num_batch": 128, "num_gpu": 3, "num_thread": 2, "num_keep": 9, "seed": 42,
        "num_predict": 3, "top_k": 5, "top_p": 0.5, "min_p": 0.25, "typical_p": 0.75, "repeat_last_n": 33,
        "temperature": 0.125, "repeat_penalty": 1.5, "presence_penalty": 0.5, "frequency_penalty": 0.25,
        "stop": ["a", "b"], "num_parallel": 6,
    }  # fmt: skip
    await rig.post("/api/chat", {**CHAT, "options": options, "truncate": False, "shift": False})
    load, request = rig.scheduler.acquired[0].options, rig.runner.requests[0]
    assert (load.n_ctx, load.n_batch, load.n_gpu, load.n_thread, load.n_parallel) == (1024, 128, 3, 2, 6)
    assert msgspec.structs.astuple(request.sampling) == (0.125, 5, 0.5, 0.25, 0.75, 33, 1.5, 0.5, 0.25, 42)
    assert (request.n_predict, request.stop, request.n_keep) == (3, ("a", "b"), 9)
    assert (request.truncate, request.shift) == (False, False)


async def test_a_request_option_comes_before_the_models_and_that_before_the_default(rig: Rig) -> None:
    await rig.add_model("tuned", parameters={"temperature": 0.1, "top_k": 3, "stop": ["x"]})
    await rig.post("/api/chat", {**CHAT, "model": "tuned", "options": {"top_k": 4, "temperature": None}})
    request = rig.runner.requests[0]
    assert (request.sampling.temperature, request.sampling.top_k, request.sampling.top_p) == (0.1, 4, 0.9)
    assert request.stop == ("x",)


async def test_a_random_seed_is_chosen_before_the_runner_is_asked(rig: Rig) -> None:
    for _ in range(2):
        await rig.post("/api/chat", CHAT)
    seeds = [request.sampling.seed for request in rig.runner.requests]
    assert min(seeds) >= 0
    assert seeds[0] != seeds[1]


@pytest.mark.parametrize(
    ("reason", "text"),
    [
        (DoneReason.EOS, "stop"),
        (DoneReason.STOP_STRING, "stop"),
        (DoneReason.LIMIT, "length"),
        (DoneReason.CONTEXT, "length"),
        (DoneReason.REPETITION, "length"),
    ],
)
async def test_done_reasons_are_named_as_ollama_names_them(rig: Rig, reason: DoneReason, text: str) -> None:
    rig.runner.reason = reason
    *_, last = lines(await rig.post("/api/chat", CHAT))
    assert last["done_reason"] == text


@pytest.mark.parametrize("path", ["/api/generate", "/api/chat"])
async def test_an_empty_request_loads(rig: Rig, path: str) -> None:
    answer = (await rig.post(path, {"model": "tiny", "keep_alive": "10m"})).json()
    assert (answer["done"], answer["done_reason"]) == (True, "load")
    assert answer.get("response", "") == ""
    assert answer.get("message", {"role": "assistant", "content": ""}) == {"role": "assistant", "content": ""}
    assert rig.scheduler.acquired[0].keep_alive_s == 600
    assert rig.runner.requests == []


@pytest.mark.parametrize("path", ["/api/generate", "/api/chat"])
async def test_an_empty_request_with_keep_alive_0_unloads(rig: Rig, path: str) -> None:
    digest = await rig.add_model()
    answer = (await rig.post(path, {"model": "tiny", "keep_alive": 0})).json()
    assert (answer["done"], answer["done_reason"]) == (True, "unload")
    assert rig.scheduler.unloaded == [digest]


@pytest.mark.parametrize(
    ("value", "seconds"),
    [(300, 300), ("300", 300), ("-1", -1), (-1, -1), ("1h30m", 5400), (0.5, 0.5), (None, None)],
)
async def test_keep_alive_takes_numbers_and_durations(rig: Rig, value: object, seconds: float | None) -> None:
    await rig.post("/api/chat", {**CHAT, "keep_alive": value})
    assert rig.scheduler.acquired[0].keep_alive_s == seconds


async def test_logprobs_come_with_their_chunk(rig: Rig) -> None:
    first, *_, last = lines(await rig.post("/api/chat", {**CHAT, "logprobs": True, "top_logprobs": 2}))
    assert first["logprobs"] == [
        {
            "token": "Hello",
            "logprob": -0.5,
            "bytes": list(b"Hello"),
            "top_logprobs": [
                {"token": "t0", "logprob": -1.0, "bytes": [116, 48]},
                {"token": "t1", "logprob": -2.0, "bytes": [116, 49]},
            ],
        }
    ]
    assert "logprobs" not in last


async def test_logprobs_of_a_whole_answer_are_joined(rig: Rig) -> None:
    body = {"model": "tiny", "prompt": "hi", "logprobs": True, "stream": False}
    answer = (await rig.post("/api/generate", body)).json()
    assert [entry["token"] for entry in answer["logprobs"]] == ["Hello", ", ", "world", "!"]


async def test_a_thinking_models_thoughts_are_told_apart(rig: Rig) -> None:
    await rig.add_model("thinker", msgspec.structs.replace(INFO, chat_template=THINK_TEMPLATE))
    rig.runner.words = ("Let me", " see</th", "ink>\n\n", "It is", " 4.")
    answer = (await rig.post("/api/chat", {**CHAT, "model": "thinker", "stream": False})).json()
    assert answer["message"] == {"role": "assistant", "content": "It is 4.", "thinking": "Let me see"}
    assert str(rig.runner.requests[0].prompt).endswith("[assistant]<think>")


async def test_think_false_is_told_to_the_template(rig: Rig) -> None:
    await rig.add_model("thinker", msgspec.structs.replace(INFO, chat_template=THINK_TEMPLATE))
    await rig.post("/api/generate", {"model": "thinker", "prompt": "2+2", "think": False})
    assert rig.runner.requests[0].prompt == "[user]2+2[assistant]"


async def test_debug_render_only_shows_the_prompt(rig: Rig) -> None:
    answer = (await rig.post("/api/chat", {**CHAT, "_debug_render_only": True})).json()
    assert answer["_debug_info"] == {"rendered_template": "[user]hi[assistant]"}
    assert rig.runner.requests == []


@pytest.mark.parametrize(
    ("path", "body", "status", "text"),
    [
        ("/api/generate", {"prompt": "hi"}, 404, "model '' not found"),
        ("/api/chat", {"messages": []}, 400, "model is required"),
        ("/api/chat", {"model": "no"}, 404, "model 'no' not found"),
        ("/api/generate", {"model": "no"}, 404, "model 'no' not found"),
        ("/api/chat", {"model": "a b"}, 400, "invalid model name"),
        ("/api/chat", {**CHAT, "think": True}, 400, '"tiny" does not support thinking'),
        ("/api/chat", {**CHAT, "tools": [{"type": "function", "function": {"name": "f"}}]}, 400,
         "registry.ollama.ai/library/tiny:latest does not support tools"),
        ("/api/generate", {"model": "tiny", "prompt": "a", "suffix": "b"}, 400,
         "registry.ollama.ai/library/tiny:latest does not support insert"),
        ("/api/chat", {**CHAT, "top_logprobs": 21}, 400, "top_logprobs must be between 0 and 20"),
        ("/api/chat", {**CHAT, "options": {"temperature": "hot"}}, 400,
         'option "temperature" must be of type float32'),
        ("/api/chat", {**CHAT, "format": "json"}, 400, "structured output (format) is not supported yet"),
        ("/api/chat", {**CHAT, "format": {"type": "object"}}, 400,
         "structured output (format) is not supported yet"),
        ("/api/generate", {"model": "tiny", "prompt": "a", "images": ["aGk="]}, 400,
         "this model does not support images"),
        ("/api/chat", {"model": "tiny", "messages": [{"role": "user", "images": ["aGk="]}]}, 400,
         "this model does not support images"),
        ("/api/chat", {"model": "tiny", "messages": [{"role": "user", "content": ["a"]}]}, 400,
         "json: cannot unmarshal array into Go struct field ChatRequest.messages.content of type string"),
        ("/api/chat", {"model": 3}, 400,
         "json: cannot unmarshal number into Go struct field ChatRequest.model of type string"),
        ("/api/chat", {**CHAT, "keep_alive": "soon"}, 400, 'time: invalid duration "soon"'),
    ],
)  # fmt: skip
async def test_what_cannot_be_done_is_refused_by_name(
    rig: Rig, path: str, body: dict[str, Any], status: int, text: str
) -> None:
    assert error(await rig.post(path, body)) == (status, text)


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (b"", "missing request body"),
        (b"{", "unexpected EOF"),
        (b"hello", "invalid character 'h' looking for beginning of value"),
        (b"[1]", "json: cannot unmarshal array into Go value of type api.ChatRequest"),
    ],
)
async def test_bad_bodies_get_the_decoders_text(rig: Rig, content: bytes, text: str) -> None:
    assert error(await rig.client.post("/api/chat", content=content)) == (400, text)


async def test_a_body_nested_without_end_is_refused(rig: Rig) -> None:
    response = await rig.client.post("/api/chat", content=b'{"a":' + b"[" * 100_000)
    assert response.status_code == 400


async def test_embedding_models_do_not_chat(rig: Rig) -> None:
    metadata = {**INFO.metadata, "llama.pooling_type": 1}
    await rig.add_model("embedder", msgspec.structs.replace(INFO, metadata=metadata))
    chat = await rig.post("/api/chat", {**CHAT, "model": "embedder"})
    assert error(chat) == (400, '"embedder" does not support chat')
    generate = await rig.post("/api/generate", {"model": "embedder", "prompt": "a"})
    assert error(generate) == (400, '"embedder" does not support generate')


async def test_a_full_queue_is_503_in_ollamas_words(rig: Rig) -> None:
    rig.scheduler.fault = QueueFull("512 wait")
    text = "server busy, please try again.  maximum pending requests exceeded"
    answer = await rig.post("/api/chat", CHAT)
    assert error(answer) == (503, text)
    assert int(answer.headers["retry-after"]) > 0


async def test_a_model_that_does_not_fit_is_500_with_the_numbers_and_what_to_do(rig: Rig) -> None:
    rig.scheduler.fault = CapacityError("needs 9 GiB, 6 GiB are free", mend="ask for a smaller num_ctx")
    answer = error(await rig.post("/api/chat", CHAT))
    assert answer == (500, "needs 9 GiB, 6 GiB are free; ask for a smaller num_ctx")


async def test_a_prompt_that_the_runner_refuses_is_400(rig: Rig) -> None:
    rig.runner.fault = RequestError("the prompt has 70 tokens, the context 64")
    assert error(await rig.post("/api/chat", {**CHAT, "truncate": False}))[0] == 400


async def test_an_error_after_the_first_byte_is_a_last_line(rig: Rig) -> None:
    async def fail(n: int) -> None:
        if n == 2:
            raise RequestError("no more")

    rig.runner.before_chunk = fail
    *parts, last = lines(await rig.post("/api/chat", CHAT))
    assert last == {"error": "no more"}
    assert [part["done"] for part in parts] == [False, False]


async def test_the_oldest_messages_are_left_out_of_a_conversation_that_is_too_long(rig: Rig) -> None:
    turns = [{"role": "user", "content": f"{i:02}" + "x" * 10} for i in range(9)]
    messages = [{"role": "system", "content": "s"}, *turns]
    await rig.post("/api/chat", {**CHAT, "messages": messages})
    prompt = bytes(rig.runner.requests[0].prompt).decode()  # pyright: ignore[reportArgumentType]  # the rig's tokens are bytes
    assert prompt == "[system]s[user]07xxxxxxxxxx[user]08xxxxxxxxxx[assistant]"


async def test_a_runner_that_dies_in_mid_answer_is_followed_by_another(rig: Rig) -> None:
    second = FakeRunner()

    async def die(n: int) -> None:
        if n == 2:
            await rig.start_runner(second, "2")
            rig.runner.life.cancel()
            await trio.sleep_forever()

    rig.runner.before_chunk = die
    *parts, last = lines(await rig.post("/api/chat", CHAT))
    assert "".join(part["message"]["content"] for part in parts) == "Hello, world!"
    assert second.requests[0].resume == (100, 101)
    assert second.requests[0].sampling == rig.runner.requests[0].sampling
    assert last["eval_count"] == 4


async def test_a_prompt_that_kills_every_runner_ends_with_ollamas_words(rig: Rig) -> None:
    async def die(runner: FakeRunner, n: int) -> None:
        following = FakeRunner()
        following.before_chunk = lambda n: die(following, n)
        await rig.start_runner(following, str(n_started.pop()))
        runner.life.cancel()
        await trio.sleep_forever()

    n_started = [5, 4, 3, 2]
    rig.runner.before_chunk = lambda n: die(rig.runner, n)
    status, text = error(await rig.post("/api/chat", {**CHAT, "stream": False}))
    assert status == 500
    assert text.startswith("model runner has unexpectedly stopped")
    assert n_started == [5, 4]  # a second one, and one that nobody asked for


async def test_a_poisonous_request_is_told_apart_and_the_others_go_on(rig: Rig) -> None:
    runners = [rig.runner]

    class Mortal(FakeRunner):
        """Dies of poison, at the first once everybody is there."""

        async def _generate(self, request: Generate, replies: Replies) -> None:
            if "poison" in str(request.prompt):
                while len(runners) == 1 and len(self.requests) < len(asked):
                    await trio.lowlevel.checkpoint()
                runners.append(Mortal())
                await rig.start_runner(runners[-1], str(len(runners)))
                self.life.cancel()
                await trio.sleep_forever()
            await super()._generate(request, replies)

        def __post_init__(self) -> None:
            self.before_chunk = self._waits_for_all

        async def _waits_for_all(self, n: int) -> None:
            if len(runners) == 1 and n == 2:
                await trio.sleep_forever()

    runners[0] = Mortal()
    await rig.start_runner(runners[0], "1a")
    asked = ["a", "b", "poison", "c", "d", "e"]
    answers: dict[str, httpx.Response] = {}

    async def ask(text: str) -> None:
        body = {"model": "tiny", "messages": [{"role": "user", "content": text}], "stream": False}
        answers[text] = await rig.post("/api/chat", body)

    async with trio.open_nursery() as nursery:
        for text in asked:
            nursery.start_soon(ask, text)
    status, text = error(answers.pop("poison"))
    assert status == 500
    assert text.startswith("model runner has unexpectedly stopped")
    assert {a.json()["message"]["content"] for a in answers.values()} == {"Hello, world!"}
    assert len(answers) == 5
    assert len(runners) == 3  # the second one died of it, too
    again = await rig.post("/api/chat", {**CHAT, "stream": False})
    assert again.json()["message"]["content"] == "Hello, world!"


@pytest.mark.parametrize("is_stream", [True, False])
async def test_a_client_that_hangs_up_cancels_the_sequence_and_releases_the_lease(
    rig: Rig, is_stream: bool
) -> None:
    begun = trio.Event()

    async def wait(n: int) -> None:
        if n == 1:
            begun.set()
            await trio.sleep_forever()

    rig.runner.before_chunk = wait
    with trio.fail_after(10):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(rig.post, "/api/chat", {**CHAT, "stream": is_stream})
            await begun.wait()
            nursery.cancel_scope.cancel()
        await rig.runner.cancelled.wait()
        await rig.scheduler.released.wait()
    assert rig.scheduler.n_leases == 0


async def test_a_reader_who_stops_pauses_its_own_stream_only(rig: Rig) -> None:
    rig.runner.words = ("x" * 10_000,) * 20_000
    body = json.dumps(CHAT).encode()
    head = f"POST /api/chat HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n\r\n".encode()
    async with await trio.open_tcp_stream("127.0.0.1", rig.port) as slow:
        await slow.send_all(head + body)
        await slow.receive_some(1000)
        rig.runner.words = ("quick",)
        with trio.fail_after(10):
            answer = await rig.post("/api/chat", {**CHAT, "stream": False})
        assert answer.json()["message"]["content"] == "quick"
        assert rig.runner.n_cancelled == 0
    with trio.fail_after(10):
        await rig.runner.cancelled.wait()
