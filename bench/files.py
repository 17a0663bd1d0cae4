"""Generated model files, kept in a directory from one run to the next."""

import shutil
import zlib
from dataclasses import dataclass
from pathlib import Path

import gguf
import numpy as np

from bench.shapes import Shape, dtype_of, file_bytes
from bench.vocabulary import BenchError, Vocabulary, add_vocabulary
from bench.weights import random_weight

FORMAT = 1  # a number in the files' names; raise it when their content changes
SPARE_BYTES = 1 << 30  # left free on the disk
HEADER_BYTES = 16 << 20  # more than any vocabulary here takes


@dataclass(frozen=True, slots=True)
class ModelFile:
    """A file to measure."""

    path: Path
    shape: Shape
    file_type: str
    vocabulary: str

    @property
    def n_bytes(self) -> int:
        """Of the whole file."""
        return self.path.stat().st_size


def model_file(folder: Path, shape: Shape, file_type: str, vocabulary: Vocabulary) -> ModelFile:
    """The file, generated unless it is there.  BenchError when the disk is too full."""
    path = folder / f"{shape.name}-{file_type}-{vocabulary.label}-v{FORMAT}.gguf"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        needed = file_bytes(shape, file_type) + HEADER_BYTES + SPARE_BYTES
        free = shutil.disk_usage(folder).free
        if free < needed:
            raise BenchError(
                f"{path.name} needs {needed >> 20} MiB of free disk, {folder} has {free >> 20} MiB; "
                "free some, or name another directory with --models"
            )
        part = path.with_suffix(".part")
        try:
            _write(part, shape, file_type, vocabulary)
            part.replace(path)
        finally:
            part.unlink(missing_ok=True)
    return ModelFile(path, shape, file_type, vocabulary.label)


def _write(path: Path, shape: Shape, file_type: str, vocabulary: Vocabulary) -> None:
    writer = gguf.GGUFWriter(path, shape.arch)
    _add_sizes(writer, shape)
    add_vocabulary(writer, vocabulary)
    tensors = shape.tensors()
    for name, dims in tensors.items():
        dtype = dtype_of(shape, file_type, name)
        raw_dims = (*dims[:-1], dtype.n_bytes(dims[-1]))  # of bytes, as the writer takes blocks
        kind = gguf.GGMLQuantizationType(dtype.ggml_id)
        writer.add_tensor_info(name, raw_dims, np.dtype(np.uint8), dtype.n_bytes(int(np.prod(dims))), kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for name, dims in tensors.items():
        writer.write_tensor_data(_data(shape, file_type, name, dims))
    writer.close()


def _data(
    shape: Shape, file_type: str, name: str, dims: tuple[int, ...]
) -> np.ndarray[tuple[int], np.dtype[np.uint8]]:
    """A tensor's bytes; seeded by its name, so that a shape is the same model in every run."""
    rng = np.random.default_rng(zlib.crc32(f"{shape.name} {name}".encode()))
    if name == "rope_freqs.weight":
        return np.array(shape.rope_freqs(), np.float32).view(np.uint8)
    if len(dims) == 1:
        spread = rng.uniform(-0.2, 0.2, dims).astype(np.float32)
        return (spread + np.float32(name.endswith("norm.weight"))).view(np.uint8)
    dtype = dtype_of(shape, file_type, name)
    pieces = random_weight(dtype, int(np.prod(dims)), dims[-1] ** -0.5, rng)
    return np.concatenate(list(pieces))


def _add_sizes(writer: gguf.GGUFWriter, shape: Shape) -> None:
    writer.add_name(f"bench {shape.name}")
    writer.add_block_count(shape.n_layer)
    writer.add_context_length(shape.n_ctx_train)
    writer.add_embedding_length(shape.n_embd)
    writer.add_feed_forward_length(shape.n_ff)
    writer.add_head_count(shape.n_head)
    writer.add_head_count_kv(shape.n_head_kv)
    writer.add_key_length(shape.head_dim)
    writer.add_value_length(shape.head_dim)
    writer.add_vocab_size(shape.n_vocab)
    writer.add_layer_norm_rms_eps(shape.eps)
    writer.add_rope_freq_base(shape.rope_base)
    writer.add_rope_dimension_count(shape.head_dim)
