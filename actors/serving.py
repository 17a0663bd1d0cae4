"""The answering side of a link: a handler task per stream, bounded, paid with the opener's credit."""

import logging
from collections.abc import Awaitable, Callable, Collection
from functools import partial
from typing import Final

import trio
from trio.abc import Stream

from actors.connection import HELLO_S, Connection, PeerPolicy, shake_hands
from actors.errors import PeerGone, QueueFull, RemoteProtocolError, RuntimeFault
from actors.faults import info_from, sole_fault
from actors.protocol import Cancel, Credit, End, Fail, Frame, Hello, Item, Open, Push, Request

log = logging.getLogger(__name__)

STREAMS_MAX: Final = 2048
"""Streams one peer may have open; over that it is answered QueueFull."""
CONNECTIONS_MAX: Final = 512
"""Peers at a time; over that they are hung up on at once, before anything is read."""
CREDIT_MAX: Final = 1 << 20
"""A credit above this cannot be meant."""


class Replies:
    """Where a handler puts the items that answer its request; `peer` is who asked."""

    def __init__(self, connection: Connection, peer: Hello, stream: int, credit: int) -> None:
        self.peer = peer
        self._connection = connection
        self._stream = stream
        self._credit = credit
        self._more = trio.lowlevel.ParkingLot()

    async def send(self, item: Item) -> None:
        """Send one item, waiting for the reader's credit; PeerGone when the link is gone."""
        while self._credit <= 0:
            await self._more.park()
        self._credit -= 1
        is_sent = False
        try:
            await self._connection.send(Push(stream=self._stream, body=item))
            is_sent = True
        finally:
            if not is_sent:
                self._credit += 1

    def offer(self, item: Item) -> bool:
        """Send one item if that needs no waiting; False, with nothing sent, if it does or the link is gone.

        LocalProtocolError for an item that is too long for a frame.
        """
        if self._credit <= 0 or not self._connection.offer(Push(stream=self._stream, body=item)):
            return False
        self._credit -= 1
        return True

    def grant(self, n: int) -> None:
        """For the link: the reader takes n more."""
        if self._credit + n > CREDIT_MAX:
            raise RemoteProtocolError(
                f"stream {self._stream} has over {CREDIT_MAX} items of credit", where="link"
            )
        self._credit += n
        self._more.unpark_all()


Handler = Callable[[Request, Replies], Awaitable[None]]
"""Answers one stream: returning ends it; a RuntimeFault goes to the peer; any other exception is a bug and
goes up.  Its task is cancelled when the peer cancels or is gone."""


class _Answering:
    """A stream being answered."""

    def __init__(self, replies: Replies) -> None:
        self.replies = replies
        self.scope = trio.CancelScope()


class _Peer:
    """One connection that was accepted and has greeted."""

    def __init__(self, connection: Connection, hello: Hello, handler: Handler) -> None:
        self._connection = connection
        self._hello = hello
        self._handler = handler
        self._streams: dict[int, _Answering] = {}
        self._last_stream = 0

    async def run(self) -> None:
        """Answer until the peer is gone, then cancel what is being answered."""
        async with trio.open_nursery() as streams_nursery:
            self._streams_nursery = streams_nursery
            await self._connection.run(self._take)
            streams_nursery.cancel_scope.cancel()

    async def _take(self, frame: Frame) -> None:
        match frame:
            case Open():
                await self._open(frame)
            case Credit():
                # the stream may have ended while this was under way
                if stream := self._known(frame.stream, "credit"):
                    stream.replies.grant(frame.n)
            case Cancel():
                if stream := self._known(frame.stream, "cancel"):
                    stream.scope.cancel()
            case Fail(stream=0):
                log.warning("%s hangs up: %s", self._hello.name, frame.error.message)
            case Hello() | Push() | End() | Fail():
                raise RemoteProtocolError(
                    f"{self._hello.name} sent {type(frame).__name__}, which an opener does not send",
                    where="link",
                )

    def _known(self, stream: int, what: str) -> _Answering | None:
        if stream > self._last_stream:
            raise RemoteProtocolError(f"{what} for stream {stream}, which was never opened", where="link")
        return self._streams.get(stream)

    async def _open(self, opening: Open) -> None:
        if opening.stream <= self._last_stream:
            raise RemoteProtocolError(
                f"stream {opening.stream} was opened after stream {self._last_stream}: ids rise", where="link"
            )
        self._last_stream = opening.stream
        if len(self._streams) >= STREAMS_MAX:
            fault = QueueFull(f"{STREAMS_MAX} streams are open here", where="link", mend="try again later")
            await self._connection.send(Fail(stream=opening.stream, error=info_from(fault)))
            return
        replies = Replies(self._connection, self._hello, opening.stream, 0)
        replies.grant(opening.credit)
        self._streams[opening.stream] = _Answering(replies)
        self._streams_nursery.start_soon(self._answer, opening, self._streams[opening.stream])

    async def _answer(self, opening: Open, answering: _Answering) -> None:
        last: Frame = End(stream=opening.stream)
        try:
            with answering.scope:
                await self._handler(opening.body, answering.replies)
        except RuntimeFault as fault:
            last = Fail(stream=opening.stream, error=info_from(fault))
        except BaseExceptionGroup as group:
            # a handler with a nursery of its own raises its faults in a group
            fault = sole_fault(group)
            if fault is None:
                raise
            last = Fail(stream=opening.stream, error=info_from(fault))
        finally:
            del self._streams[opening.stream]
        try:
            await self._connection.send(last)
        except PeerGone:
            return


async def serve(
    listener: trio.SocketListener,
    handler: Handler,
    *,
    name: str,
    allowed_gids: Collection[int] = (),
    connections_nursery: trio.Nursery | None = None,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Answer every peer that connects, until cancelled; `started` once connections are accepted.

    With a `connections_nursery`, cancelling stops accepting and leaves the open connections to it.
    A bug in `handler` goes up, through whichever nursery holds the connection.
    """
    policy = PeerPolicy(frozenset(allowed_gids))
    slots = trio.CapacityLimiter(CONNECTIONS_MAX)

    async def answer(stream: trio.SocketStream) -> None:
        try:
            policy.check(stream.socket)
            slots.acquire_on_behalf_of_nowait(stream)
        except RemoteProtocolError as fault:
            log.warning("refused a connection: %s", fault)
            await Connection(stream).refuse(fault)
            return
        except trio.WouldBlock:
            log.warning("refused a connection: %d are open", CONNECTIONS_MAX)
            return
        try:
            await serve_stream(stream, handler, name=name)
        finally:
            slots.release_on_behalf_of(stream)

    async with trio.open_nursery() as own_nursery:
        accept = partial(
            trio.serve_listeners, answer, [listener], handler_nursery=connections_nursery or own_nursery
        )
        await own_nursery.start(accept)
        task_status.started()


async def serve_stream(stream: Stream, handler: Handler, *, name: str) -> None:
    """Answer one peer over an open stream until it hangs up; what it does wrong costs only it."""
    connection = Connection(stream)
    hello: Hello | None = None
    with trio.move_on_after(HELLO_S):
        try:
            hello = await shake_hands(connection, name)
        except RuntimeFault as fault:
            log.warning("hung up on a peer: %s", fault)
            await trio.aclose_forcefully(stream)
            return
    if hello is None:
        log.warning("hung up on a peer: it did not greet within %s s", HELLO_S)
        await trio.aclose_forcefully(stream)
        return
    await _Peer(connection, hello, handler).run()
