"""A client of OpenAI's `/v1/completions` that costs little beside the server: h11 over a plain connection."""

import json
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass, field

import h11
import trio

from bench.load_requests import SLOW_S, Asked

READ_BYTES = 1 << 16
END = "[DONE]"


@dataclass(slots=True)
class Answered:
    """When what of an answer came, in seconds of the clock, and what it counted."""

    asked_s: float
    events_s: list[float] = field(default_factory=list[float])  # of each event with text
    ended_s: float = 0.0
    n_prompt: int = 0
    n_predicted: int = 0
    is_left: bool = False
    error: str = ""


async def ask(port: int, model: str, asked: Asked) -> Answered:
    """Ask, read to the end or as long as the client stays."""
    answered = Answered(time.perf_counter())
    try:
        async with aclosing(_events(port, _body(model, asked))) as events:
            async for text in events:
                if text == END:
                    break
                _note(answered, text)
                if asked.leaves_after and len(answered.events_s) >= asked.leaves_after:
                    answered.is_left = True
                    break
                if asked.is_slow:
                    await trio.sleep(SLOW_S)
    except (OSError, trio.BrokenResourceError, h11.RemoteProtocolError, RefusedError) as exc:
        answered.error = f"{type(exc).__name__}: {exc}"
    answered.ended_s = time.perf_counter()
    return answered


class RefusedError(Exception):
    """The server answered with an error."""


def _body(model: str, asked: Asked) -> bytes:
    """Greedy; the end of text is ignored by servers that can, so that all make as many tokens."""
    asks = {
        "model": model,
        "prompt": asked.prompt,
        "max_tokens": asked.n_predict,
        "temperature": 0,
        "stream": True,
        "stream_options": {"include_usage": True},
        "ignore_eos": True,
    }
    return json.dumps(asks).encode()


def _note(answered: Answered, text: str) -> None:
    event = json.loads(text)
    if usage := event.get("usage"):
        answered.n_prompt, answered.n_predicted = usage["prompt_tokens"], usage["completion_tokens"]
    if any(choice.get("text") for choice in event.get("choices", ())):
        answered.events_s.append(time.perf_counter())


async def _events(port: int, body: bytes) -> AsyncGenerator[str]:
    """The data of each server-sent event."""
    connection = h11.Connection(h11.CLIENT)
    headers = [
        ("host", f"127.0.0.1:{port}"), ("content-type", "application/json"),
        ("content-length", str(len(body))), ("connection", "close"),
    ]  # fmt: skip
    async with await trio.open_tcp_stream("127.0.0.1", port) as stream:
        request = h11.Request(method="POST", target="/v1/completions", headers=headers)
        parts = [connection.send(part) for part in (request, h11.Data(body), h11.EndOfMessage())]
        await stream.send_all(b"".join(part for part in parts if part))
        status, rest = 0, ""
        while True:
            event = connection.next_event()
            if event is h11.NEED_DATA:
                connection.receive_data(await stream.receive_some(READ_BYTES))
            elif isinstance(event, h11.Response):
                status = event.status_code
            elif isinstance(event, h11.Data):
                *lines, rest = (rest + bytes(event.data).decode("utf-8", "replace")).split("\n")
                if status != 200:
                    raise RefusedError(f"{status} {lines or rest}")
                for line in lines:
                    if line.startswith("data:"):
                        yield line.removeprefix("data:").strip()
            else:
                return
