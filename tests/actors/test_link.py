"""Links over memory streams: what openers and servers may count on."""

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

import pytest
import trio
import trio.testing

from actors import serving
from actors.connection import FRAME_S, HELLO_S
from actors.errors import ModelNotFound, PeerGone, QueueFull, RemoteProtocolError
from actors.link import Handler, ItemStream, Link, Replies, link_over, serve_stream
from actors.protocol import (
    PROTOCOL_VERSION,
    Chunk,
    Credit,
    End,
    ErrorInfo,
    Explain,
    Explanation,
    Fail,
    Frame,
    Generate,
    Hello,
    Open,
    Push,
    Request,
    Sampling,
    Text,
    Tokenize,
    Tokens,
)
from actors.version import VERSION
from actors.wire import FRAME_MAX_BYTES, FrameDecoder, encode_frame

GENERATE = Generate(prompt="one", sampling=Sampling())
OUR_HELLO = Hello(name="raw", pid=1, version=PROTOCOL_VERSION, build="test")


@asynccontextmanager
async def linked(handler: Handler) -> AsyncGenerator[Link, None]:
    """A link to a server in the same loop."""
    ours, theirs = trio.testing.memory_stream_pair()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(lambda: serve_stream(theirs, handler, name="server"))
        async with link_over(ours, name="client") as link:
            yield link
        nursery.cancel_scope.cancel()


class RawPeer:
    """A peer that sends whatever the test wants."""

    def __init__(self, stream: trio.abc.Stream) -> None:
        self._stream = stream
        self._decoder = FrameDecoder()

    async def send(self, *frames: Frame) -> None:
        await self.send_bytes(b"".join(encode_frame(frame) for frame in frames))

    async def send_bytes(self, data: bytes) -> None:
        await self._stream.send_all(data)

    async def receive(self) -> Frame | None:
        while (frame := self._decoder.next_frame()) is None:
            data = await self._stream.receive_some()
            if not data:
                return None
            self._decoder.feed(data)
        return frame

    async def receive_kind(self, kind: type[Frame]) -> Frame:
        frame = await self.receive()
        assert isinstance(frame, kind)
        return frame


@asynccontextmanager
async def raw_client(handler: Handler) -> AsyncGenerator[RawPeer, None]:
    """A hand-driven client of a real server; the server has to survive whatever it does."""
    ours, theirs = trio.testing.memory_stream_pair()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(lambda: serve_stream(theirs, handler, name="server"))
        peer = RawPeer(ours)
        yield peer
        nursery.cancel_scope.cancel()


@asynccontextmanager
async def raw_server() -> AsyncGenerator[tuple[RawPeer, Link], None]:
    """A hand-driven server of a real link."""
    ours, theirs = trio.testing.memory_stream_pair()
    peer = RawPeer(theirs)
    await peer.send(OUR_HELLO)
    async with link_over(ours, name="client") as link:
        assert isinstance(await peer.receive(), Hello)
        yield peer, link


async def count(_: Request, replies: Replies) -> None:
    for i in range(100):
        await replies.send(Chunk(text=str(i), tokens=(i,)))


async def echo(request: Request, replies: Replies) -> None:
    assert isinstance(request, Tokenize)
    await replies.send(Text(text=request.text))


async def refuse(_: Request, __: Replies) -> None:
    raise ModelNotFound("no model x", where="library", mend="pull it")


async def wait(_: Request, __: Replies) -> None:
    await trio.sleep_forever()


# --- Streams -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("credit", [1, 2, 3, 32, 1000])
async def test_items_arrive_in_order_and_then_the_end(credit: int) -> None:
    async with linked(count) as link, link.request(GENERATE, credit=credit) as items:
        got = [item.text async for item in items if isinstance(item, Chunk)]
    assert got == [str(i) for i in range(100)]


async def test_both_know_the_other_from_the_hello() -> None:
    seen: list[str] = []

    async def note(_: Request, replies: Replies) -> None:
        seen.append(replies.peer.name)

    async with linked(note) as link, link.request(GENERATE) as items:
        assert [item async for item in items] == []
        assert (link.peer.name, link.peer.build, seen) == ("server", VERSION, ["client"])


