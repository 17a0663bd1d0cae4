"""The real runtime under kills, refusals and hang-ups."""

import os
import signal
import threading
from typing import Any

import httpx
import pytest

from tests.system.conftest import MODEL, QUESTION, Runtime, started

WHOLE_AGAIN_S = 5.0
LONG: dict[str, Any] = {
    "model": MODEL,
    "prompt": "once",
    "raw": True,
    "options": {
        "num_predict": 400, "num_ctx": 512, "seed": 7, "temperature": 3.0, "top_k": 0, "top_p": 1.0,
        "repeat_last_n": 32, "repeat_penalty": 0.3,  # favours its own words, so it does not end after a few
    },
}  # fmt: skip


@pytest.mark.parametrize("actor", ["discovery", "scheduler", "host", "gateway"])
def test_a_killed_actor_is_back_within_five_seconds(own_runtime: Runtime, actor: str) -> None:
    answer = own_runtime.chat()["message"]["content"]
    pid = own_runtime.pid(actor)
    os.kill(pid, signal.SIGKILL)
    own_runtime.wait_until(lambda: own_runtime.pid(actor) != pid, WHOLE_AGAIN_S)
    own_runtime.wait_until(lambda: own_runtime.chat()["message"]["content"] == answer, 10)


@pytest.mark.parametrize("actor", ["scheduler", "gateway"])
def test_a_loaded_model_survives_the_kill_of(own_runtime: Runtime, actor: str) -> None:
    own_runtime.chat()
    runners, pid = own_runtime.runner_pids(), own_runtime.pid(actor)
    assert len(runners) == 1
    os.kill(pid, signal.SIGKILL)
    own_runtime.wait_until(lambda: own_runtime.pid(actor) != pid, WHOLE_AGAIN_S)
    own_runtime.wait_until(lambda: len(own_runtime.http.get("/api/ps").json()["models"]) == 1, WHOLE_AGAIN_S)
    own_runtime.chat()
    assert own_runtime.runner_pids() == runners


def test_a_stream_on_a_killed_runner_goes_on_token_for_token(own_runtime: Runtime) -> None:
    undisturbed = own_runtime.http.post("/api/generate", json={**LONG, "stream": False}).json()
    parts: list[str] = []
    with own_runtime.http.stream("POST", "/api/generate", json=LONG) as response:
        for n, line in enumerate(response.iter_lines()):
            if n == 20:
                (runner,) = own_runtime.runner_pids()
                os.kill(runner, signal.SIGKILL)
            parts.append(httpx.Response(200, content=line).json().get("response", line))
    assert "".join(parts) == undisturbed["response"]
    assert own_runtime.stats("gateway").gauges["streams_resumed_total"] == 1


def test_a_stream_outlives_the_scheduler(own_runtime: Runtime) -> None:
    undisturbed = own_runtime.http.post("/api/generate", json={**LONG, "stream": False}).json()
    parts: list[str] = []
    with own_runtime.http.stream("POST", "/api/generate", json=LONG) as response:
        for n, line in enumerate(response.iter_lines()):
            if n == 20:
                os.kill(own_runtime.pid("scheduler"), signal.SIGKILL)
            parts.append(httpx.Response(200, content=line).json().get("response", line))
    assert "".join(parts) == undisturbed["response"]


def test_a_client_that_hangs_up_frees_its_sequence(runtime: Runtime) -> None:
    body = {**LONG, "options": {**LONG["options"], "num_predict": -1}}
    with runtime.http.stream("POST", "/api/generate", json=body) as response:
        next(response.iter_lines())
    runtime.wait_until(lambda: runtime.stats("gateway").gauges["requests_in_flight"] == 0, 10)


def test_bad_requests_leave_the_runtime_well(runtime: Runtime) -> None:
    statuses = [
        runtime.http.post("/api/chat", content=b"{").status_code,
        runtime.http.post("/api/chat", json={"model": 5}).status_code,
        runtime.http.post("/api/chat", json={"model": "../../etc/passwd"}).status_code,
        runtime.http.post("/api/chat", json={"model": MODEL, "options": {"temperature": "hot"}}).status_code,
        runtime.http.post("/api/chat", json={"model": MODEL, "options": {"num_ctx": 2**62}}).status_code,
        runtime.http.get("/api/tags", headers={"host": "evil.example"}).status_code,
        runtime.http.get("/nothing").status_code,
    ]
    assert statuses[:4] == [400, 400, 400, 400]
    assert statuses[4] in (200, 400, 500)
    assert statuses[5:] == [403, 404]
    assert runtime.chat()["done"]


