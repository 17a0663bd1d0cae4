"""Metadata values of a GGUF file, read from bytes that nobody vouches for.

`Cursor` is the only thing that touches the header.  It checks each count and length against the bytes that
are there before it uses them, so nothing is ever allocated because a file says so, and every error names the
file, the thing that was being read, and the byte where it stands.
"""

import enum
import struct
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from actors.errors import ModelError, Unsupported
from actors.runner.gguf.strings import StringArray, string_starts

MAX_KEY_BYTES = 65535  # the GGUF specification
MAX_STRING_BYTES = 1 << 20  # the longest real values are chat templates and licences, tens of KiB
MAX_ARRAY_N = 1 << 24  # sixty times the largest vocabulary known; bounds the time a hostile header can take
TOKENS_KEY = "tokenizer.ggml.tokens"  # whose strings may be as long as the file

NumberArray = NDArray[Any]  # [n], one of int8 .. uint64, float32, float64, bool; read-only


class ValueType(enum.IntEnum):
    """The number before each value that says what it is (GGUF specification, gguf_metadata_value_type)."""

    UINT8 = 0
    INT8 = 1
    UINT16 = 2
    INT16 = 3
    UINT32 = 4
    INT32 = 5
    FLOAT32 = 6
    BOOL = 7
    STRING = 8
    ARRAY = 9
    UINT64 = 10
    INT64 = 11
    FLOAT64 = 12


_SCALARS: Mapping[ValueType, struct.Struct] = MappingProxyType(
    {
        ValueType.UINT8: struct.Struct("<B"),
        ValueType.INT8: struct.Struct("<b"),
        ValueType.UINT16: struct.Struct("<H"),
        ValueType.INT16: struct.Struct("<h"),
        ValueType.UINT32: struct.Struct("<I"),
        ValueType.INT32: struct.Struct("<i"),
        ValueType.FLOAT32: struct.Struct("<f"),
        ValueType.BOOL: struct.Struct("<B"),
        ValueType.UINT64: struct.Struct("<Q"),
        ValueType.INT64: struct.Struct("<q"),
        ValueType.FLOAT64: struct.Struct("<d"),
    }
)
_U32, _U64 = struct.Struct("<I"), struct.Struct("<Q")


Value = bool | int | float | str | StringArray | NumberArray


