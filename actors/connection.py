"""One connection: hello, one reader, one writer, and who may be at the other end; `link.py` adds streams."""

import logging
import os
import socket
import struct
from collections.abc import Awaitable, Callable
from typing import Final

import msgspec
import trio
from trio.abc import Stream

from actors.errors import ConfigError, PeerGone, RemoteProtocolError, RuntimeFault
from actors.faults import fault_from, info_from
from actors.protocol import PROTOCOL_VERSION, Fail, Frame, Hello
from actors.version import VERSION
from actors.wire import FrameDecoder, encode_frame

log = logging.getLogger(__name__)

HELLO_S: Final = 5.0
"""From connecting to the peer's hello; a live actor greets at once."""
FRAME_S: Final = 10.0
"""Spent waiting for the rest of a frame that has begun; 64 MiB over a Unix socket take under a second."""
GOODBYE_S: Final = 1.0
"""For telling the peer why we hang up."""
OUTBOX_MAX: Final = 64
"""Frames between the tasks and the writer: enough to join small ones, few enough that full is felt soon."""
READ_BYTES: Final = 1 << 18
WRITE_BYTES: Final = 1 << 18
"""Small frames are joined up to about this before they are written."""
UNIX_PATH_MAX: Final = 107
SO_PEERGROUPS: Final = 59  # not in the socket module


def unix_path(address: str) -> str:
    """The path of a "unix:PATH" address; ConfigError when it is not one, or longer than a socket may be."""
    kind, _, path = address.partition(":")
    if kind != "unix" or not path:
        raise ConfigError(
            f'"{address}" is not an address', where="address", mend='write "unix:" and the path of a socket'
        )
    if len(os.fsencode(path)) > UNIX_PATH_MAX:
        raise ConfigError(
            f"the socket path {path} has more than the {UNIX_PATH_MAX} bytes that a Unix socket may have",
            where="run_dir",
            mend="set RUNTIME_RUN_DIR to a shorter path",
        )
    return path


class PeerPolicy(msgspec.Struct, frozen=True):
    """Who may be at the other end of a Unix socket: our own user, root, or a member of an allowed group."""

    gids: frozenset[int] = frozenset()

    def check(self, sock: trio.socket.SocketType) -> None:
        """RemoteProtocolError, naming the peer's user, when it may not talk to us."""
        raw = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
        pid, uid, gid = struct.unpack("3i", raw)
        if uid in (os.getuid(), 0) or (self.gids and self.gids & {gid, *_peer_groups(sock)}):
            return
        raise RemoteProtocolError(
            f"process {pid} of user {uid} may not talk to the runtime of user {os.getuid()}",
            where="link",
            mend="run it as the same user, or name a group of both with RUNTIME_GROUP",
        )

    async def connect(self, address: str) -> trio.SocketStream:
        """A stream to whoever listens; PeerGone when nobody does."""
        path = unix_path(address)
        try:
            stream = await trio.open_unix_socket(path)
        except OSError as exc:
            raise PeerGone(
                f"nobody listens at {path}: {exc.strerror or exc}", where="link", mend="start it: runtime up"
            ) from exc
        if os.getuid() != 0:  # root has nothing to fear from the users it could read anyway
            try:
                self.check(stream.socket)
            except RemoteProtocolError:
                await trio.aclose_forcefully(stream)
                raise
        return stream


def _peer_groups(sock: trio.socket.SocketType) -> tuple[int, ...]:
    """Supplementary groups of the peer; the kernel tells how many there are by ERANGE, so ask with room."""
    try:
        raw = sock.getsockopt(socket.SOL_SOCKET, SO_PEERGROUPS, 4 * 1024)
    except OSError:
        return ()  # kernels before 4.13 do not have it: the primary group alone counts
    return struct.unpack(f"{len(raw) // 4}I", raw)


