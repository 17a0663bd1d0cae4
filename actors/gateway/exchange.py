"""One HTTP request and its answer, over ASGI.

A handler gets an Exchange, reads the body, and answers with one value or with a stream.  What it raises
before the first byte becomes a status and an error body; after it, an error at the end of the stream.  When
the client goes away the handler is cancelled, whether it streams or not.

Before the first value of a stream a handler may `tell` what it waits for.  Where the API has comments, the
latest of that is sent now and then; the status line, 200, goes with the first of them.

ASGI servers queue what the client sends and stop reading when the queue is full; so something must always be
taking from it, also while the answer is written.  That is `Exchange.watch`.
"""

import logging
from collections.abc import Awaitable, Callable, Mapping

import msgspec
import trio
from starlette.requests import Request
from starlette.types import Message, Receive, Scope, Send

from actors.errors import RequestError, RuntimeFault
from actors.faults import sole_fault
from actors.gateway.dialect import NATIVE, Dialect
from actors.gateway.draining import take_rest, wait_gone
from actors.gateway.fields import Fields, read_fields
from actors.gateway.metrics import Metrics
from actors.gateway.teller import Teller

log = logging.getLogger(__name__)

BODY_STALL_S = 60.0  # a client that sends nothing for so long in the middle of a body is not coming back
BIG_JSON_BYTES = 1 << 20  # decoding more than this takes so long that the loop should not wait for it

CLIENT_GONE = 499  # nginx's number, which Ollama uses too

Handler = Callable[["Exchange"], Awaitable[None]]


class BodyTooLarge(RequestError):
    """More bytes than `max_body_bytes`."""

    http_status = 413


class BodyStalled(RequestError):
    """The rest of a body did not come."""

    http_status = 408


class ClientGone(Exception):
    """The client hung up before its request was complete: there is nobody to answer."""


class Exchange:
    """A request, and the means to answer it."""

    def __init__(
        self,
        scope: Scope,
        receive: Receive,
        send: Send,
        nursery: trio.Nursery,
        dialect: Dialect,
        max_body_bytes: int,
    ) -> None:
        self.request = Request(scope)
        self.dialect = dialect
        self.status = 0  # 0: nothing was sent yet
        self.is_ending = False  # the last part of the answer is on its way, or sent
        self._receive = receive
        self._send = send
        self._nursery = nursery
        self._max_body_bytes = max_body_bytes
        self._body = b""
        self._has_body = True  # some of it may still come
        self._is_watching = False
        self._teller: Teller | None = None

    @property
    def is_started(self) -> bool:
        """Whether the status line has been sent."""
        return self.status != 0

    # --- reading

    async def load_body(self) -> None:
        """Take in the whole body; BodyTooLarge, BodyStalled, ClientGone."""
        parts: list[bytes] = []
        n_bytes = 0
        while (part := await self.next_part()) is not None:
            n_bytes += len(part)
            if n_bytes > self._max_body_bytes:
                parts.clear()
                if self._has_body:
                    await take_rest(self._receive)
                raise BodyTooLarge(
                    f"the request body is larger than {self._max_body_bytes} bytes",
                    where="body",
                    mend="raise max_body_bytes in the configuration",
                )
            parts.append(part)
        self._body = b"".join(parts)
        self.watch()

    async def next_part(self) -> bytes | None:
        """The next bytes of the body, None after the last; BodyStalled, ClientGone."""
        if not self._has_body:
            return None
        message = await self._next_message()
        if message["type"] == "http.disconnect":
            raise ClientGone
        self._has_body = message.get("more_body", False)
        return message.get("body", b"")

    async def fields(self, struct: str) -> Fields:
        """The body as a JSON object; `struct` is the request's kind, for error texts."""
        encoding = self.request.headers.get("content-encoding", "identity")
        if encoding != "identity":
            raise RequestError(f"content-encoding {encoding[:40]!r} is not supported", where="headers")
        if len(self._body) < BIG_JSON_BYTES:
            return self._fields(struct)
        return await trio.to_thread.run_sync(self._fields, struct)

    def _fields(self, struct: str) -> Fields:
        return read_fields(self._body, struct, empty_text=self.dialect.empty_body_text)

    async def _next_message(self) -> Message:
        with trio.move_on_after(BODY_STALL_S):
            return await self._receive()
        raise BodyStalled(f"no byte of the request body came for {BODY_STALL_S:.0f} s", where="body")

    def watch(self) -> None:
        """From now on take and drop what the client sends, and cancel the nursery when it hangs up."""
        if not self._is_watching:
            self._is_watching = True
            self._nursery.start_soon(self._watch)

    async def _watch(self) -> None:
        await wait_gone(self._receive)
        # after a complete answer the server says "disconnect" too, while it is still tidying up
        if not self.is_ending:
            self._nursery.cancel_scope.cancel()

    # --- answering

    def tell(self, news: object) -> None:
        """What is waited for now, as its str(); the answer must be a stream."""
        if not self.dialect.has_comments:
            return
        if self._teller is None:
            self._teller = Teller(self._comment)
            self._nursery.start_soon(self._teller.run)
        self._teller.news = str(news)

    async def _comment(self, text: str) -> None:
        await self._open_stream()
        await self._write(self.dialect.comment(text))

    async def _hush(self) -> None:
        """The answer comes: one task alone writes it."""
        if self._teller is not None:
            await self._teller.stop()

    async def reply(
        self, value: object, status: int = 200, headers: Mapping[bytes, bytes] | None = None
    ) -> None:
        """Answer with one JSON value."""
        body = msgspec.json.encode(value)
        await self.reply_bytes(body, "application/json; charset=utf-8", status, headers)

    async def reply_text(self, text: str, status: int = 200) -> None:
        """Answer with plain text."""
        await self.reply_bytes(text.encode(), "text/plain; charset=utf-8", status)

    async def reply_bytes(
        self,
        body: bytes,
        media_type: str = "",
        status: int = 200,
        headers: Mapping[bytes, bytes] | None = None,
    ) -> None:
        """Answer with a body of known length; no media type: an empty one."""
        about = [(b"content-length", str(len(body)).encode())]
        if media_type:
            about.append((b"content-type", media_type.encode()))
        await self._hush()
        await self._start(status, [*about, *(headers or {}).items()])
        await self._write(body, is_last=True)

    async def push(self, value: object) -> None:
        """Send one value of a stream; the first one starts it.  Waits while the client does not read."""
        await self._hush()
        await self._open_stream()
        await self._write(self.dialect.frame(value))

    async def finish(self, tail: bytes = b"") -> None:
        """End a stream, after `tail`."""
        await self._hush()
        await self._open_stream()
        if tail:
            await self._write(tail)
        await self._write(b"", is_last=True)

    async def fail(self, fault: RuntimeFault) -> None:
        """Tell of a fault in the way that is still possible."""
        await self._hush()
        if self.is_ending:
            return
        if self.is_started:
            await self.push(self.dialect.error(fault))
            await self.finish()
        else:
            retry = {b"retry-after": str(fault.retry_after_s).encode()} if fault.retry_after_s else {}
            await self.reply(self.dialect.error(fault), fault.http_status, retry)

    async def _open_stream(self) -> None:
        if not self.is_started:
            await self._start(
                200, [(b"content-type", self.dialect.media_type.encode()), (b"cache-control", b"no-cache")]
            )

    async def _start(self, status: int, headers: list[tuple[bytes, bytes]]) -> None:
        self.watch()
        self.status = status
        await self._send({"type": "http.response.start", "status": status, "headers": headers})

    async def _write(self, body: bytes, *, is_last: bool = False) -> None:
        self.is_ending = self.is_ending or is_last
        await self._send({"type": "http.response.body", "body": body, "more_body": not is_last})


