"""Frames over sockets: many streams on one connection, paid for with credit, cancelled from either side.

The side that connects opens streams; the side that serves answers them.

    opener   Open(stream, credit, request) ────────────────►  serving side: one handler task per stream
             ◄────────────────────────  Push(stream, item)    each costs one credit; none left: wait
             Credit(stream, n) ──────────────────────────►    as the reader takes items
             Cancel(stream) ─────────────────────────────►    cancels the handler, which answers End
             ◄───────────────────  End(stream) | Fail(stream) the stream is closed

Stream 0 is the connection itself: a Fail on it says why the sender hangs up.  What bounds memory: credit per
stream, streams per link, the outbox, the frame's length.  The opener's reader never waits for its own
outbox, so two links that are both full cannot block one another.
"""

from collections import deque
from collections.abc import AsyncGenerator, Collection
from contextlib import asynccontextmanager
from typing import Final, TypeVar

import trio
from trio.abc import Stream

from actors.connection import HELLO_S, Connection, PeerPolicy, shake_hands
from actors.errors import LocalProtocolError, PeerGone, QueueFull, RemoteProtocolError, RuntimeFault
from actors.faults import fault_from
from actors.protocol import Cancel, Credit, End, Fail, Frame, Hello, Item, Open, Push, Request
from actors.serving import Handler as Handler
from actors.serving import Replies as Replies
from actors.serving import serve as serve
from actors.serving import serve_stream as serve_stream

STREAMS_MAX: Final = 2048
"""Streams a link may have open, cancelled ones still unanswered included: the queue four times over."""
CANCEL_S: Final = 2.0
"""What a leaving reader waits for room in the outbox before it hangs up instead of cancelling."""

T = TypeVar("T", bound=Item)