def test_a_full_context_without_shift_ends_with_length(runtime: Runtime) -> None:
    options = {**LONG["options"], "num_predict": -1, "num_ctx": 64, "temperature": 5.0}
    answer = runtime.http.post(
        "/api/generate", json={**LONG, "options": options, "shift": False, "stream": False}
    ).json()
    assert answer["done_reason"] in ("length", "stop")
    assert answer["prompt_eval_count"] + answer["eval_count"] <= 65


def test_a_prompt_of_many_megabytes_harms_nobody(runtime: Runtime) -> None:
    body = {"model": MODEL, "messages": [{"role": "user", "content": "word " * 400_000}], "stream": False}
    answer = runtime.http.post("/api/chat", json={**body, "options": {"num_predict": 1}})
    assert answer.status_code in (200, 400)
    assert runtime.chat()["done"]


def test_a_file_that_is_no_model_is_refused_at_create(runtime: Runtime) -> None:
    import hashlib

    for data in (b"not a model", b"GGUF" + b"\xff" * 100, b""):
        digest = "sha256:" + hashlib.sha256(data).hexdigest()
        runtime.http.post(f"/api/blobs/{digest}", content=data)
        body = {"model": "bad", "files": {"bad.gguf": digest}, "stream": False}
        answer = runtime.http.post("/api/create", json=body)
        assert answer.status_code == 400
        assert answer.json()["error"]
    assert runtime.http.post("/api/show", json={"model": "bad"}).status_code == 404


def test_a_restarting_gateway_refuses_nobody(own_runtime: Runtime) -> None:
    own_runtime.chat()
    os.kill(own_runtime.pid("gateway"), signal.SIGKILL)
    # the supervisor holds the listening socket: the connection waits for the next gateway
    with httpx.Client(base_url=own_runtime.url, timeout=15, trust_env=False, verify=False) as fresh:
        assert fresh.get("/").text == "Ollama is running"


def test_a_new_model_is_loaded_while_another_answers(own_runtime: Runtime) -> None:
    own_runtime.http.post("/api/copy", json={"source": MODEL, "destination": "twin"}).raise_for_status()
    answers: list[int] = []

    def ask(model: str) -> None:
        body = {"model": model, "messages": QUESTION, "stream": False, "options": {"num_ctx": 256}}
        answers.append(httpx.post(f"{own_runtime.url}/api/chat", json=body, timeout=60).status_code)

    threads = [threading.Thread(target=ask, args=(model,)) for model in (MODEL, "twin", MODEL)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert answers == [200, 200, 200]


def test_what_is_left_out_of_a_prompt_is_told_or_refused_by_setting(runtime: Runtime) -> None:
    options = {"num_ctx": 64, "num_predict": 2}
    prompt = {"model": MODEL, "prompt": "word " * 500, "raw": True, "stream": False, "options": options}
    told = runtime.http.post("/api/generate", json=prompt).json()
    assert told["truncated"]["dropped_tokens"] > 400
    assert told["truncated"]["dropped_messages"] == 0
    short = runtime.http.post("/api/generate", json={**prompt, "prompt": "word"}).json()
    assert "truncated" not in short
    talk = [{"role": role, "content": f"{i} word " * 9} for i in range(9) for role in ("user", "assistant")]
    chat = {"model": MODEL, "messages": [*talk, *QUESTION], "stream": False, "options": {"num_ctx": 256}}
    told = runtime.http.post("/api/chat", json={**chat, "options": {**options, "num_ctx": 256}}).json()
    assert told["truncated"]["dropped_messages"] > 0
    with started(RUNTIME_TRUNCATE="no") as strict:
        refused = strict.http.post("/api/generate", json=prompt)
        assert refused.status_code == 400
        assert "64 fit" in refused.json()["error"]
        assert strict.http.post(
            "/v1/chat/completions", json={"model": MODEL, "messages": QUESTION}
        ).is_success
