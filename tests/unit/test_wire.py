"""Frames: bytes cut anywhere decode alike, and bad ones name what is wrong."""

import struct

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from actors.errors import LocalProtocolError, RemoteProtocolError
from actors.protocol import Chunk, Credit, End, Frame, Hello, Open, Push, Tokenize
from actors.wire import FRAME_MAX_BYTES, FrameDecoder, encode_frame

ids = st.integers(0, 2**31 - 1)
frames = st.one_of(
    st.builds(Hello, name=st.text(), pid=ids, version=ids, build=st.text()),
    st.builds(Open, stream=ids, credit=ids, body=st.builds(Tokenize, text=st.text())),
    st.builds(
        Push, stream=ids, body=st.builds(Chunk, text=st.text(), tokens=st.lists(ids, max_size=9).map(tuple))
    ),
    st.builds(Credit, stream=ids, n=ids),
    st.builds(End, stream=ids),
)


def decode_all(pieces: list[bytes]) -> list[Frame]:
    decoder = FrameDecoder()
    found: list[Frame] = []
    for piece in pieces:
        decoder.feed(piece)
        while (frame := decoder.next_frame()) is not None:
            found.append(frame)
    assert not decoder.is_midway
    return found


def framed(body: bytes) -> bytes:
    return struct.pack("<I", len(body)) + body


@given(sent=st.lists(frames, max_size=5), data=st.data())
def test_frames_cut_at_any_bytes_decode_alike(sent: list[Frame], data: st.DataObject) -> None:
    stream = b"".join(encode_frame(frame) for frame in sent)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=8)))
    pieces = [stream[a:b] for a, b in zip([0, *cuts], [*cuts, len(stream)], strict=True)]
    assert decode_all(pieces) == sent


@given(sent=st.lists(frames, max_size=3))
def test_frames_decode_byte_by_byte(sent: list[Frame]) -> None:
    stream = b"".join(encode_frame(frame) for frame in sent)
    assert decode_all([stream[i : i + 1] for i in range(len(stream))]) == sent


@given(garbage=st.binary(max_size=200))
def test_garbage_is_a_protocol_error_or_an_unfinished_frame(garbage: bytes) -> None:
    decoder = FrameDecoder()
    decoder.feed(garbage)
    try:
        while decoder.next_frame() is not None:
            pass
    except RemoteProtocolError:
        with pytest.raises(RemoteProtocolError):
            decoder.next_frame()


@given(body=st.binary(max_size=200))
def test_a_garbage_body_is_a_protocol_error(body: bytes) -> None:
    decoder = FrameDecoder()
    decoder.feed(framed(body))
    with pytest.raises(RemoteProtocolError, match="does not decode"):
        decoder.next_frame()


def test_a_long_frame_is_refused_before_its_body_is_there() -> None:
    decoder = FrameDecoder()
    decoder.feed(struct.pack("<I", FRAME_MAX_BYTES + 1))
    with pytest.raises(
        RemoteProtocolError, match=rf"{FRAME_MAX_BYTES + 1} bytes.*{FRAME_MAX_BYTES} is the most"
    ):
        decoder.next_frame()


def test_a_frame_of_just_the_greatest_length_passes() -> None:
    frame = encode_frame(End(stream=1))
    decoder = FrameDecoder(max_bytes=len(frame) - 4)
    decoder.feed(frame)
    assert decoder.next_frame() == End(stream=1)


def test_sending_a_long_frame_is_our_own_error() -> None:
    with pytest.raises(LocalProtocolError, match=r"Open of Tokenize takes \d+ bytes, a frame may have 100"):
        encode_frame(Open(stream=1, credit=1, body=Tokenize(text="x" * 100)), max_bytes=100)


def test_a_wrong_field_is_named() -> None:
    decoder = FrameDecoder()
    body = {"type": "Open", "stream": 1, "credit": 1, "body": {"type": "Tokenize", "text": 5}}
    decoder.feed(framed(msgspec.msgpack.encode(body)))
    with pytest.raises(RemoteProtocolError, match=r"\$\.body\.text"):
        decoder.next_frame()


def test_an_unknown_message_is_named() -> None:
    decoder = FrameDecoder()
    decoder.feed(framed(msgspec.msgpack.encode({"type": "Explode"})))
    with pytest.raises(RemoteProtocolError, match="Explode"):
        decoder.next_frame()


@pytest.mark.parametrize(
    "body",
    [
        b"\x81\xa1a" * 100_000,  # maps in maps
        b"\x82\xa1a" + b"\x91" * 100_000,  # arrays in arrays, in a field that is to be skipped
        b"\xdd\xff\xff\xff\xff",  # an array of 2**32 - 1
        b"\xdf\xff\xff\xff\xff",  # a map of them
        b"\xa5\xff\xff\xff\xff\xff",  # text that is not UTF-8
    ],
)
def test_hostile_bodies_cost_nothing_but_an_error(body: bytes) -> None:
    decoder = FrameDecoder()
    decoder.feed(framed(body))
    with pytest.raises(RemoteProtocolError):
        decoder.next_frame()


def test_a_begun_frame_is_midway_and_a_finished_one_is_not() -> None:
    decoder = FrameDecoder()
    frame = encode_frame(End(stream=1))
    decoder.feed(frame[:6])
    assert decoder.next_frame() is None
    assert decoder.is_midway
    decoder.feed(frame[6:])
    assert decoder.next_frame() == End(stream=1)
    assert not decoder.is_midway
