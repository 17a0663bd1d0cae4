"""hypercorn's trio worker over our listening socket: connections are bounded, and stopping never hangs."""

import logging
import socket

import trio
from hypercorn.config import Config as HypercornConfig
from hypercorn.events import Event, RawData, Updated
from hypercorn.trio.tcp_server import TCPServer
from hypercorn.trio.worker_context import WorkerContext
from hypercorn.typing import ConnectionState
from hypercorn.utils import wrap_app  # pyright: ignore[reportUnknownVariableType]  # it takes WSGI, too
from starlette.types import ASGIApp

log = logging.getLogger(__name__)

MAX_CONNECTIONS = 768  # the request queue and half again; descriptors must be left for runners and files
IDLE_S = 75.0  # clients' pools hold connections for less
SEND_STALL_S = 30.0  # a reader who stopped holds one of the few sequences of a model for no longer
SEND_PIECE_BYTES = 64 << 10
MAX_HEAD_BYTES = 64 << 10


class _Connection:
    """A stream whose end is noticed; hypercorn asks no more of a stream than this."""

    def __init__(self, stream: trio.SocketStream) -> None:
        self.socket = stream.socket
        self.receive_some = stream.receive_some
        self._send_all = stream.send_all
        self.send_eof = stream.send_eof
        self.aclose = stream.aclose

    async def send_all(self, data: bytes) -> None:
        """Send; BrokenResourceError, and the connection is closed, when the client takes nothing any more."""
        for at in range(0, len(data), SEND_PIECE_BYTES):
            with trio.move_on_after(SEND_STALL_S) as patience:
                await self._send_all(data[at : at + SEND_PIECE_BYTES])
            if patience.cancelled_caught:
                self.socket.close()
                log.info("a client took nothing for %.0f s and is cut", SEND_STALL_S)
                raise trio.BrokenResourceError


class _Server(TCPServer):
    """hypercorn's, but for two things.

    That holds a connection as idle, for IDLE_S, after its client has hung up; here it ends.  And that sends
    an answer's head and what follows it one by one; here they go together, and the client is woken once.
    """

    _is_read = False  # to its end
    _head = b""  # waits for what follows

    async def protocol_send(self, event: Event) -> None:
        """hypercorn's protocol has something for the connection."""
        if isinstance(event, RawData) and not self._head and _is_head(event.data):
            self._head = event.data
            return
        head, self._head = self._head, b""
        if isinstance(event, RawData):
            event = RawData(head + event.data)
        elif head:
            await super().protocol_send(RawData(head))
        if not (self._is_read and isinstance(event, Updated)):
            await super().protocol_send(event)

    async def _read_data(self) -> None:
        await super()._read_data()
        self._is_read = True
        await self.idle_task.stop()


def _is_head(data: bytes) -> bool:
    """Of an answer, not one that says that it will come (1xx)."""
    return data.startswith(b"HTTP/1.1 ") and data[9:10] != b"1" and data.endswith(b"\r\n\r\n")


class HttpServer:
    """Serves one ASGI application on one listening socket."""

    def __init__(self, app: ASGIApp) -> None:
        self._config = HypercornConfig()
        self._config.errorlog = log
        self._config.accesslog = None
        self._config.include_server_header = False
        self._config.keep_alive_timeout = IDLE_S
        self._config.h11_max_incomplete_size = MAX_HEAD_BYTES
        self._app = wrap_app(app, self._config.wsgi_max_body_size, "asgi")  # pyright: ignore[reportArgumentType]  # the same ASGI, typed twice
        self._context = WorkerContext(None)
        self._slots = trio.Semaphore(MAX_CONNECTIONS)
        self._open: set[_Connection] = set()
        self._accepting = trio.CancelScope()
        self._emptied = trio.Event()

    @property
    def n_connections(self) -> int:
        """Connections open now."""
        return len(self._open)

    async def serve(self, sock: socket.socket, *, task_status: trio.TaskStatus[None]) -> None:
        """Accept and serve until cancelled; started() when it accepts.  Closes the socket."""
        listener = trio.SocketListener(trio.socket.from_stdlib_socket(sock))
        async with listener, trio.open_nursery() as connections_nursery:
            task_status.started()
            try:
                with self._accepting:
                    await self._accept(listener, connections_nursery)
                await trio.sleep_forever()  # draining
            finally:
                # hypercorn shields its writes, and a reader who stopped would hold us for ever
                for connection in self._open:
                    connection.socket.close()

    async def drain(self) -> None:
        """Accept nothing new, finish what has begun, and wait until every connection is closed."""
        self._accepting.cancel()
        await self._context.terminated.set()
        if self._open:
            await self._emptied.wait()

    async def _accept(self, listener: trio.SocketListener, connections_nursery: trio.Nursery) -> None:
        await trio.serve_listeners(
            self._serve_connection, [_Bounded(listener, self._slots)], handler_nursery=connections_nursery
        )

    async def _serve_connection(self, stream: trio.SocketStream) -> None:
        connection = _Connection(stream)
        self._open.add(connection)
        try:
            state = ConnectionState({})
            await _Server(self._app, self._config, self._context, state, connection)  # pyright: ignore[reportArgumentType]  # it asks no more than _Connection has
        except Exception:  # one connection's bug is not the others' outage
            log.exception("a bug in serving a connection")
        finally:
            connection.socket.close()
            self._open.discard(connection)
            self._slots.release()
            if not self._open:
                self._emptied.set()


class _Bounded(trio.abc.Listener[trio.SocketStream]):
    """A listener that accepts only while there are slots; whoever ends a connection releases its slot."""

    def __init__(self, listener: trio.SocketListener, slots: trio.Semaphore) -> None:
        self._listener = listener
        self._slots = slots

    async def accept(self) -> trio.SocketStream:
        """The next connection."""
        await self._slots.acquire()
        is_accepted = False
        try:
            stream = await self._listener.accept()
            is_accepted = True
        finally:
            if not is_accepted:
                self._slots.release()
        # a client that vanished without a word must not keep its slot for ever
        stream.socket.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        return stream

    async def aclose(self) -> None:
        """Close the listening socket."""
        await self._listener.aclose()
