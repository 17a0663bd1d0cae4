"""What a GGUF file holds, as plain data for people: lists, tables, and JSON."""

from collections.abc import Mapping, Sequence

import msgspec

from actors.runner.gguf.reader import GGUFFile
from actors.runner.gguf.strings import StringArray
from actors.runner.gguf.values import NumberArray, Value

MAX_ITEMS = 8

Plain = bool | int | float | str | Sequence["Plain"] | Mapping[str, "Plain"] | None


class TensorLine(msgspec.Struct, frozen=True):
    """One tensor.  shape in GGUF order: the length of a row first."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    n_bytes: int


class Summary(msgspec.Struct, frozen=True):
    """A model file at a glance.  Arrays longer than asked for are `{"n": length, "first": [...]}`."""

    architecture: str | None
    parameter_count: int
    n_bytes: int
    version: int
    dtypes: dict[str, int]  # elements stored in each type, the most used first
    metadata: dict[str, Plain]
    tensors: tuple[TensorLine, ...]


def summarize(file: GGUFFile, max_items: int = MAX_ITEMS) -> Summary:
    """Describe a file.  Every value can be encoded by msgspec; strings that are not UTF-8 have U+FFFD."""
    dtypes: dict[str, int] = {}
    for info in file.tensors.values():
        dtypes[info.dtype.name] = dtypes.get(info.dtype.name, 0) + info.n_elements
    return Summary(
        architecture=file.get_str("general.architecture", None),
        parameter_count=sum(dtypes.values()),
        n_bytes=file.n_bytes,
        version=file.version,
        dtypes=dict(sorted(dtypes.items(), key=lambda item: -item[1])),
        metadata={key: _plain(value, max_items) for key, value in file.metadata.items()},
        tensors=tuple(
            TensorLine(info.name, info.dtype.name, info.shape, info.n_bytes) for info in file.tensors.values()
        ),
    )


def summary(file: GGUFFile, max_items: int = MAX_ITEMS) -> dict[str, Plain]:
    """As `summarize`, as a dictionary of plain values."""
    return msgspec.to_builtins(summarize(file, max_items))


def _plain(value: Value, max_items: int) -> Plain:
    if isinstance(value, bool | int | float | str):
        return value
    first = _items(value, max_items)
    return first if len(value) <= max_items else {"n": len(value), "first": first}


def _items(value: StringArray | NumberArray, n: int) -> list[Plain]:
    if isinstance(value, StringArray):
        return [value.item_bytes(i).decode("utf-8", "replace") for i in range(min(n, len(value)))]
    return list(value[:n].tolist())
