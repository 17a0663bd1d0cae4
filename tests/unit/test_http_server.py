"""The HTTP server's own limits, with an application made for them."""

import socket
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

import pytest
import trio
import trio.testing
from starlette.types import ASGIApp, Receive, Scope, Send

from actors.gateway import http_server
from actors.gateway.http_server import HttpServer


@asynccontextmanager
async def serving(app: ASGIApp) -> AsyncGenerator[tuple[HttpServer, int]]:
    """A server of this application, and its port."""
    listener = socket.create_server(("127.0.0.1", 0))
    port: int = listener.getsockname()[1]
    server = HttpServer(app)
    with trio.fail_after(20):
        async with trio.open_nursery() as nursery:
            await nursery.start(server.serve, listener)
            yield server, port
            nursery.cancel_scope.cancel()


async def test_a_client_that_stops_reading_is_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_server, "SEND_STALL_S", 0.2)
    gone = trio.Event()

    async def endless(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})

        async def pour() -> None:
            while True:
                await send({"type": "http.response.body", "body": b"x" * 65536, "more_body": True})

        async with trio.open_nursery() as nursery:
            nursery.start_soon(pour)
            while (await receive())["type"] != "http.disconnect":
                pass
            nursery.cancel_scope.cancel()
        gone.set()

    with socket.socket() as client:
        async with serving(endless) as (server, port):
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            client.connect(("127.0.0.1", port))
            client.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
            await gone.wait()
            await trio.testing.wait_all_tasks_blocked()
            n_left = server.n_connections
    assert n_left == 0


async def test_a_client_that_hangs_up_while_it_is_answered_leaves_no_connection() -> None:
    has_begun, may_end = trio.Event(), trio.Event()

    async def slow(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"1")]})
        await send({"type": "http.response.body", "body": b"x", "more_body": True})
        has_begun.set()
        await may_end.wait()
        await send({"type": "http.response.body", "body": b""})

    async with serving(slow) as (server, port):
        with socket.create_connection(("127.0.0.1", port)) as client:
            client.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
            await has_begun.wait()
        await trio.testing.wait_all_tasks_blocked(0.1)
        may_end.set()
        while server.n_connections:  # noqa: ASYNC110  # nothing tells
            await trio.sleep(0.01)


async def test_an_answers_head_and_body_come_together() -> None:
    async def answer(scope: Scope, receive: Receive, send: Send) -> None:
        body = b"HTTP/1.1 is what this is about\r\n\r\n"
        length = [(b"content-length", str(len(body)).encode())]
        await send({"type": "http.response.start", "status": 200, "headers": length})
        await send({"type": "http.response.body", "body": body if scope["path"] == "/" else b""})

    async with serving(answer) as (_, port), await trio.open_tcp_stream("127.0.0.1", port) as client:
        for request, ends in ((b"GET /", b"about\r\n\r\n"), (b"HEAD /x", b"\r\n\r\n")):
            await client.send_all(request + b" HTTP/1.1\r\nHost: localhost\r\n\r\n")
            answered = await client.receive_some(65536)
            assert answered.startswith(b"HTTP/1.1 200")
            assert answered.endswith(ends)
