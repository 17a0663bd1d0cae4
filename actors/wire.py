"""Frames without I/O: bytes in, messages out, and the reverse.

A frame is a little-endian u32 length, then that many bytes of msgpack holding one tagged Struct of
`protocol.Frame`.  The length is judged before the body is read, so a peer cannot make us hold more than
`max_bytes` plus what one read of the socket gives.
"""

import struct
from typing import Final

import msgspec

from actors.errors import LocalProtocolError, RemoteProtocolError
from actors.protocol import Frame

FRAME_MAX_BYTES: Final = 64 << 20
"""Room for a prompt that fills a context of millions of tokens, and little enough to hold a few of."""

_HEADER: Final = struct.Struct("<I")
_encode_body = msgspec.msgpack.Encoder().encode
_decode_body = msgspec.msgpack.Decoder[Frame](Frame).decode


def encode_frame(frame: Frame, max_bytes: int = FRAME_MAX_BYTES) -> bytes:
    """Header and body of one frame; LocalProtocolError when the body is over `max_bytes`."""
    body = _encode_body(frame)
    if len(body) > max_bytes:
        raise LocalProtocolError(
            f"{_describe(frame)} takes {len(body)} bytes, a frame may have {max_bytes}",
            where="wire.encode_frame",
            mend="send less at once",
        )
    return _HEADER.pack(len(body)) + body


def _describe(frame: Frame) -> str:
    body = getattr(frame, "body", None)
    return type(frame).__name__ if body is None else f"{type(frame).__name__} of {type(body).__name__}"


class FrameDecoder:
    """Messages from bytes that arrive cut anywhere.

    `feed` what the socket gave, then call `next_frame` until it answers None.  Any RemoteProtocolError is
    final: the bytes after it have no meaning, and every later call raises it again.
    """

    def __init__(self, max_bytes: int = FRAME_MAX_BYTES) -> None:
        self._max_bytes = max_bytes
        self._buffer = bytearray()
        self._start = 0  # frames before it are decoded; cut off once per feed, not once per frame
        self._broken: RemoteProtocolError | None = None

    @property
    def is_midway(self) -> bool:
        """A frame has begun and is not complete (once `next_frame` has answered None)."""
        return len(self._buffer) > self._start

    def feed(self, data: bytes | bytearray) -> None:
        """Take bytes as they came."""
        if self._start:
            del self._buffer[: self._start]
            self._start = 0
        self._buffer += data

    def next_frame(self) -> Frame | None:
        """The next complete message, or None; RemoteProtocolError names what is wrong with the bytes."""
        if self._broken is not None:
            raise self._broken
        begin = self._start + _HEADER.size
        if len(self._buffer) < begin:
            return None
        (n_bytes,) = _HEADER.unpack_from(self._buffer, self._start)
        if n_bytes > self._max_bytes:
            raise self._break(f"a frame of {n_bytes} bytes was announced, {self._max_bytes} is the most")
        if len(self._buffer) < begin + n_bytes:
            return None
        self._start = begin + n_bytes
        try:
            with memoryview(self._buffer) as view:
                return _decode_body(view[begin : self._start])
        except (ValueError, RecursionError) as exc:
            # msgspec's errors are ValueErrors and end with the path of the field, like `$.body.n_predict`
            raise self._break(f"a frame does not decode: {exc}") from exc

    def _break(self, message: str) -> RemoteProtocolError:
        self._broken = RemoteProtocolError(
            message, where="wire.FrameDecoder", mend="speak the protocol of docs/protocol.md"
        )
        return self._broken