class Cursor:
    """A place in a file's bytes that only moves forward and never past the end."""

    def __init__(self, view: memoryview, name: str) -> None:
        self.view = view
        self.name = name
        self.pos = 0

    @property
    def n_left(self) -> int:
        """Bytes from here to the end of the file."""
        return len(self.view) - self.pos

    def fail(
        self, what: str, at: int | None = None, mend: str = "", kind: type[ModelError] = ModelError
    ) -> NoReturn:
        """Raise ModelError (or a kind of it): in this file, at this byte (default: here), `what` is wrong."""
        at = self.pos if at is None else at
        raise kind(f"{self.name}, byte {at}: {what}", where="runner.gguf", mend=mend)

    def skip(self, n: int, what: str) -> int:
        """Move over n bytes that are `what`; returns where they begin."""
        if n > self.n_left:
            self.fail(f"{what} takes {n} bytes, but the file ends after {self.n_left}", mend=TRUNCATED)
        start = self.pos
        self.pos += n
        return start

    def u32(self, what: str) -> int:
        """The next four bytes as an unsigned number."""
        return _U32.unpack_from(self.view, self.skip(4, what))[0]

    def u64(self, what: str) -> int:
        """The next eight bytes as an unsigned number."""
        return _U64.unpack_from(self.view, self.skip(8, what))[0]

    def string(self, what: str, max_bytes: int) -> bytes:
        """A length and that many bytes."""
        at = self.pos
        n = self.u64(f"length of {what}")
        if n > max_bytes:
            self.fail(f"{what} is {n} bytes long, expected at most {max_bytes}", at)
        start = self.skip(n, what)
        return bytes(self.view[start : self.pos])

    def value(self, key: str) -> Value:
        """The type and value of a metadata key."""
        kind = self._value_type(key)
        if kind is ValueType.STRING:
            # a broken byte in a description is no reason to refuse a model; what must be exact is in arrays
            return self.string(f"value of {key!r}", MAX_STRING_BYTES).decode("utf-8", "replace")
        if kind is ValueType.ARRAY:
            return self._array(key)
        scalar = _SCALARS[kind]
        start = self.skip(scalar.size, f"value of {key!r}")
        number: bool | int | float = scalar.unpack_from(self.view, start)[0]
        if kind is not ValueType.BOOL:
            return number
        if number not in (0, 1):
            self.fail(f"value of {key!r} is {number}, expected a bool, 0 or 1", start)
        return number == 1

    def _value_type(self, key: str) -> ValueType:
        at = self.pos
        number = self.u32(f"type of {key!r}")
        if number > max(ValueType):
            self.fail(f"{key!r} has unknown value type {number}, expected 0 to {max(ValueType)}", at)
        return ValueType(number)

    def _array(self, key: str) -> StringArray | NumberArray:
        at = self.pos
        kind = self._value_type(f"elements of {key}")
        if kind is ValueType.ARRAY:
            self.fail(
                f"{key!r} is an array of arrays, expected an array of numbers or strings",
                at,
                kind=Unsupported,
            )
        at = self.pos
        n = self.u64(f"element count of {key!r}")
        element_bytes = 8 if kind is ValueType.STRING else _SCALARS[kind].size
        if n > self.n_left // element_bytes:
            what = f"{key!r} claims {n} elements of at least {element_bytes} bytes"
            self.fail(f"{what}, but {self.n_left} bytes are left", at)
        if n > MAX_ARRAY_N:
            self.fail(f"{key!r} has {n} elements, expected at most {MAX_ARRAY_N}", at)
        return self._strings(key, n) if kind is ValueType.STRING else self._numbers(key, kind, n)

    def _strings(self, key: str, n: int) -> StringArray:
        starts = string_starts(self.view, self.pos, n)
        if starts is None:
            self._blame_string(key, n)
        begin, self.pos = self.pos, int(starts[-1])
        items = StringArray(bytes(self.view[begin : self.pos]), starts - begin)
        if key != TOKENS_KEY and items.max_bytes() > MAX_STRING_BYTES:
            what = f"{key!r} has a string of {items.max_bytes()} bytes"
            self.fail(f"{what}, expected at most {MAX_STRING_BYTES}", begin)
        return items

    def _blame_string(self, key: str, n: int) -> NoReturn:
        """Name the first of n strings that leads outside the file; one does."""
        pos = self.pos
        for index in range(n):
            n_left = len(self.view) - pos - 8
            if n_left < 0:
                self.fail(f"string {index} of {key!r} begins where the file ends", pos, mend=TRUNCATED)
            n_bytes: int = _U64.unpack_from(self.view, pos)[0]
            if n_bytes > n_left:
                what = f"string {index} of {key!r} is {n_bytes} bytes long"
                self.fail(f"{what}, but {n_left} bytes are left", pos)
            pos += 8 + n_bytes
        raise AssertionError(f"all {n} strings of {key!r} are inside the file")

    def _numbers(self, key: str, kind: ValueType, n: int) -> NumberArray:
        scalar = _SCALARS[kind]
        start = self.skip(n * scalar.size, f"array {key!r}")
        data = bytes(self.view[start : self.pos])
        if kind is not ValueType.BOOL:
            return np.frombuffer(data, dtype=np.dtype(scalar.format))
        truths = np.frombuffer(data, dtype=np.uint8)
        if truths.size and truths.max() > 1:
            self.fail(f"{key!r} is an array of bool with a value of {truths.max()}, expected 0 or 1", start)
        return truths.view(np.bool_)


TRUNCATED = "the file is cut short or damaged: copy or download it again"


def type_name(value: Value) -> str:
    """What a value is, in the words of an error message."""
    match value:
        case bool():
            return "a bool"
        case int():
            return "an integer"
        case float():
            return "a float"
        case str():
            return "a string"
        case StringArray():
            return f"an array of {len(value)} strings"
        case _:
            return f"an array of {len(value)} {value.dtype.name}"
