"""Vocabularies of generated models: copied from a GGUF file, or made up in the size that is wanted."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import gguf
import numpy as np

from actors.runner.gguf.reader import GGUFFile
from actors.runner.gguf.strings import StringArray
from bench.shapes import Shape

MAX_TOKEN_LETTERS = 12
N_CONTROL = 64
PREFIX = "tokenizer."


class BenchError(Exception):
    """What the command line is told; the message says how to mend it."""


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """`label` tells files with different vocabularies apart."""

    label: str
    n_vocab: int
    source: Path | None


def read_vocabulary(path: Path) -> Vocabulary:
    """The vocabulary of a file; BenchError when it has none."""
    with GGUFFile.open(path) as file:
        tokens = file.get_strings("tokenizer.ggml.tokens", StringArray(b"", np.zeros(1, np.int64)))
    if not len(tokens):
        raise BenchError(f"--vocab {path}: the file holds no vocabulary (tokenizer.ggml.tokens)")
    return Vocabulary(path.stem, len(tokens), path)


def choose(vocabularies: Sequence[Vocabulary], n_vocab: int) -> Vocabulary:
    """The first of this size, else a synthetic one."""
    fitting = (v for v in vocabularies if v.n_vocab == n_vocab)
    return next(fitting, Vocabulary("synthetic", n_vocab, None))


def check_used(vocabularies: Sequence[Vocabulary], shapes: Sequence[Shape]) -> None:
    """BenchError names a vocabulary whose size is no shape's: it would be left out in silence."""
    wanted = {shape.n_vocab for shape in shapes}
    for vocabulary in vocabularies:
        if vocabulary.n_vocab not in wanted:
            raise BenchError(
                f"--vocab {vocabulary.source}: it has {vocabulary.n_vocab} tokens; "
                f"the shapes measured have {', '.join(map(str, sorted(wanted)))}"
            )


def add_vocabulary(writer: gguf.GGUFWriter, vocabulary: Vocabulary) -> None:
    """The metadata of the tokenizer."""
    if vocabulary.source is None:
        _add_synthetic(writer, vocabulary.n_vocab)
    else:
        _copy(writer, vocabulary.source)


def _copy(writer: gguf.GGUFWriter, source: Path) -> None:
    with GGUFFile.open(source) as file:
        for key, value in file.metadata.items():
            if not key.startswith(PREFIX):
                continue
            match value:
                case StringArray():
                    items = [value.item_bytes(i) for i in range(len(value))]
                    writer.add_array(key, items)
                case np.ndarray():
                    writer.add_array(key, value.tolist())
                case bool():
                    writer.add_bool(key, value)
                case int():
                    writer.add_uint32(key, value)
                case float():
                    writer.add_float32(key, value)
                case str():
                    writer.add_string(key, value)


def _add_synthetic(writer: gguf.GGUFWriter, n_vocab: int) -> None:
    tokens, merges = synthetic(n_vocab - N_CONTROL)
    control = [f"<|{i}|>" for i in range(N_CONTROL)]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list([*tokens, *control])
    writer.add_token_types([1] * len(tokens) + [3] * N_CONTROL)
    writer.add_token_merges(merges)
    writer.add_bos_token_id(n_vocab - 2)
    writer.add_eos_token_id(n_vocab - 1)


def synthetic(n_tokens: int) -> tuple[list[str], list[str]]:
    """Byte-level tokens of random letters, and every merge of two of them that gives a third.

    About two merges a token, as real vocabularies have, so that building a tokenizer takes about as long.
    """
    rng = np.random.default_rng(0)
    pool = list("abcdefghijklmnopqrstuvwxyz")
    known = dict.fromkeys(byte_letters())
    while len(known) < n_tokens:
        picks: list[tuple[int, int]] = rng.integers(0, len(pool), (n_tokens, 2)).tolist()
        for i, j in picks:
            joined = pool[i] + pool[j]
            if len(joined) <= MAX_TOKEN_LETTERS and joined not in known and len(known) < n_tokens:
                known[joined] = None
                pool.append(joined)
    merges = [
        f"{token[:cut]} {token[cut:]}"
        for token in known
        for cut in range(1, len(token))
        if token[:cut] in known and token[cut:] in known
    ]
    return list(known), merges


def byte_letters() -> list[str]:
    """The letter of each byte in a byte-level vocabulary: itself where it prints, else one from 256 on."""
    shown = {*range(33, 127), *range(161, 173), *range(174, 256)}
    hidden = (chr(256 + i) for i in range(256 - len(shown)))
    return [chr(b) if b in shown else next(hidden) for b in range(256)]