async def test_many_streams_share_a_link_without_mixing() -> None:
    got: dict[str, str] = {}

    async with linked(echo) as link:

        async def ask(text: str) -> None:
            got[text] = (await link.ask(Tokenize(text=text), Text)).text

        async with trio.open_nursery() as nursery:
            for i in range(200):
                nursery.start_soon(ask, str(i))
    assert got == {str(i): str(i) for i in range(200)}


async def test_a_fault_of_the_handler_arrives_whole() -> None:
    async with linked(refuse) as link:
        with pytest.raises(ModelNotFound) as caught:
            await link.ask(GENERATE, Text)
    assert (caught.value.message, caught.value.where, caught.value.mend) == (
        "no model x",
        "library",
        "pull it",
    )


async def test_a_fault_out_of_the_handlers_own_nursery_arrives_too() -> None:
    async def grouped(request: Request, replies: Replies) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(refuse, request, replies)

    async with linked(grouped) as link:
        with pytest.raises(ModelNotFound):
            await link.ask(GENERATE, Text)


async def test_items_before_a_fault_are_handed_out_first() -> None:
    async def half(request: Request, replies: Replies) -> None:
        await replies.send(Text(text="first"))
        await refuse(request, replies)

    async with linked(half) as link, link.request(GENERATE) as items:
        await trio.testing.wait_all_tasks_blocked()
        assert await items.receive() == Text(text="first")
        with pytest.raises(ModelNotFound):
            await items.receive()


async def test_a_bug_of_the_handler_goes_up() -> None:
    async def buggy(_: Request, __: Replies) -> None:
        raise ZeroDivisionError

    with pytest.RaisesGroup(ZeroDivisionError, flatten_subgroups=True):
        async with linked(buggy) as link, link.request(GENERATE) as items:
            await items.receive()


async def test_leaving_the_block_cancels_the_handler() -> None:
    is_cancelled = trio.Event()

    async def endless(_: Request, replies: Replies) -> None:
        try:
            while True:
                await replies.send(Text(text="x"))
        finally:
            is_cancelled.set()

    async with linked(endless) as link:
        async with link.request(GENERATE) as items:
            await items.receive()
        await is_cancelled.wait()


async def test_the_link_goes_on_after_a_cancelled_stream() -> None:
    async def endless_or_echo(request: Request, replies: Replies) -> None:
        while isinstance(request, Generate):
            await replies.send(Text(text="x"))
        await echo(request, replies)

    async with linked(endless_or_echo) as link:
        for _ in range(10):
            async with link.request(GENERATE, credit=3) as items:
                await items.receive()
        assert (await link.ask(Tokenize(text="still here"), Text)).text == "still here"


async def test_a_reader_that_stops_holds_its_own_stream_only() -> None:
    n_sent = 0

    async def fast(request: Request, replies: Replies) -> None:
        nonlocal n_sent
        while isinstance(request, Generate):
            await replies.send(Text(text="x"))
            n_sent += 1
        await echo(request, replies)

    async with linked(fast) as link, link.request(GENERATE, credit=7):
        await trio.testing.wait_all_tasks_blocked()
        assert n_sent == 7
        assert (await link.ask(Tokenize(text="other"), Text)).text == "other"


async def test_a_cancelled_receive_loses_nothing() -> None:
    got: list[str] = []

    async def take(items: ItemStream) -> None:
        with trio.CancelScope() as scope:
            scope.cancel()
            await items.receive()
        item = await items.receive()
        assert isinstance(item, Chunk)
        got.append(item.text)

    async with linked(count) as link, link.request(GENERATE, credit=2) as items:
        for _ in range(100):
            await take(items)
    assert got == [str(i) for i in range(100)]


async def test_streams_end_with_peer_gone_when_the_server_goes() -> None:
    ours, theirs = trio.testing.memory_stream_pair()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(lambda: serve_stream(theirs, wait, name="server"))
        async with link_over(ours, name="client") as link, link.request(GENERATE) as items:
            nursery.start_soon(trio.aclose_forcefully, theirs)
            with pytest.raises(PeerGone, match="server"):
                await items.receive()
            with pytest.raises(PeerGone):
                await link.ask(GENERATE, Text)


