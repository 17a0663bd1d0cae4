"""The gateway as an HTTP server: routes, guards, limits, and clients that behave badly."""

import logging
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any

import pytest
import trio

from actors.errors import PeerGone
from actors.gateway.library.store import Library
from tests.actors.gateway_rig import Rig, gateway_rig, tcp

CHAT: dict[str, Any] = {"model": "tiny", "messages": [{"role": "user", "content": "hi"}]}


@pytest.fixture
async def rig(run_dir: Path, tmp_path: Path) -> AsyncGenerator[Rig, None]:
    async with gateway_rig(run_dir, tmp_path, origins=("https://my.site",), max_body_bytes=4096) as made:
        yield made


async def raw(rig: Rig, data: bytes) -> bytes:
    """Send bytes, give everything that comes back until the server closes."""

    def talk() -> bytes:
        with tcp(rig.port) as sock:
            sock.sendall(data)
            parts: list[bytes] = []
            while part := sock.recv(65536):
                parts.append(part)
        return b"".join(parts)

    with trio.fail_after(15):
        return await trio.to_thread.run_sync(talk)


async def test_the_root_says_that_ollama_is_running(rig: Rig) -> None:
    got, head = await rig.client.get("/"), await rig.client.head("/")
    assert (got.status_code, got.text) == (200, "Ollama is running")
    assert (head.status_code, head.content) == (200, b"")


async def test_the_version_is_told(rig: Rig) -> None:
    response = await rig.client.get("/api/version")
    assert response.json() == {"version": "0.1.0"}
    assert response.headers["content-type"] == "application/json; charset=utf-8"
    assert (await rig.client.head("/api/tags")).status_code == 200


async def test_unknown_paths_are_404_and_wrong_verbs_405_in_plain_text(rig: Rig) -> None:
    unknown, wrong = await rig.client.get("/api/nothing"), await rig.client.get("/api/chat")
    assert (unknown.status_code, unknown.headers["content-type"]) == (404, "text/plain; charset=utf-8")
    assert (wrong.status_code, wrong.headers["content-type"]) == (405, "text/plain; charset=utf-8")


@pytest.mark.parametrize("path", ["/api/embed", "/api/pull", "/v1/embeddings", "/v1/messages"])
async def test_endpoints_that_clients_know_and_are_not_here_yet_say_so(rig: Rig, path: str) -> None:
    response = await rig.post(path, {"model": "tiny"})
    assert response.status_code == 501
    assert f"{path} is not supported yet" in response.text


async def test_the_content_type_of_a_request_does_not_matter(rig: Rig) -> None:
    headers = {"content-type": "application/x-www-form-urlencoded"}
    answer = await rig.client.post(
        "/api/show", content=b'{"MODEL": "no", "what": 1} trailing', headers=headers
    )
    assert (answer.status_code, answer.json()) == (404, {"error": "model 'no' not found"})


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("localhost:11434", 200),
        ("127.0.0.1", 200),
        ("[::1]:80", 200),
        ("box.local", 200),
        ("10.0.0.7", 200),
        ("evil.example:11434", 403),
        ("8.8.8.8", 403),
    ],
)
async def test_only_hosts_that_can_be_this_machine_are_answered(rig: Rig, host: str, status: int) -> None:
    response = await rig.client.get("/", headers={"host": host})
    assert response.status_code == status
    assert (response.content == b"") == (status == 403)


@pytest.mark.parametrize(
    ("origin", "status"),
    [
        ("http://localhost:3000", 200),
        ("https://127.0.0.1", 200),
        ("tauri://app", 200),
        ("https://my.site", 200),
        ("https://evil.example", 403),
        ("http://localhost.evil.example", 403),
    ],
)
async def test_only_allowed_origins_are_answered(rig: Rig, origin: str, status: int) -> None:
    response = await rig.client.get("/", headers={"origin": origin})
    assert response.status_code == status
    assert response.headers.get("access-control-allow-origin") == (origin if status == 200 else None)


async def test_a_preflight_is_answered_with_what_is_allowed(rig: Rig) -> None:
    headers = {"origin": "https://my.site", "access-control-request-method": "POST"}
    response = await rig.client.options("/api/chat", headers=headers)
    assert response.status_code == 204
    assert "POST" in response.headers["access-control-allow-methods"]
    assert "x-stainless-lang" in response.headers["access-control-allow-headers"]


async def test_a_body_that_is_too_large_is_413(rig: Rig) -> None:
    response = await rig.client.post("/api/chat", content=b" " * 3_000_000)
    assert response.status_code == 413
    assert "4096 bytes" in response.json()["error"]
    assert (await rig.client.get("/")).status_code == 200


@pytest.mark.parametrize(
    ("path", "host", "status"), [("/nothing", "localhost", 404), ("/", "evil.example", 403)]
)
async def test_a_refusal_takes_the_body_that_comes_with_it(
    rig: Rig, path: str, host: str, status: int
) -> None:
    with trio.fail_after(10):
        response = await rig.client.post(path, content=bytes(3_000_000), headers={"host": host})
    assert response.status_code == status


async def test_a_compressed_body_is_refused_by_name(rig: Rig) -> None:
    response = await rig.client.post("/api/chat", content=b"{}", headers={"content-encoding": "gzip"})
    assert (response.status_code, "gzip" in response.json()["error"]) == (400, True)


