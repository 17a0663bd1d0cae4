"""The native module of the text side, built from native/module.cpp."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

Bytes = npt.NDArray[np.uint8]
I64 = npt.NDArray[np.int64]
I32 = npt.NDArray[np.int32]

def string_ends(view: Bytes, begin: int, n: int) -> I64 | None: ...
def first_bad_merge(index: Index, data: bytes, starts: I64) -> int: ...

class Index:
    def __init__(self, data: bytes, starts: I64, skip: Bytes | None = None) -> None: ...
    def find(self, text: bytes) -> int: ...

class RankedBpe:
    def __init__(
        self, index: Index, letters: Sequence[str], data: bytes, starts: I64, whole_words: bool
    ) -> None: ...
    def encode(self, text: bytes, ends: I32) -> list[int]: ...

class ScoredBpe:
    def __init__(self, index: Index, ranks: I32, byte_ids: I32, unknown: int) -> None: ...
    def encode(self, text: bytes) -> list[int]: ...

class Unigram:
    def __init__(
        self,
        data: bytes,
        starts: I64,
        kinds: Bytes,
        scores: npt.NDArray[np.float32],
        byte_ids: I32,
        unknown: int,
        units: bytes,
        texts: bytes,
        add_prefix: bool,
        collapses_spaces: bool,
    ) -> None: ...
    def encode(self, text: bytes) -> list[int]: ...
