"""The header of a GGUF file: its counts, metadata and table of tensors, each checked before it is used.

Magic, version, number of tensors, number of metadata keys; then the keys and their values; then for each
tensor its name, dimensions, type and offset.  Tensor data follows, from the next multiple of the alignment.
Source: the GGUF specification (ggml, docs/gguf.md).
"""

import itertools
from collections.abc import Mapping
from dataclasses import dataclass

from actors.errors import Unsupported
from actors.runner.gguf.values import MAX_KEY_BYTES, TRUNCATED, Cursor, Value
from kernels.dtype import DType, UnsupportedDType

MAGIC = b"GGUF"
VERSIONS = (2, 3)
MIN_KEY_VALUE_BYTES = 8 + 1 + 4 + 1  # length, key, type, value
MIN_TENSOR_BYTES = 8 + 1 + 4 + 8 + 4 + 8  # length, name, n_dims, one dimension, type, offset
MAX_METADATA_N = 1 << 16  # real files have tens; bounds the time a hostile header can take
MAX_TENSORS_N = 1 << 20  # real files have hundreds to tens of thousands
MAX_NAME_BYTES = 64  # the specification's bound on tensor names
MAX_DIMS = 4
DEFAULT_ALIGNMENT = 32
BEFORE_GGUF = {b"lmgg": "GGML", b"fmgg": "GGMF", b"tjgg": "GGJT", b"algg": "GGLA"}


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """A tensor of a file.  shape is in GGUF order: shape[0] is the length of a row, contiguous in memory."""

    name: str
    dtype: DType
    shape: tuple[int, ...]
    offset: int  # of the first byte, from the beginning of the file
    n_bytes: int

    @property
    def n_elements(self) -> int:
        """Product of the dimensions."""
        n = 1
        for dim in self.shape:
            n *= dim
        return n


def read_counts(cursor: Cursor) -> tuple[int, int, int]:
    """Magic, version and the two counts -> version, n_tensors, n_metadata."""
    magic = bytes(cursor.view[cursor.skip(4, "magic") : cursor.pos])
    if magic in BEFORE_GGUF:
        what = f"{BEFORE_GGUF[magic]}, a format from before GGUF, is not supported"
        cursor.fail(what, 0, "convert the original model to GGUF", Unsupported)
    if magic != MAGIC:
        cursor.fail(f"not a GGUF file: begins with {magic!r}, expected {MAGIC!r}", 0)
    version = cursor.u32("version")
    swapped = int.from_bytes(version.to_bytes(4, "little"), "big")
    if 1 <= swapped <= max(VERSIONS):
        what = f"big-endian GGUF (version {swapped}) is not supported"
        cursor.fail(what, 4, "convert the original model to little-endian GGUF", Unsupported)
    if version not in VERSIONS:
        what = f"GGUF version {version} is not supported, expected 2 or 3"
        cursor.fail(what, 4, "convert the original model with current tools", Unsupported)
    n_tensors = _count(cursor, "tensors", MIN_TENSOR_BYTES, MAX_TENSORS_N)
    return version, n_tensors, _count(cursor, "metadata keys", MIN_KEY_VALUE_BYTES, MAX_METADATA_N)


