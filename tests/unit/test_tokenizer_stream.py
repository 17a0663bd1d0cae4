"""Detokenising a stream: every byte comes out once, whatever the cuts."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from actors.runner.tokenizer import TextStream


def cut(data: bytes, places: list[int]) -> list[bytes]:
    edges = [0, *sorted(place % (len(data) + 1) for place in places), len(data)]
    return [data[a:b] for a, b in itertools.pairwise(edges)]


def stream(pieces: list[bytes]) -> str:
    out = TextStream()
    return "".join([*map(out.push, pieces), out.flush()])


@given(st.binary(max_size=60), st.lists(st.integers(0, 60), max_size=20))
def test_bytes_cut_anywhere_give_the_text_of_the_whole(data: bytes, places: list[int]) -> None:
    assert stream(cut(data, places)) == data.decode("utf-8", "replace")


@given(st.text(max_size=30))
def test_text_fed_byte_by_byte_comes_out_unchanged(text: str) -> None:
    assert stream([bytes((byte,)) for byte in text.encode()]) == text


@given(st.lists(st.binary(max_size=6), max_size=12))
def test_at_most_three_bytes_are_held_and_none_is_lost(pieces: list[bytes]) -> None:
    out, text, fed = TextStream(), "", b""
    for piece in pieces:
        fed += piece
        text += out.push(piece)
        assert len(out.held) <= 3
        assert fed.endswith(out.held)
        assert text == fed[: len(fed) - len(out.held)].decode("utf-8", "replace")


@pytest.mark.parametrize("char", ["é", "€", "🦙"])
def test_a_character_is_held_until_its_last_byte(char: str) -> None:
    out, data = TextStream(), char.encode()
    assert [out.push(data[i : i + 1]) for i in range(len(data))] == [""] * (len(data) - 1) + [char]


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (b"a\xffb", "a\ufffdb"),
        (b"\xe2\x82 end", "\ufffd end"),
        (b"\xf0\x9f\xa6", "\ufffd"),
        (b"\xff\xfe\xfd!", "\ufffd\ufffd\ufffd!"),
        (b"\xed\xa0\x80", "\ufffd\ufffd\ufffd"),
    ],
)
def test_what_is_no_utf8_becomes_one_mark_each_and_what_follows_stays(data: bytes, text: str) -> None:
    assert stream([data]) == text


def test_a_flushed_stream_is_ready_for_another_text() -> None:
    out = TextStream()
    out.push(b"\xe2\x82")
    assert out.flush() == "\ufffd"
    assert (out.held, out.push(b"\xacx"), out.flush()) == (b"", "\ufffdx", "")