async def test_an_endless_header_ends_the_connection(rig: Rig) -> None:
    answer = await raw(rig, b"GET / HTTP/1.1\r\nX: " + b"a" * 200_000)
    assert answer.startswith(b"HTTP/1.1 431 ") or answer.startswith(b"HTTP/1.1 400 ")


async def test_garbage_is_answered_400_and_the_gateway_lives(rig: Rig) -> None:
    answer = await raw(rig, b"\x00\xff\x13garbage\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 400 ")
    assert (await rig.client.get("/")).status_code == 200


async def test_a_client_that_leaves_in_the_middle_of_its_body_harms_nobody(rig: Rig) -> None:
    def leave() -> None:
        with tcp(rig.port) as sock:
            sock.sendall(b"POST /api/chat HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n\r\n{")

    await trio.to_thread.run_sync(leave)
    with trio.fail_after(10):
        while rig.gateway.gauges()["http_connections"] > 1:
            await rig.client.get("/")
    assert (await rig.client.get("/")).status_code == 200


async def test_one_connection_serves_many_requests(rig: Rig) -> None:
    request = b"POST /api/show HTTP/1.1\r\nHost: localhost\r\nContent-Length: 2\r\n\r\n{}"
    last = request.replace(b"Host", b"Connection: close\r\nHost")
    answer = await raw(rig, request * 5 + last)
    assert answer.count(b"HTTP/1.1 400 ") == 6
    assert answer.count(b"model is required") == 6


async def test_a_bug_in_a_handler_is_a_500_and_a_log_line(
    rig: Rig, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def broken(_: Library) -> None:
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr(Library, "list", broken)
    with caplog.at_level(logging.ERROR):
        response = await rig.client.get("/api/tags")
    assert response.status_code == 500
    assert response.json()["error"].startswith("internal error")
    assert "ZeroDivisionError" in caplog.text
    assert (await rig.client.get("/api/version")).status_code == 200


async def test_a_scheduler_that_says_it_lost_a_peer_is_asked_three_times(rig: Rig) -> None:
    await rig.add_model()
    rig.scheduler.fault = PeerGone("the runner died while it loaded")
    response = await rig.post("/api/chat", CHAT)
    assert response.status_code == 500
    assert len(rig.scheduler.acquired) == 3


async def test_metrics_count_what_was_served(rig: Rig) -> None:
    await rig.add_model()
    await rig.post("/api/chat", CHAT)
    text = (await rig.client.get("/metrics")).text
    assert 'gateway_requests_total{endpoint="/api/chat",status="200"} 1.0' in text
    assert "gateway_predicted_tokens_total 4.0" in text
    assert 'gateway_answers_total{reason="eos"} 1.0' in text
    assert "gateway_prompt_tokens_total 7.0" in text


async def test_metrics_have_the_gauges_of_the_other_actors_and_say_who_is_down(rig: Rig) -> None:
    text = (await rig.client.get("/metrics")).text
    assert "scheduler_queued 3.0" in text
    assert 'scheduler_held_bytes{device="cpu"} 7.0' in text
    assert 'actor_up{actor="scheduler"} 1.0' in text
    assert 'actor_up{actor="discovery"} 0.0' in text


async def test_health_follows_the_scheduler(rig: Rig) -> None:
    assert (await rig.client.get("/health")).json() == {"status": "ok", "n_loaded": 0}
    assert (await rig.client.get("/livez")).status_code == 200


async def test_draining_finishes_what_has_begun(rig: Rig) -> None:
    await rig.add_model()
    begun, may_end = trio.Event(), trio.Event()

    async def wait(n: int) -> None:
        begun.set()
        await may_end.wait()

    rig.runner.before_chunk = wait
    answers: list[dict[str, Any]] = []

    async def ask() -> None:
        answers.append((await rig.post("/api/chat", {**CHAT, "stream": False})).json())

    with trio.fail_after(10):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(ask)
            await begun.wait()
            nursery.start_soon(rig.gateway.drain)
            await trio.testing.wait_all_tasks_blocked()
            may_end.set()
    assert answers[0]["message"]["content"] == "Hello, world!"
    assert rig.gateway.gauges()["http_connections"] == 0


async def test_a_scheduler_that_is_away_for_a_moment_is_waited_for(rig: Rig, run_dir: Path) -> None:
    await rig.add_model()
    rig.scheduler_life.cancel()
    await trio.testing.wait_all_tasks_blocked()
    answers: list[int] = []

    async def ask() -> None:
        answers.append((await rig.post("/api/chat", CHAT)).status_code)

    with trio.fail_after(10):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(ask)
            await trio.testing.wait_all_tasks_blocked(0.05)
            await rig.start_scheduler()
    assert answers == [200]


async def test_a_stream_keeps_its_lease_through_a_scheduler_restart(rig: Rig) -> None:
    await rig.add_model()
    begun, may_end = trio.Event(), trio.Event()

    async def wait(n: int) -> None:
        if n == 1:
            begun.set()
            await may_end.wait()

    rig.runner.before_chunk = wait
    answers: list[str] = []

    async def ask() -> None:
        answers.append((await rig.post("/api/chat", {**CHAT, "stream": False})).json()["message"]["content"])

    with trio.fail_after(10):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(ask)
            await begun.wait()
            rig.scheduler_life.cancel()
            await rig.scheduler.released.wait()
            await rig.start_scheduler()
            await rig.scheduler.leased.wait()
            assert rig.scheduler.n_leases == 1
            may_end.set()
    assert answers == ["Hello, world!"]
    assert len(rig.runner.requests) == 1
