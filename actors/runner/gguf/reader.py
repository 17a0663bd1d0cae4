"""GGUF model files, mapped into memory: metadata, a table of tensors, and their bytes in place.

Versions 2 and 3, little-endian.  After `GGUFFile.open` everything that the header says has been checked
against the file: counts, lengths, types, and that each tensor lies inside the data section, aligned, on its
own.  Whether the numbers make a model is `check.py`'s question.

A mapped file must not shrink: reading a page that another process has cut off kills this process with SIGBUS,
and no check can prevent that.  Replace model files by renaming, as the library does.

Source: the GGUF specification (ggml, docs/gguf.md).
"""

import mmap
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import NoReturn, Self, TypeVar

import numpy as np

from actors.errors import ModelError, ModelNotFound, Unsupported
from actors.runner.gguf.header import TensorInfo, read_counts, read_metadata, read_tensors
from actors.runner.gguf.strings import StringArray
from actors.runner.gguf.values import TRUNCATED, Cursor, NumberArray, Value, type_name

MIN_FILE_BYTES = 24  # magic, version, two counts
DEFAULT_ALIGNMENT = 32

T = TypeVar("T")


class _Required:
    """The default of a key that must be there."""


REQUIRED = _Required()


class GGUFFile:
    """An open model file.  Owns the mapping; use as a context manager, or call `close`.

    metadata: every key of the header.  tensors: by name, in the order of the file.  Both outlive `close`.
    """

    def __init__(self, data: memoryview, name: str) -> None:
        """Read the header of data [n_bytes], a whole file; errors call it name.  Raises ModelError."""
        self.name = name
        self.n_bytes = len(data)
        self._data = data
        cursor = Cursor(data, name)
        self.version, n_tensors, n_metadata = read_counts(cursor)
        self.metadata: Mapping[str, Value] = MappingProxyType(read_metadata(cursor, n_metadata))
        self._refuse_split()
        self.alignment = self._read_alignment()
        tensors = read_tensors(cursor, n_tensors, self.alignment)
        self.tensors: Mapping[str, TensorInfo] = MappingProxyType(tensors)

    @classmethod
    def open(cls, path: str | Path) -> Self:
        """Map the file at path and check its header.

        Raises ModelNotFound when there is none, Unsupported for what this runtime does not implement (a
        version, a tensor type, a split file), ModelError for a file that is damaged, hostile or not GGUF.
        """
        path = Path(path)
        # a file that is refused drops its mapping with the last reference, as does `close`
        return cls(memoryview(map_file(path)), str(path))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Give up the mapping.  Views handed out stay valid: the last of them to go unmaps the file."""
        self._data.release()

    def tensor_bytes(self, name: str) -> memoryview:
        """The bytes of a tensor where they lie in the mapped file, read-only; ModelError if there is none."""
        info = self.tensors.get(name)
        if info is None:
            raise ModelError(f"{self.name} has no tensor {name!r}", where="runner.gguf")
        return self._data[info.offset : info.offset + info.n_bytes]

    def get_str(self, key: str, default: T | _Required = REQUIRED) -> str | T:
        """The string under key, or default when the key is absent.

        ModelError when the value is of another type, or absent and no default was given.
        """
        value = self.metadata.get(key)
        return value if isinstance(value, str) else self._other(key, "a string", default)

    def get_int(self, key: str, default: T | _Required = REQUIRED) -> int | T:
        """As `get_str`, for an integer of any width."""
        value = self.metadata.get(key)
        if isinstance(value, int) and not isinstance(value, bool):
            return value
        return self._other(key, "an integer", default)

    def get_float(self, key: str, default: T | _Required = REQUIRED) -> float | T:
        """As `get_str`, for a float; an integer is not one."""
        value = self.metadata.get(key)
        return value if isinstance(value, float) else self._other(key, "a float", default)

    def get_bool(self, key: str, default: T | _Required = REQUIRED) -> bool | T:
        """As `get_str`, for a bool."""
        value = self.metadata.get(key)
        return value if isinstance(value, bool) else self._other(key, "a bool", default)

    def get_array(self, key: str, default: T | _Required = REQUIRED) -> StringArray | NumberArray | T:
        """As `get_str`, for an array of any element type."""
        value = self.metadata.get(key)
        return value if isinstance(value, StringArray | np.ndarray) else self._other(key, "an array", default)

    def get_strings(self, key: str, default: T | _Required = REQUIRED) -> StringArray | T:
        """As `get_str`, for an array of strings."""
        value = self.metadata.get(key)
        return value if isinstance(value, StringArray) else self._other(key, "an array of strings", default)

    def get_numbers(self, key: str, default: T | _Required = REQUIRED) -> NumberArray | T:
        """As `get_str`, for an array of numbers or bools, [n]."""
        value = self.metadata.get(key)
        return value if isinstance(value, np.ndarray) else self._other(key, "an array of numbers", default)

    def get_per_layer(self, key: str, n_layer: int, default: int | _Required = REQUIRED) -> tuple[int, ...]:
        """As `get_int`, for a number that all layers share or each has of its own, [n_layer]."""
        value = self.metadata.get(key)
        if not isinstance(value, np.ndarray):
            return (self.get_int(key, default),) * n_layer
        if len(value) != n_layer or not np.issubdtype(value.dtype, np.integer):
            found = f"{len(value)} values of {value.dtype.name}"
            self.fail(f"key {key!r} is {found}, expected an integer, or one for each of {n_layer} layers")
        return tuple(int(n) for n in value)

    def fail(self, what: str, mend: str = "", kind: type[ModelError] = ModelError) -> NoReturn:
        """Raise ModelError (or a kind of it) about this file."""
        raise kind(f"{self.name}: {what}", where="runner.gguf", mend=mend)

    def _other(self, key: str, expected: str, default: T | _Required) -> T:
        """What a getter gives for a value it did not expect: the default of an absent key, or an error."""
        found = self.metadata.get(key)
        if found is not None:
            self.fail(f"key {key!r} is {type_name(found)}, expected {expected}")
        if isinstance(default, _Required):
            self.fail(f"key {key!r} is missing, expected {expected}")
        return default

    def _refuse_split(self) -> None:
        n_split = self.get_int("split.count", 1)
        if n_split > 1:
            part = self.get_int("split.no", 0) + 1
            self.fail(
                f"part {part} of a model that is split over {n_split} files, which is not supported",
                mend="merge them into one file first (llama-gguf-split --merge)",
                kind=Unsupported,
            )

    def _read_alignment(self) -> int:
        alignment = self.get_int("general.alignment", DEFAULT_ALIGNMENT)
        if alignment < 8 or alignment & (alignment - 1):
            self.fail(f"'general.alignment' is {alignment}, expected a power of two of at least 8")
        return alignment


def map_file(path: Path) -> mmap.mmap:
    """A whole file, read-only.  ModelNotFound, or ModelError when it is none or too short."""
    try:
        if path.exists() and not path.is_file():  # opening a pipe would wait for its writer
            raise ModelError(f"{path}: not a file, expected a GGUF file", where="runner.gguf")
        with path.open("rb") as file:
            n_bytes = file.seek(0, 2)
            if n_bytes < MIN_FILE_BYTES:
                what = f"{path}: {n_bytes} bytes, expected a GGUF file of at least {MIN_FILE_BYTES}"
                raise ModelError(what, where="runner.gguf", mend=TRUNCATED)
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except FileNotFoundError as exc:
        raise ModelNotFound(f"{path}: no such file", where="runner.gguf") from exc
    except OSError as exc:
        raise ModelError(f"{path}: cannot be read: {exc.strerror}", where="runner.gguf") from exc
