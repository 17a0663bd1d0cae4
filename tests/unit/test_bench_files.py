"""Generated model files: sane weights, real or made-up vocabularies, a disk that is looked at first."""

import shutil
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from actors.runner.gguf.reader import GGUFFile
from actors.runner.models.families import read_hparams
from actors.runner.tokenizer.tokenizer import Tokenizer
from bench.files import model_file
from bench.shapes import FILE_TYPES, SHAPES, dtype_of
from bench.vocabulary import (
    BenchError,
    Vocabulary,
    byte_letters,
    check_used,
    choose,
    read_vocabulary,
    synthetic,
)
from bench.weights import CHUNK_BYTES, random_weight
from kernels.cpu import _cpu
from kernels.cpu.backend import available_isas
from kernels.dtype import DType

TINY = SHAPES["tiny"]
GENERATED = (
    DType.Q4_0,
    DType.Q5_0,
    DType.Q5_1,
    DType.Q8_0,
    DType.Q4_K,
    DType.Q5_K,
    DType.Q6_K,
    DType.F16,
    DType.BF16,
)
STD = 0.02


class Usage(NamedTuple):
    total: int
    used: int
    free: int


@pytest.mark.parametrize("dtype", GENERATED, ids=lambda d: d.name)
@settings(deadline=None, max_examples=10)
@given(seed=st.integers(0, 10_000))
def test_random_weights_are_finite_centred_and_of_the_size_asked_for(dtype: DType, seed: int) -> None:
    n = 1 << 16
    raw = np.concatenate(list(random_weight(dtype, n, STD, np.random.default_rng(seed))))
    values = _cpu.dequantize(available_isas()[0], raw, dtype.ggml_id, n)
    assert np.isfinite(values).all()
    assert abs(values.mean()) < 0.2 * STD
    assert STD / 2 < values.std() < STD * 2


def test_a_type_that_no_file_here_has_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match="no random weights of type Q2_K"):
        list(random_weight(DType.Q2_K, 256, STD, np.random.default_rng(0)))


def test_weights_come_in_pieces_that_fit_memory_and_add_up() -> None:
    n = CHUNK_BYTES + (1 << 20)  # of two bytes each
    sizes = [len(piece) for piece in random_weight(DType.F16, n, STD, np.random.default_rng(0))]
    assert sum(sizes) == 2 * n
    assert max(sizes) <= CHUNK_BYTES


@pytest.mark.parametrize("file_type", FILE_TYPES)
def test_a_generated_file_reads_back_as_the_shape_it_was_made_from(tmp_path: Path, file_type: str) -> None:
    made = model_file(tmp_path, TINY, file_type, choose([], TINY.n_vocab))
    with GGUFFile.open(made.path) as file:
        sizes = read_hparams(file)
        types = {name: info.dtype for name, info in file.tensors.items()}
    assert (sizes.n_layer, sizes.n_embd, sizes.n_vocab, sizes.head_dim) == (2, 256, 1024, 64)
    assert types == {name: dtype_of(TINY, file_type, name) for name in TINY.tensors()}


def test_the_same_file_is_made_anywhere_and_only_once(tmp_path: Path) -> None:
    vocabulary = choose([], TINY.n_vocab)
    first = model_file(tmp_path / "a", TINY, "Q4_0", vocabulary).path
    other = model_file(tmp_path / "b", TINY, "Q4_0", vocabulary).path
    assert first.read_bytes() == other.read_bytes()
    made = first.stat().st_mtime_ns
    assert model_file(tmp_path / "a", TINY, "Q4_0", vocabulary).path.stat().st_mtime_ns == made


def test_a_full_disk_is_refused_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: Usage(10, 9, 1))
    with pytest.raises(BenchError, match=r"MiB of free disk.*--models"):
        model_file(tmp_path, TINY, "Q4_0", choose([], TINY.n_vocab))
    assert list(tmp_path.iterdir()) == []


def test_a_real_vocabulary_is_copied_whole(tmp_path: Path) -> None:
    source = model_file(tmp_path, TINY, "Q8_0", choose([], TINY.n_vocab)).path
    real = read_vocabulary(source)
    copy = model_file(tmp_path / "copy", TINY, "Q8_0", choose([real], TINY.n_vocab)).path
    with GGUFFile.open(source) as one, GGUFFile.open(copy) as two:
        for key in ("tokens", "merges"):
            name = f"tokenizer.ggml.{key}"
            assert two.get_strings(name).tolist() == one.get_strings(name).tolist()
        assert two.get_int("tokenizer.ggml.eos_token_id") == one.get_int("tokenizer.ggml.eos_token_id")


def test_a_vocabulary_serves_the_shapes_of_its_size_only() -> None:
    real = Vocabulary("real", 128256, Path("real.gguf"))
    assert choose([real], 128256) is real
    assert choose([real], 151936).label == "synthetic"
    with pytest.raises(BenchError, match="128256 tokens"):
        check_used([real], [TINY])


def test_a_file_without_a_vocabulary_is_refused(tmp_path: Path) -> None:
    empty = tmp_path / "empty.gguf"
    empty.write_bytes(b"GGUF" + (3).to_bytes(4, "little") + bytes(16))
    with pytest.raises(BenchError, match="holds no vocabulary"):
        read_vocabulary(empty)


@settings(deadline=None, max_examples=10)
@given(n_tokens=st.integers(256, 3000))
def test_a_made_up_vocabulary_has_the_size_asked_for_and_merges_within_it(n_tokens: int) -> None:
    tokens, merges = synthetic(n_tokens)
    known = set(tokens)
    assert len(tokens) == len(known) == n_tokens
    assert set(byte_letters()) <= known
    assert all(set(merge.split(" ")) <= known and merge.replace(" ", "") in known for merge in merges)


def test_a_made_up_vocabulary_tokenises_any_text(tmp_path: Path) -> None:
    path = model_file(tmp_path, TINY, "Q4_0", choose([], TINY.n_vocab)).path
    with GGUFFile.open(path) as file:
        tokenizer = Tokenizer.from_metadata(file.metadata)
    text = "any text, ünïcode too \N{SNOWMAN}"
    assert tokenizer.decode(tokenizer.encode(text, add_special=False)) == text