async def test_handlers_are_cancelled_when_the_client_goes() -> None:
    is_cancelled = trio.Event()

    async def note(_: Request, __: Replies) -> None:
        try:
            await trio.sleep_forever()
        finally:
            is_cancelled.set()

    async with raw_client(note) as peer:
        await peer.send(OUR_HELLO, Open(stream=1, credit=1, body=GENERATE))
        await trio.testing.wait_all_tasks_blocked()
        await trio.aclose_forcefully(peer._stream)
        await is_cancelled.wait()


async def test_what_the_block_raises_comes_out_as_it_was() -> None:
    async def stumble() -> None:
        async with raw_server():
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await stumble()


async def test_ask_refuses_an_answer_of_another_kind() -> None:
    async with linked(echo) as link:
        with pytest.raises(RemoteProtocolError, match="answered Tokenize with Text, expected Tokens"):
            await link.ask(Tokenize(text="x"), Tokens)


async def test_ask_refuses_no_answer_and_two() -> None:
    async def times(request: Request, replies: Replies) -> None:
        assert isinstance(request, Tokenize)
        for _ in range(int(request.text)):
            await replies.send(Text(text="x"))

    async with linked(times) as link:
        with pytest.raises(RemoteProtocolError, match="with nothing"):
            await link.ask(Tokenize(text="0"), Text)
        with pytest.raises(RemoteProtocolError, match="second item"):
            await link.ask(Tokenize(text="2"), Text)


async def test_too_many_streams_are_answered_queue_full(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serving, "STREAMS_MAX", 2)
    async with linked(wait) as link, link.request(GENERATE), link.request(GENERATE):
        with pytest.raises(QueueFull):
            await link.ask(GENERATE, Text)


# --- Greeting ----------------------------------------------------------------------------------------------


async def test_a_peer_of_another_version_is_told_both() -> None:
    async with raw_client(wait) as peer:
        await peer.send(Hello(name="old", pid=1, version=PROTOCOL_VERSION + 1, build="9.9"))
        assert isinstance(await peer.receive(), Hello)
        refusal = await peer.receive()
        assert isinstance(refusal, Fail)
        assert refusal.stream == 0
        assert f"old (build 9.9) speaks protocol version {PROTOCOL_VERSION + 1}" in refusal.error.message
        assert f"this is version {PROTOCOL_VERSION}" in refusal.error.message
        assert await peer.receive() is None


async def test_a_server_of_another_version_is_refused_by_the_client() -> None:
    ours, theirs = trio.testing.memory_stream_pair()
    await RawPeer(theirs).send(Hello(name="new", pid=1, version=PROTOCOL_VERSION + 1, build="9.9"))
    with pytest.raises(RemoteProtocolError, match=r"new \(build 9\.9\) speaks protocol version"):
        async with link_over(ours, name="client"):
            pass


async def test_a_refusal_instead_of_a_hello_is_raised_as_it_is() -> None:
    ours, theirs = trio.testing.memory_stream_pair()
    await RawPeer(theirs).send(Fail(stream=0, error=ErrorInfo(code="remote_protocol", message="not you")))
    with pytest.raises(RemoteProtocolError, match="not you"):
        async with link_over(ours, name="client"):
            pass


async def test_a_peer_that_does_not_greet_is_hung_up_on(autojump_clock: trio.testing.MockClock) -> None:
    async with raw_client(wait) as peer:
        assert isinstance(await peer.receive(), Hello)
        began_s = trio.current_time()
        assert await peer.receive() is None
        assert trio.current_time() - began_s == pytest.approx(HELLO_S)


async def test_a_client_does_not_wait_for_ever_for_a_hello(autojump_clock: trio.testing.MockClock) -> None:
    ours, _theirs = trio.testing.memory_stream_pair()
    with pytest.raises(RemoteProtocolError, match="did not greet"):
        async with link_over(ours, name="client"):
            pass


async def test_the_first_frame_has_to_be_a_hello() -> None:
    async with raw_client(wait) as peer:
        await peer.send(End(stream=1))
        assert isinstance(await peer.receive(), Hello)
        refusal = await peer.receive()
        assert isinstance(refusal, Fail)
        assert "End, not a Hello" in refusal.error.message