class Connection:
    """Frames both ways over a stream.  Any task may `send`; `run` reads, writes and closes.

    Once it is gone, for whatever reason, `send` raises PeerGone with that reason.
    """

    def __init__(self, stream: Stream) -> None:
        self.peer_name = "the peer"
        self._stream = stream
        self._decoder = FrameDecoder()
        self._outbox, self._unsent = trio.open_memory_channel[bytes](OUTBOX_MAX)
        self._is_flushed = trio.Event()
        self._scope = trio.CancelScope()
        self._why_gone = ""

    @property
    def is_gone(self) -> bool:
        """Whether it has ended, or is about to."""
        return bool(self._why_gone)

    def gone(self) -> PeerGone:
        """The error for whoever still waits on this connection."""
        why = self._why_gone or "it closed"
        return PeerGone(f"the link to {self.peer_name} is gone: {why}", where="link")

    async def send(self, frame: Frame) -> None:
        """Queue a frame, waiting for room; PeerGone when the link is gone, LocalProtocolError if too long."""
        if self._why_gone:
            raise self.gone()
        try:
            await self._outbox.send(encode_frame(frame))
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            raise self.gone() from None

    def offer(self, frame: Frame) -> bool:
        """Queue a frame if there is room now; False when there is none or the link is gone.

        LocalProtocolError if too long.
        """
        if self._why_gone:
            return False
        try:
            self._outbox.send_nowait(encode_frame(frame))
        except (trio.WouldBlock, trio.BrokenResourceError, trio.ClosedResourceError):
            return False
        return True

    def hang_up(self, why: str) -> None:
        """End `run` soon, for this reason."""
        self._why_gone = self._why_gone or why
        self._scope.cancel()

    async def greet(self, name: str) -> None:
        """Write our hello."""
        hello = Hello(name=name, pid=os.getpid(), version=PROTOCOL_VERSION, build=VERSION)
        await self._write(encode_frame(hello))

    async def read(self) -> Frame | None:
        """The next frame, or None when the peer hung up between frames.

        RemoteProtocolError when it hung up inside a frame or left one unfinished for FRAME_S, or for what it
        sent.  Only time spent waiting for the peer counts, not time in which we were busy elsewhere.
        """
        waited_s = 0.0
        data: bytes | bytearray = b""
        while (frame := self._decoder.next_frame()) is None:
            if not self._decoder.is_midway:
                data = await self._receive()
            else:
                began_s = trio.current_time()
                with trio.move_on_after(FRAME_S - waited_s) as scope:
                    data = await self._receive()
                if scope.cancelled_caught:
                    raise RemoteProtocolError(
                        f"a frame begun was not completed within {FRAME_S} s", where="link"
                    )
                waited_s += trio.current_time() - began_s
            if not data:
                if self._decoder.is_midway:
                    raise RemoteProtocolError("hung up in the middle of a frame", where="link")
                return None
            self._decoder.feed(data)
        return frame

    async def run(self, take: Callable[[Frame], Awaitable[None]]) -> None:
        """Read and write until either side hangs up; `take` gets each frame, and hangs up by a RuntimeFault.

        The reader goes on when the writer has failed: what the peer sent before it died still counts.
        """
        try:
            with self._scope:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._write_outbox)
                    await self._read_all(take)
                    nursery.cancel_scope.cancel()
        finally:
            self._why_gone = self._why_gone or "we stopped"
            self._unsent.close()
            await trio.aclose_forcefully(self._stream)

    async def refuse(self, fault: RuntimeFault) -> None:
        """Tell the peer why we hang up, if it listens; nothing else may be writing."""
        with trio.move_on_after(GOODBYE_S, shield=True):
            try:
                await self._write(encode_frame(Fail(stream=0, error=info_from(fault))))
            except PeerGone:
                return

    async def _read_all(self, take: Callable[[Frame], Awaitable[None]]) -> None:
        try:
            while (frame := await self.read()) is not None:
                await take(frame)
            self._why_gone = self._why_gone or "it hung up"
        except RuntimeFault as fault:
            self._why_gone = self._why_gone or fault.message
            if isinstance(fault, RemoteProtocolError):
                log.warning("hung up on %s: %s", self.peer_name, fault.message)
                await self._say_goodbye(fault)

    async def _say_goodbye(self, fault: RemoteProtocolError) -> None:
        # through the outbox: the writer may be half way through a frame
        with trio.move_on_after(GOODBYE_S):
            try:
                await self._outbox.send(encode_frame(Fail(stream=0, error=info_from(fault))))
            except (trio.BrokenResourceError, trio.ClosedResourceError):
                return
            self._outbox.close()
            await self._is_flushed.wait()

    async def _write_outbox(self) -> None:
        """Write what is queued, small frames joined, until the outbox is closed or the peer reads no more."""
        try:
            async for first in self._unsent:
                await trio.lowlevel.checkpoint()  # who runs now may have more, and the peer is woken once
                batch = bytearray(first)
                while len(batch) < WRITE_BYTES:
                    try:
                        batch += self._unsent.receive_nowait()
                    except (trio.WouldBlock, trio.EndOfChannel):
                        break
                await self._write(batch)
        except PeerGone:
            self._unsent.close()  # whoever waits for room hears of it; the reader sees the end by itself
        finally:
            self._is_flushed.set()

    async def _receive(self) -> bytes | bytearray:
        try:
            return await self._stream.receive_some(READ_BYTES)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            return b""

    async def _write(self, data: bytes | bytearray) -> None:
        try:
            await self._stream.send_all(data)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            self._why_gone = self._why_gone or "it hung up"
            raise self.gone() from None


async def shake_hands(connection: Connection, name: str) -> Hello:
    """Greet, and the peer's greeting; the caller sets a deadline.

    RemoteProtocolError when the peer greets with another version, with something else, or with a refusal;
    PeerGone when it hangs up.  The peer is told why when it is at fault.
    """
    await connection.greet(name)
    try:
        match await connection.read():
            case None:
                raise PeerGone("the peer hung up before it greeted", where="link")
            case Fail(stream=0) as refusal:
                raise fault_from(refusal.error)
            case Hello() as hello:
                connection.peer_name = hello.name
                check_version(hello)
                return hello
            case frame:
                kind = type(frame).__name__
                raise RemoteProtocolError(f"the first frame is a {kind}, not a Hello", where="link")
    except RemoteProtocolError as fault:
        await connection.refuse(fault)
        raise


def check_version(hello: Hello) -> None:
    """RemoteProtocolError, naming both versions, unless the peer speaks ours."""
    if hello.version != PROTOCOL_VERSION:
        raise RemoteProtocolError(
            f"{hello.name} (build {hello.build}) speaks protocol version {hello.version}, "
            f"this is version {PROTOCOL_VERSION} (build {VERSION})",
            where="link",
            mend="restart the runtime, so that all its processes and clients come from one installation",
        )