def _count(cursor: Cursor, what: str, min_bytes: int, limit: int) -> int:
    at = cursor.pos
    n = cursor.u64(f"count of {what}")
    fits = min(cursor.n_left // min_bytes, limit)
    if n > fits:
        cursor.fail(f"claims {n} {what}, expected at most {fits} in a file of {len(cursor.view)} bytes", at)
    return n


def read_metadata(cursor: Cursor, n: int) -> dict[str, Value]:
    """The n keys from here on and their values, in the order of the file."""
    metadata: dict[str, Value] = {}
    for index in range(n):
        at = cursor.pos
        key = _name(cursor, f"metadata key {index}", MAX_KEY_BYTES)
        if key in metadata:
            cursor.fail(f"metadata key {key!r} is there twice", at)
        metadata[key] = cursor.value(key)
    return metadata


def _name(cursor: Cursor, what: str, max_bytes: int) -> str:
    at = cursor.pos
    raw = cursor.string(what, max_bytes)
    try:
        name = raw.decode("utf-8")
    except UnicodeDecodeError:
        cursor.fail(f"{what} is {raw[:64]!r}, expected UTF-8", at)
    if not name:
        cursor.fail(f"{what} is empty", at)
    return name


@dataclass(frozen=True, slots=True)
class _Entry:
    """A tensor as the header describes it: offset counts from the data section, which follows the header."""

    name: str
    dtype: DType
    shape: tuple[int, ...]
    offset: int
    at: int  # byte of the header, for errors


def read_tensors(cursor: Cursor, n: int, alignment: int) -> dict[str, TensorInfo]:
    """The n tensors from here on, each inside the data section that follows, aligned, and sharing no byte."""
    entries: dict[str, _Entry] = {}
    for index in range(n):
        entry = _read_entry(cursor, index)
        if entry.name in entries:
            cursor.fail(f"tensor {entry.name!r} is there twice", entry.at)
        entries[entry.name] = entry
    data_start = -(-cursor.pos // alignment) * alignment
    tensors = {name: _place(cursor, entry, data_start, alignment) for name, entry in entries.items()}
    _refuse_overlap(cursor, tensors)
    return tensors


def _read_entry(cursor: Cursor, index: int) -> _Entry:
    at = cursor.pos
    name = _name(cursor, f"name of tensor {index}", MAX_NAME_BYTES)
    n_dims = cursor.u32(f"dimension count of tensor {name!r}")
    if not 1 <= n_dims <= MAX_DIMS:
        cursor.fail(f"tensor {name!r} has {n_dims} dimensions, expected 1 to {MAX_DIMS}", at)
    shape = tuple(cursor.u64(f"dimension {dim} of tensor {name!r}") for dim in range(n_dims))
    n_elements = 1
    for dim in shape:
        n_elements *= dim
    if not 1 <= n_elements < 1 << 63:
        cursor.fail(f"tensor {name!r} has shape {shape}, expected no zero and a product below 2^63", at)
    try:
        dtype = DType.from_ggml(cursor.u32(f"type of tensor {name!r}"))
    except UnsupportedDType as exc:
        message = f"{cursor.name}, byte {cursor.pos - 4}: tensor {name!r}: {exc}"
        raise Unsupported(message, where="runner.gguf", mend="use a file quantised to one of these") from exc
    if shape[0] % dtype.block_n:
        what = f"rows of {shape[0]}, expected whole {dtype.name} blocks of {dtype.block_n}"
        cursor.fail(f"tensor {name!r} has {what}", at)
    return _Entry(name, dtype, shape, cursor.u64(f"offset of tensor {name!r}"), at)


def _place(cursor: Cursor, entry: _Entry, data_start: int, alignment: int) -> TensorInfo:
    if entry.offset % alignment:
        what = f"tensor {entry.name!r} has offset {entry.offset}, expected a multiple of {alignment}"
        cursor.fail(what, entry.at)
    info = TensorInfo(entry.name, entry.dtype, entry.shape, data_start + entry.offset, 0)
    n_bytes = entry.dtype.n_bytes(info.n_elements)
    if info.offset + n_bytes > len(cursor.view):
        what = f"tensor {entry.name!r} lies at bytes {info.offset} to {info.offset + n_bytes}"
        cursor.fail(f"{what}, but the file has {len(cursor.view)}", entry.at, TRUNCATED)
    return TensorInfo(entry.name, entry.dtype, entry.shape, info.offset, n_bytes)


def _refuse_overlap(cursor: Cursor, tensors: Mapping[str, TensorInfo]) -> None:
    by_offset = sorted(tensors.values(), key=lambda info: info.offset)
    for one, other in itertools.pairwise(by_offset):
        if one.offset + one.n_bytes > other.offset:
            cursor.fail(f"tensors {one.name!r} and {other.name!r} overlap", other.offset)