class Endpoint:
    """An ASGI application around a handler; Starlette's routes take it as it is.

    With `loads_body` False the handler reads the body itself, as it comes, and of any length.
    """

    def __init__(
        self,
        handler: Handler,
        *,
        name: str,
        metrics: Metrics,
        max_body_bytes: int,
        dialect: Dialect = NATIVE,
        loads_body: bool = True,
    ) -> None:
        self._handler = handler
        self._name = name
        self._metrics = metrics
        self._max_body_bytes = max_body_bytes
        self._dialect = dialect
        self._loads_body = loads_body

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request.  Nothing foreseen leaves here, and no bug of a handler either."""
        began_s = trio.current_time()
        with self._metrics.in_flight():
            async with trio.open_nursery() as nursery:
                exchange = Exchange(scope, receive, send, nursery, self._dialect, self._max_body_bytes)
                fault = await self._handle(exchange)
                if fault is not None:
                    await exchange.fail(fault)
                nursery.cancel_scope.cancel()
        took_s = trio.current_time() - began_s
        status = exchange.status if exchange.is_ending else CLIENT_GONE
        self._metrics.answered(self._name, status, took_s)
        log.info(
            "%s %s %d",
            scope["method"],
            scope["path"],
            status,
            extra={"status": status, "took_s": round(took_s, 4)},
        )

    async def _handle(self, exchange: Exchange) -> RuntimeFault | None:
        """Run the handler; what is to be told to the client, if anything."""
        try:
            if self._loads_body:
                await exchange.load_body()
            await self._handler(exchange)
        except ClientGone:
            return None
        except RuntimeFault as fault:
            return fault
        except ExceptionGroup as group:
            fault = sole_fault(group)
            return fault if fault is not None else self._bug()
        except Exception:  # noqa: BLE001 (one request's bug is not the others' outage)
            return self._bug()
        return None

    def _bug(self) -> RuntimeFault:
        log.exception("a bug in %s", self._name)
        return RuntimeFault("internal error", where=self._name, mend="see the log; please report it")