# --- Peers that break the protocol -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "complaint"),
    [
        (b"\xff\xff\xff\xff", f"4294967295 bytes was announced, {FRAME_MAX_BYTES}"),
        (b"\x03\x00\x00\x00abc", "does not decode"),
        (encode_frame(Credit(stream=5, n=1)), "stream 5, which was never opened"),
        (encode_frame(Push(stream=1, body=Text(text="x"))), "sent Push"),
        (encode_frame(OUR_HELLO), "sent Hello"),
        (encode_frame(Open(stream=0, credit=1, body=Explain())), "ids rise"),
        (encode_frame(Open(stream=1, credit=2**40, body=Explain())), "credit"),
    ],
)
async def test_a_client_that_breaks_the_protocol_is_told_and_hung_up_on(data: bytes, complaint: str) -> None:
    async with raw_client(wait) as peer:
        await peer.send(OUR_HELLO)
        assert isinstance(await peer.receive(), Hello)
        await peer.send_bytes(data)
        goodbye = await peer.receive()
        assert isinstance(goodbye, Fail)
        assert complaint in goodbye.error.message
        assert await peer.receive() is None


async def test_half_a_frame_and_silence_ends_the_connection(autojump_clock: trio.testing.MockClock) -> None:
    async with raw_client(wait) as peer:
        await peer.send(OUR_HELLO)
        assert isinstance(await peer.receive(), Hello)
        await peer.send_bytes(encode_frame(Open(stream=1, credit=1, body=GENERATE))[:9])
        began_s = trio.current_time()
        goodbye = await peer.receive()
        assert isinstance(goodbye, Fail)
        assert "not completed" in goodbye.error.message
        assert trio.current_time() - began_s == pytest.approx(FRAME_S)


async def test_a_frame_that_drips_does_not_renew_its_time(autojump_clock: trio.testing.MockClock) -> None:
    frame = encode_frame(Open(stream=1, credit=1, body=Tokenize(text="x" * 100)))
    async with raw_client(wait) as peer:
        await peer.send(OUR_HELLO)
        assert isinstance(await peer.receive(), Hello)
        began_s = trio.current_time()
        async with trio.open_nursery() as nursery:

            async def drip() -> None:
                for byte in frame:
                    await peer.send_bytes(bytes((byte,)))
                    await trio.sleep(1)  # on the test's own clock: costs no time

            nursery.start_soon(drip)
            assert isinstance(await peer.receive(), Fail)
            nursery.cancel_scope.cancel()
        assert trio.current_time() - began_s <= FRAME_S + 1


async def test_silence_between_frames_is_no_offence(autojump_clock: trio.testing.MockClock) -> None:
    async with linked(echo) as link:
        await trio.sleep(100 * FRAME_S)
        assert (await link.ask(Tokenize(text="x"), Text)).text == "x"


async def test_items_without_credit_cost_the_server_the_link() -> None:
    async with raw_server() as (peer, link), link.request(Explain(), credit=2) as items:
        await peer.receive_kind(Open)
        item = Push(stream=1, body=Explanation(decisions=()))
        await peer.send(item, item, item)
        assert isinstance(await items.receive(), Explanation)
        assert isinstance(await items.receive(), Explanation)
        with pytest.raises(PeerGone, match="without credit"):
            await items.receive()


async def test_items_for_no_stream_cost_the_server_the_link() -> None:
    async with raw_server() as (peer, link), link.request(Explain()) as items:
        await peer.receive_kind(Open)
        await peer.send(End(stream=9))
        with pytest.raises(PeerGone, match="stream 9, which is not open"):
            await items.receive()


async def test_credit_for_a_stream_that_ended_meanwhile_is_no_offence() -> None:
    async with raw_client(echo) as peer:
        await peer.send(OUR_HELLO, Open(stream=1, credit=1, body=Tokenize(text="x")))
        for kind in (Hello, Push, End):
            assert isinstance(await peer.receive(), kind)
        await peer.send(Credit(stream=1, n=1), Open(stream=2, credit=1, body=Tokenize(text="y")))
        assert await peer.receive() == Push(stream=2, body=Text(text="y"))


async def test_a_server_that_says_goodbye_says_why() -> None:
    async with raw_server() as (peer, link), link.request(Explain()) as items:
        await peer.receive_kind(Open)
        await peer.send(Fail(stream=0, error=ErrorInfo(code="queue_full", message="too many of you")))
        with pytest.raises(PeerGone, match="too many of you"):
            await items.receive()
