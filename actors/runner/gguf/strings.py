"""Arrays of strings in a GGUF file: finding where each lies, and keeping them undecoded.

A string is 8 bytes of length and then its bytes, so where one begins depends on the one before, and a
vocabulary with its merges has some 400 000 of them to walk: native code does.
"""

import itertools
import struct
from collections.abc import Iterable, Sequence
from typing import Self, overload

import numpy as np
from numpy.typing import NDArray

from actors.runner import _native

LENGTH_BYTES = 8

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

    @classmethod
    def of(cls, items: Iterable[str]) -> Self:
        """The same, made of strings; surrogates stand for bytes that are no UTF-8."""
        raw = [item.encode("utf-8", "surrogateescape") for item in items]
        data = b"".join(_LENGTH.pack(len(item)) + item for item in raw)
        return cls(data, np.cumsum([0, *(LENGTH_BYTES + len(item) for item in raw)], dtype=np.int64))

    @property
    def data(self) -> bytes:
        """Per item 8 bytes of length, then its bytes."""
        return self._data

    @property
    def starts(self) -> I64:
        """Where each item's length begins in `data`, and where the last item ends, [n + 1]."""
        return self._starts

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
    ends = _native.string_ends(np.frombuffer(view, np.uint8), begin, n)
    return None if ends is None else np.concatenate((np.array([begin], np.int64), ends))
