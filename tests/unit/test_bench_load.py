"""The load generator: what is asked when, what is read of an answer, and what is made of the times."""

import json
from collections.abc import Sequence

import pytest
import trio
import trio.lowlevel

from bench.load import figures_of, percentile
from bench.load_client import Answered, ask
from bench.load_requests import Asked, alike, poisson

SECONDS = 400


def test_arrivals_come_at_their_rate_and_repeat_exactly() -> None:
    asked = poisson(1, SECONDS * 5, 5.0, 1.0)
    assert asked == poisson(1, SECONDS * 5, 5.0, 1.0)
    assert asked != poisson(2, SECONDS * 5, 5.0, 1.0)
    assert asked[-1].at_s == pytest.approx(SECONDS, rel=0.1)
    assert list(asked) == sorted(asked, key=lambda one: one.at_s)


def test_an_open_load_is_mixed() -> None:
    asked = poisson(1, 500, 5.0, 1.0)
    assert 0.05 < sum(one.leaves_after > 0 for one in asked) / 500 < 0.2
    assert 0.05 < sum(one.is_slow for one in asked) / 500 < 0.2
    begins = [" ".join(one.prompt.split()[:20]) for one in asked]
    assert 0.3 < max(begins.count(begin) for begin in set(begins)) / 500 < 0.5
    assert len({one.n_predict for one in asked}) > 3


def test_a_closed_load_is_of_one_size_and_never_the_same_prompt() -> None:
    asked = alike(1, 50, 200, 64, 2.0)
    assert {(len(one.prompt.split()), one.n_predict, one.at_s) for one in asked} == {(100, 64, 0.0)}
    assert len({one.prompt for one in asked}) == 50


@pytest.mark.parametrize(("part", "value"), [(0.0, 1.0), (0.5, 3.0), (0.99, 4.0), (1.0, 4.0)])
def test_percentiles_are_values_that_were_there(part: float, value: float) -> None:
    assert percentile([4.0, 1.0, 3.0, 2.0], part) == value


def test_figures_leave_out_what_failed_and_count_it() -> None:
    whole = Answered(1.0, [2.0, 2.5, 4.0], 4.0, n_prompt=5, n_predicted=3)
    left = Answered(1.0, [1.5], 2.0, is_left=True)
    failed = Answered(1.0, error="OSError: gone")
    figures = figures_of([whole, left, failed], 4.0)
    assert (figures.requests_per_s, figures.tokens_per_s) == (0.5, 1.0)
    assert (list(figures.first_s), list(figures.between_s)) == ([1.0, 0.5], [0.5, 1.5])
    assert (figures.n_left, list(figures.errors)) == (1, ["OSError: gone"])


async def answer_of(pieces: Sequence[bytes], asked: Asked) -> Answered:
    """What the client makes of an answer that comes in these pieces."""

    async def serve(stream: trio.SocketStream) -> None:
        await stream.receive_some(1 << 16)
        for piece in pieces:
            await stream.send_all(piece)
            await trio.lowlevel.checkpoint()

    async with trio.open_nursery() as nursery:
        listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
        nursery.start_soon(trio.serve_listeners, serve, listeners)
        port: int = listeners[0].socket.getsockname()[1]
        answered = await ask(port, "m", asked)
        nursery.cancel_scope.cancel()
    return answered


def event(text: str, **more: object) -> str:
    return f"data: {json.dumps({'choices': [{'text': text}], **more})}\n\n"


def chunked(body: str, size: int) -> bytes:
    """A response whose chunks end anywhere."""
    raw = body.encode()
    parts = [raw[i : i + size] for i in range(0, len(raw), size)]
    lines = b"".join(f"{len(part):x}\r\n".encode() + part + b"\r\n" for part in parts)
    return b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n" + lines + b"0\r\n\r\n"


USAGE = {"usage": {"prompt_tokens": 7, "completion_tokens": 4}}
BODY = ": waiting\n\n" + event("a") + event("") + event("bé") + event("", **USAGE) + "data: [DONE]\n\n"


@pytest.mark.parametrize("size", [1, 7, 1000])
async def test_an_answer_is_read_however_it_is_cut(size: int) -> None:
    raw = chunked(BODY, size)
    answered = await answer_of([raw[i : i + 50] for i in range(0, len(raw), 50)], Asked(0, "p", 4))
    assert (len(answered.events_s), answered.n_prompt, answered.n_predicted) == (2, 7, 4)
    assert (answered.error, answered.is_left) == ("", False)


async def test_a_client_that_leaves_leaves() -> None:
    answered = await answer_of([chunked(BODY, 1000)], Asked(0, "p", 4, leaves_after=1))
    assert (len(answered.events_s), answered.is_left) == (1, True)


async def test_an_error_is_an_answer_with_words() -> None:
    raw = b"HTTP/1.1 503 Service Unavailable\r\ncontent-length: 4\r\n\r\nbusy"
    answered = await answer_of([raw], Asked(0, "p", 4))
    assert "503" in answered.error
    assert "busy" in answered.error