class ItemStream:
    """The items that answer one request, in order.  One task reads it.

    Iterate, or call `receive`.  The peer may be `credit` items ahead of what was taken, not more.
    """

    def __init__(self, link: "Link", stream: int, credit: int) -> None:
        self._link = link
        self._stream = stream
        self._refill = max(1, credit // 2)
        self._credit = credit  # what the peer may still send
        self._taken = 0  # taken by the reader and not yet granted again
        self._items: deque[Item] = deque()  # never longer than the credit given
        self._ended: RuntimeFault | None = None
        self._is_done = False
        self._news = trio.lowlevel.ParkingLot()

    def __aiter__(self) -> "ItemStream":
        return self

    async def __anext__(self) -> Item:
        try:
            return await self.receive()
        except trio.EndOfChannel:
            raise StopAsyncIteration from None

    async def receive(self) -> Item:
        """The next item; trio.EndOfChannel after the last, the peer's RuntimeFault, or PeerGone.

        Items that came before a failure are handed out first.
        """
        # granted before an item is taken: a cancel here then loses nothing
        if self._taken >= self._refill and not self._is_done:
            await self._grant()
        await trio.lowlevel.checkpoint()
        while not self._items:
            if self._is_done:
                raise self._ended or trio.EndOfChannel
            await self._news.park()
        self._taken += 1
        return self._items.popleft()

    async def _grant(self) -> None:
        n, is_sent = self._taken, False
        self._credit += n  # before sending: the peer may spend it before we run again
        try:
            await self._link.grant(self._stream, n)
            is_sent = True
        finally:
            if is_sent:
                self._taken = 0
            else:
                self._credit -= n

    @property
    def is_done(self) -> bool:
        """The peer has ended the stream; items may still wait to be read."""
        return self._is_done

    def push(self, item: Item) -> None:
        """For the link: an item has come.  RemoteProtocolError when the peer had no credit for it."""
        if self._credit <= 0:
            raise RemoteProtocolError(
                f"{self._link.peer.name} sent an item on stream {self._stream} without credit", where="link"
            )
        self._credit -= 1
        self._items.append(item)
        self._news.unpark()

    def finish(self, fault: RuntimeFault | None) -> None:
        """For the link: nothing more will come."""
        self._is_done, self._ended = True, fault
        self._news.unpark_all()

    def forget(self) -> None:
        """For the link: nobody reads any more; what still comes is counted against credit and dropped."""
        self._items.clear()


class Link:
    """An open connection to an actor; get one from `connect`."""

    def __init__(self, connection: Connection, peer: Hello) -> None:
        self.peer = peer
        self._connection = connection
        self._streams: dict[int, ItemStream] = {}
        self._last_stream = 0

    @property
    def is_gone(self) -> bool:
        """Whether it has ended, for whatever reason: nothing can be asked over it any more."""
        return self._connection.is_gone

    @asynccontextmanager
    async def request(self, message: Request, *, credit: int = 32) -> AsyncGenerator[ItemStream, None]:
        """Open a stream and read its items; leaving the block before the end cancels it.

        Raises PeerGone when the link is gone, QueueFull when too many streams are open.
        """
        if credit < 1:
            raise LocalProtocolError(
                f"a stream needs a credit of 1 or more, not {credit}", where="link.request"
            )
        stream, items = await self._open(message, credit)
        try:
            yield items
        finally:
            if not items.is_done:
                await self._cancel(stream)
            items.forget()

    async def ask(self, message: Request, answer: type[T]) -> T:
        """The one item of type `answer` that answers `message`; RemoteProtocolError for anything else."""
        asked = type(message).__name__
        async with self.request(message, credit=2) as items:
            try:
                item = await items.receive()
            except trio.EndOfChannel:
                raise self._wrong(f"{asked} with nothing, expected {answer.__name__}") from None
            if not isinstance(item, answer):
                raise self._wrong(f"{asked} with {type(item).__name__}, expected {answer.__name__}")
            async for extra in items:
                raise self._wrong(f"{asked} with a second item, {type(extra).__name__}")
        return item

    async def grant(self, stream: int, n: int) -> None:
        """For ItemStream: let the peer send n more items."""
        if stream not in self._streams:
            return
        try:
            await self._connection.send(Credit(stream=stream, n=n))
        except PeerGone:
            return  # what has come is still to be read; then reading says that the peer is gone

    async def run(self) -> None:
        """Read until the connection ends; then every open stream ends with PeerGone."""
        try:
            await self._connection.run(self._take)
        finally:
            for items in self._streams.values():
                items.finish(self._connection.gone())
            self._streams.clear()

    def hang_up(self) -> None:
        """Close at once."""
        self._connection.hang_up("we hung up")

    def _wrong(self, what: str) -> RemoteProtocolError:
        return RemoteProtocolError(f"{self.peer.name} answered {what}", where="link.ask")

    async def _open(self, message: Request, credit: int) -> tuple[int, ItemStream]:
        if len(self._streams) >= STREAMS_MAX:
            raise QueueFull(
                f"{STREAMS_MAX} streams to {self.peer.name} are open", where="link", mend="try again later"
            )
        self._last_stream += 1
        stream = self._last_stream
        items = self._streams[stream] = ItemStream(self, stream, credit)
        is_sent = False
        try:
            await self._connection.send(Open(stream=stream, credit=credit, body=message))
            is_sent = True
        finally:
            if not is_sent:
                self._streams.pop(stream, None)
        return stream, items

    async def _cancel(self, stream: int) -> None:
        # no frame may be lost here: a stream that the peer believes open costs it a task
        is_sent = False
        with trio.move_on_after(CANCEL_S, shield=True):
            try:
                await self._connection.send(Cancel(stream=stream))
            except PeerGone:
                return
            is_sent = True
        if not is_sent:
            self._connection.hang_up(f"{self.peer.name} took no frame for {CANCEL_S} s")

    async def _take(self, frame: Frame) -> None:
        match frame:
            case Push():
                self._stream(frame.stream).push(frame.body)
            case End():
                self._finish(frame.stream, None)
            case Fail(stream=0):
                raise fault_from(frame.error)
            case Fail():
                self._finish(frame.stream, fault_from(frame.error))
            case Hello() | Open() | Credit() | Cancel():
                raise RemoteProtocolError(
                    f"{self.peer.name} sent {type(frame).__name__}, which only the opener of streams sends",
                    where="link",
                )

    def _stream(self, stream: int) -> ItemStream:
        try:
            return self._streams[stream]
        except KeyError:
            raise RemoteProtocolError(
                f"{self.peer.name} wrote to stream {stream}, which is not open", where="link"
            ) from None

    def _finish(self, stream: int, fault: RuntimeFault | None) -> None:
        self._stream(stream).finish(fault)
        del self._streams[stream]


@asynccontextmanager
async def connect(
    address: str, *, name: str, allowed_gids: Collection[int] = ()
) -> AsyncGenerator[Link, None]:
    """A link to the actor that listens at `address` ("unix:PATH"); `name` is who we say we are.

    Raises PeerGone when nobody listens or the peer hangs up, RemoteProtocolError when it speaks another
    version or none, ConfigError for an address that cannot be.  Waiting for the greeting has a deadline of
    its own; whatever else the caller waits for, the caller bounds.
    """
    policy = PeerPolicy(frozenset(allowed_gids))
    async with await policy.connect(address) as stream, link_over(stream, name=name) as link:
        yield link


@asynccontextmanager
async def link_over(stream: Stream, *, name: str) -> AsyncGenerator[Link, None]:
    """`connect` over a stream that is open already."""
    connection = Connection(stream)
    peer: Hello | None = None
    with trio.move_on_after(HELLO_S):
        peer = await shake_hands(connection, name)
    if peer is None:
        raise RemoteProtocolError(f"the peer did not greet within {HELLO_S} s", where="link.connect")
    link = Link(connection, peer)
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(link.run)
            yield link
            link.hang_up()
            nursery.cancel_scope.cancel()
    except BaseExceptionGroup as group:
        # link.run raises nothing, so this is the one thing that the caller's own block raised: hand it back
        # as it was, not wrapped in the group that our nursery put round it
        if len(group.exceptions) == 1:
            raise group.exceptions[0] from group.exceptions[0].__cause__
        raise
