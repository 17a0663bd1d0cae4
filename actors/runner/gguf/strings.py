"""Arrays of strings in a GGUF file: finding where each lies, fast, and keeping them undecoded.

A string is 8 bytes of length and then its bytes, so where one begins depends on the one before, and a
vocabulary with its merges has some 400 000 of them to walk.  Instead, guess all at once and prove it: text
has no zero bytes, and a length below 256 has seven, so the places before seven zeros are nearly always the
beginnings.  A guess counts only as far as each place plus its length is the next place, which is what walking
finds.  Where it fails (a long or an empty string, zeros in the text), walk a little, then guess on.
Measured on the 408 403 strings of llama 3, on two busy cores: 72 ms walking, 35 ms guessing.
"""

import itertools
import struct
from array import array
from collections.abc import Sequence
from typing import overload

import numpy as np
from numpy.typing import NDArray

LENGTH_BYTES = 8
WINDOW_BYTES = 1 << 20  # looked at in one guess: few steps for a vocabulary, little waste at its end
MIN_WALK_N = 16
MAX_WALK_N = 1 << 16

I64 = NDArray[np.int64]
_LENGTH = struct.Struct("<Q")


class StringArray(Sequence[str]):
    """An array of strings, kept as one run of bytes and decoded when asked for.

    Items that are not UTF-8 decode with `surrogateescape`: different bytes stay different strings, and
    `.encode("utf-8", "surrogateescape")` gives the bytes back.  It lives on after its file is closed.
    """

    __slots__ = ("_data", "_starts")

    def __init__(self, data: bytes, starts: I64) -> None:
        """data: per item 8 bytes of length, then its bytes; starts [n + 1]: of each length, and the end."""
        self._data = data
        self._starts = starts

    def __len__(self) -> int:
        return len(self._starts) - 1

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> list[str]: ...
    def __getitem__(self, index: int | slice) -> str | list[str]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        return self.item_bytes(index).decode("utf-8", "surrogateescape")

    def item_bytes(self, index: int) -> bytes:
        """One item as it stands in the file; IndexError when there is none."""
        index = range(len(self))[index]
        return self._data[int(self._starts[index]) + LENGTH_BYTES : int(self._starts[index + 1])]

    def tolist(self) -> list[str]:
        """All items as strings."""
        return [item.decode("utf-8", "surrogateescape") for item in self.tolist_bytes()]

    def tolist_bytes(self) -> list[bytes]:
        """All items as they stand in the file."""
        data, starts = self._data, self._starts.tolist()
        return [data[start + LENGTH_BYTES : end] for start, end in itertools.pairwise(starts)]

    def max_bytes(self) -> int:
        """Length of the longest item, 0 when there is none."""
        return int(np.diff(self._starts).max()) - LENGTH_BYTES if len(self) else 0

    def __repr__(self) -> str:
        return f"<{len(self)} strings>"


def string_starts(view: memoryview, begin: int, n: int) -> I64 | None:
    """Where each of the n strings from begin on starts, and where the last ends, [n + 1].

    None if any of them leads outside the view.
    """
    parts = [np.array([begin], dtype=np.int64)]
    n_walk = MIN_WALK_N
    while n > 0:
        ends = guess_ends(view, int(parts[-1][-1]), n)
        # guesses that keep failing cost more than walking: walk longer each time, short after a success
        n_walk = MIN_WALK_N if len(ends) > n_walk else min(2 * n_walk, MAX_WALK_N)
        if len(ends) == 0:
            walked = walk_ends(view, int(parts[-1][-1]), min(n, n_walk))
            if walked is None:
                return None
            ends = walked
        if ends[-1] > len(view):
            return None
        parts.append(ends)
        n -= len(ends)
    return np.concatenate(parts)


def guess_ends(view: memoryview, pos: int, n: int) -> I64:
    """Where strings end, for as many (at most n, perhaps none) of those from pos on as a guess can prove.

    The last may end outside the view.
    """
    window = np.frombuffer(view[pos : pos + WINDOW_BYTES], dtype=np.uint8)
    if len(window) < LENGTH_BYTES:
        return np.empty(0, dtype=np.int64)
    zeros_1 = window == 0
    zeros_2 = zeros_1[:-1] & zeros_1[1:]
    zeros_4 = zeros_2[:-2] & zeros_2[2:]
    zeros_7 = zeros_4[:-3] & zeros_4[3:]
    places = np.flatnonzero(zeros_7[1:])[:n]
    if len(places) == 0 or places[0] != 0:
        return np.empty(0, dtype=np.int64)
    ends = places + LENGTH_BYTES + window[places]
    breaks = np.flatnonzero(ends[:-1] != places[1:])
    n_proven = int(breaks[0]) + 1 if len(breaks) else len(ends)
    return ends[:n_proven] + pos


def walk_ends(view: memoryview, pos: int, n: int) -> I64 | None:
    """Where the n strings from pos on end, one after the other; None if the next has its length outside."""
    ends = array("q")
    push, length_at = ends.append, _LENGTH.unpack_from
    try:
        for _ in range(n):
            pos += LENGTH_BYTES + length_at(view, pos)[0]
            push(pos)
    except (struct.error, OverflowError):  # beyond the view, or beyond any view
        return None
    return np.frombuffer(ends, dtype=np.int64)
