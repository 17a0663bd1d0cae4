"""Packed strings are found whatever they hold, and refused when one leads outside."""

import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from actors.runner.gguf.strings import StringArray, string_starts

words = st.text(min_size=1, max_size=20).map(str.encode)
awkward = st.one_of(
    st.just(b""),
    st.integers(1, 24).map(bytes),  # zeros
    st.sampled_from([255, 256, 257, 600]).map(lambda n: b"x" * n),
    st.binary(max_size=30),
    st.binary(max_size=12).map(
        lambda raw: struct.pack("<Q", len(raw)) + raw
    ),  # looks like a string inside one
)


def packed(items: list[bytes]) -> bytes:
    return b"".join(struct.pack("<Q", len(item)) + item for item in items)


def found(items: list[bytes], before: bytes = b"", after: bytes = b"") -> list[bytes]:
    data = before + packed(items) + after
    starts = string_starts(memoryview(data), len(before), len(items))
    assert starts is not None
    return StringArray(data, starts).tolist_bytes()


@given(st.lists(words | awkward, max_size=60), st.binary(max_size=9), st.binary(max_size=40))
@settings(max_examples=400, deadline=None)
def test_any_strings_are_found_between_any_bytes(items: list[bytes], before: bytes, after: bytes) -> None:
    assert found(items, before, after) == items


@given(st.lists(st.text(st.characters(codec="utf-8"), max_size=12), max_size=20))
def test_packing_strings_gives_them_back(items: list[str]) -> None:
    assert StringArray.of(items).tolist() == items


@given(st.lists(words | awkward, min_size=1, max_size=20), st.data())
@settings(max_examples=200, deadline=None)
def test_strings_cut_anywhere_lead_outside(items: list[bytes], data: st.DataObject) -> None:
    whole = packed(items)
    n_left = data.draw(st.integers(0, len(whole) - 1))
    assert string_starts(memoryview(whole[:n_left]), 0, len(items)) is None


@pytest.mark.parametrize("length", [2**31, 2**63 - 1, 2**63, 2**64 - 8, 2**64 - 1])
def test_a_length_beyond_any_file_leads_outside(length: int) -> None:
    assert string_starts(memoryview(packed([b"a"]) + struct.pack("<Q", length) + bytes(64)), 0, 3) is None
