"""A sound file must also describe a possible model: each rule has a file that breaks it and nothing else."""

from collections.abc import Sequence
from pathlib import Path

import pytest

from actors.errors import ModelError, Unsupported
from actors.runner.gguf import GGUFFile
from actors.runner.gguf.check import FAMILIES, check_merges, check_model, check_vocabulary
from tests.unit.gguf_files import (
    F32,
    I32,
    TOKENS,
    RawTensor,
    f32,
    f32_tensor,
    gguf_bytes,
    i32,
    model_bytes,
    model_metadata,
    model_tensors,
    numbers,
    string,
    strings,
    u32,
    u64,
)
from tests.unit.gguf_use import VOCABULARIES, read


@pytest.mark.parametrize("arch", FAMILIES)
def test_a_tiny_model_of_each_family_passes(arch: str) -> None:
    check_model(read(model_bytes(arch)))


@pytest.mark.parametrize(
    "key",
    [
        "llama.attention.head_count_kv",
        "llama.rope.dimension_count",
        "llama.rope.freq_base",
        "llama.vocab_size",
        "tokenizer.ggml.scores",
        "tokenizer.ggml.token_type",
        "tokenizer.ggml.merges",
        "tokenizer.chat_template",
        "tokenizer.ggml.bos_token_id",
    ],
)
def test_a_key_that_has_a_default_may_be_absent(key: str) -> None:
    check_model(read(model_bytes(changes={key: None})))


REQUIRED = [
    "general.architecture", "llama.block_count", "llama.context_length", "llama.embedding_length",
    "llama.feed_forward_length", "llama.attention.head_count", "llama.attention.layer_norm_rms_epsilon",
    "tokenizer.ggml.model", "tokenizer.ggml.tokens",
]  # fmt: skip


@pytest.mark.parametrize("key", REQUIRED)
def test_a_missing_required_key_is_named(key: str) -> None:
    with pytest.raises(ModelError, match=rf"tiny.gguf: key '{key}' is missing, expected"):
        check_model(read(model_bytes(changes={key: None})))


@pytest.mark.parametrize("key", REQUIRED)
def test_a_required_key_of_another_type_is_named(key: str) -> None:
    with pytest.raises(ModelError, match=rf"tiny.gguf: key '{key}' is an array of 1 int32, expected"):
        check_model(read(model_bytes(changes={key: numbers(I32, [1])})))


def test_another_family_is_refused_by_name_with_those_supported() -> None:
    with pytest.raises(
        Unsupported, match=r"family 'mamba' is not supported, expected one of llama, qwen2, qwen3"
    ):
        check_model(read(model_bytes(changes={"general.architecture": string("mamba")})))


NAN, INFINITE = float("nan"), float("inf")
N = len(TOKENS)
BROKEN: dict[str, tuple[dict[str, bytes | None], str]] = {
    "no layers": ({"llama.block_count": u32(0)}, "'llama.block_count' is 0, expected 1 to 1024"),
    "2^32 - 1 layers": (
        {"llama.block_count": u32(2**32 - 1)},
        "'llama.block_count' is 4294967295, expected 1",
    ),
    "negative layers": ({"llama.block_count": i32(-2)}, "'llama.block_count' is -2, expected 1"),
    "no context": ({"llama.context_length": u32(0)}, "'llama.context_length' is 0, expected 1"),
    "context of 2^60": (
        {"llama.context_length": u64(1 << 60)},
        "'llama.context_length' is 1152921504606846976",
    ),
    "no embedding": ({"llama.embedding_length": u32(0)}, "'llama.embedding_length' is 0, expected 1"),
    "no feed forward": (
        {"llama.feed_forward_length": u32(0)},
        "'llama.feed_forward_length' is 0, expected 1",
    ),
    "no heads": ({"llama.attention.head_count": u32(0)}, "'llama.attention.head_count' is 0, expected 1"),
    "too many heads": ({"llama.attention.head_count": u32(8192)}, "head_count' is 8192, expected 1 to 4096"),
    "no kv heads": ({"llama.attention.head_count_kv": u32(0)}, "head_count_kv' is 0, expected 1"),
    "kv heads that do not divide": (
        {"llama.attention.head_count_kv": u32(3)},
        r"3 key/value heads do not divide 4 heads \('llama.attention.head_count_kv'\)",
    ),
    "heads that do not divide": (
        {"llama.attention.head_count": u32(6)},
        "6 heads do not divide an embedding of 16, and 'llama.attention.key_length' is missing",
    ),
    "head size 0": ({"llama.attention.key_length": u32(0)}, "key_length' is 0, expected 1 to 4096"),
    "value size 2^20": (
        {"llama.attention.value_length": u32(1 << 20)},
        "value_length' is 1048576, expected 1",
    ),
    "epsilon 0": (
        {"llama.attention.layer_norm_rms_epsilon": f32(0.0)},
        "rms_epsilon' is 0.0, expected a number",
    ),
    "epsilon NaN": (
        {"llama.attention.layer_norm_rms_epsilon": f32(NAN)},
        "rms_epsilon' is nan, expected a number",
    ),
    "odd rope": (
        {"llama.rope.dimension_count": u32(3)},
        "is 3, expected an even number from 2 to the head size 4",
    ),
    "no rope": ({"llama.rope.dimension_count": u32(0)}, "is 0, expected an even number"),
    "rope wider than a head": ({"llama.rope.dimension_count": u32(6)}, "is 6, expected an even number"),
    "odd head without rope size": (
        {"llama.rope.dimension_count": None, "llama.attention.key_length": u32(5)},
        "'llama.rope.dimension_count' is 5, expected an even number",
    ),
    "rope base 0": (
        {"llama.rope.freq_base": f32(0.0)},
        "rope.freq_base' is 0.0, expected a finite number above 0",
    ),
    "rope base infinite": (
        {"llama.rope.freq_base": f32(INFINITE)},
        "rope.freq_base' is inf, expected a finite",
    ),
    "rope factor NaN": (
        {"llama.rope.scaling.factor": f32(NAN)},
        "rope.scaling.factor' is nan, expected a finite",
    ),
    "rope factor below 0": (
        {"llama.rope.scaling.factor": f32(-2.0)},
        "rope.scaling.factor' is -2.0, expected",
    ),
    "original context 0": (
        {"llama.rope.scaling.original_context_length": u32(0)},
        "original_context_length' is 0",
    ),
    "more experts used than there are": (
        {"llama.expert_count": u32(4), "llama.expert_used_count": u32(5)},
        "uses 5 of 4 experts",
    ),
    "2^32 - 1 experts": ({"llama.expert_count": u32(2**32 - 1)}, "uses 0 of 4294967295 experts"),
    "vocabulary size that is not the list's": (
        {"llama.vocab_size": u32(N + 1)},
        "'llama.vocab_size' is 9, but the vocabulary has 8 tokens",
    ),
    "no tokens": (
        {"tokenizer.ggml.tokens": strings([])},
        "'tokenizer.ggml.tokens' has 0 tokens, expected 1 to",
    ),
    "token list shorter than the embedding": (
        {
            "llama.vocab_size": None,
            "tokenizer.ggml.tokens": strings(TOKENS[:-1]),
            "tokenizer.ggml.scores": None,
            "tokenizer.ggml.token_type": None,
        },
        r"'token_embd.weight' has shape \(16, 8\), expected \(16, 7\)",
    ),
    "scores of another length": (
        {"tokenizer.ggml.scores": numbers(F32, [0.0])},
        "scores' has 1 items, but the",
    ),
    "scores that are integers": (
        {"tokenizer.ggml.scores": numbers(I32, [0] * N)},
        "scores' is an array of int32",
    ),
    "a score that is NaN": (
        {"tokenizer.ggml.scores": numbers(F32, [NAN] * N)},
        "scores' has a score that is not",
    ),
    "types of another length": (
        {"tokenizer.ggml.token_type": numbers(I32, [1])},
        "token_type' has 1 items, but",
    ),
    "types that are floats": (
        {"tokenizer.ggml.token_type": numbers(F32, [1] * N)},
        "token_type' is an array of fl",
    ),
    "a type of 7": (
        {"tokenizer.ggml.token_type": numbers(I32, [7] * N)},
        "token_type' has a token type outside 0",
    ),
    "special id = vocabulary": (
        {"tokenizer.ggml.eos_token_id": u32(N)},
        "eos_token_id' is 8, expected a token id",
    ),
    "special id negative": (
        {"tokenizer.ggml.padding_token_id": i32(-1)},
        "padding_token_id' is -1, expected a tok",
    ),
    "special id of any name": (
        {"tokenizer.ggml.new_token_id": u32(99)},
        "new_token_id' is 99, expected a token id",
    ),
    "special id a string": (
        {"tokenizer.ggml.eos_token_id": string("2")},
        "eos_token_id' is a string, expected an",
    ),
    "special ids in a list": (
        {"tokenizer.ggml.eos_token_ids": numbers(I32, [1, 8])},
        "eos_token_ids' is 8, expec",
    ),
    "special ids as floats": (
        {"tokenizer.ggml.eos_token_ids": numbers(F32, [1])},
        "eos_token_ids' is an array of f",
    ),
    "merge without a space": (
        {"tokenizer.ggml.merges": strings(["ab"])},
        "merge 0 of .* is 'ab', expected two",
    ),
    "merge empty": ({"tokenizer.ggml.merges": strings([""])}, "merge 0 of .* is '', expected two tokens"),
    "merge of an unknown left": (
        {"tokenizer.ggml.merges": strings(["a b", "z b"])},
        "merge 1 of .* is 'z b', exp",
    ),
    "merge of an unknown right": (
        {"tokenizer.ggml.merges": strings(["a z"])},
        "merge 0 of .* is 'a z', expected",
    ),
    "merge into an unknown token": (
        {"tokenizer.ggml.merges": strings(["a c"])},
        "merge 0 of .* is 'a c', expected",
    ),
    "template over 256 KiB": (
        {"tokenizer.chat_template": string("x" * ((1 << 18) + 1))},
        "'tokenizer.chat_template' is 262145 bytes long, expected at most 262144",
    ),
    "named template over 256 KiB": (
        {"tokenizer.chat_template.tool_use": string("x" * ((1 << 18) + 1))},
        "'tokenizer.chat_template.tool_use' is 262145 bytes long",
    ),
}


@pytest.mark.parametrize("name", BROKEN)
def test_an_impossible_model_is_refused_by_what_is_wrong_with_it(name: str) -> None:
    changes, message = BROKEN[name]
    with pytest.raises(ModelError, match=message) as caught:
        check_model(read(model_bytes(changes=changes)))
    assert str(caught.value).startswith("tiny.gguf: ")


def with_tensors(tensors: Sequence[RawTensor]) -> GGUFFile:
    return read(gguf_bytes(model_metadata(), tensors))


def test_a_file_without_an_embedding_is_refused() -> None:
    with pytest.raises(ModelError, match=r"tensor 'token_embd.weight' is missing"):
        check_model(with_tensors([]))


def test_an_embedding_of_another_width_is_refused() -> None:
    with pytest.raises(ModelError, match=r"'token_embd.weight' has shape \(12, 8\), expected \(16, 8\)"):
        check_model(with_tensors([f32_tensor("token_embd.weight", 12, N)]))


def test_an_output_matrix_of_another_vocabulary_is_refused() -> None:
    with pytest.raises(ModelError, match=r"'output.weight' has shape \(16, 9\), expected \(16, 8\)"):
        check_model(with_tensors([*model_tensors(), f32_tensor("output.weight", 16, N + 1)]))


def test_a_merge_may_begin_with_the_space_token() -> None:
    tokens = strings([*TOKENS, " a"])
    metadata = {"tokenizer.ggml.model": string("gpt2"), "tokenizer.ggml.tokens": tokens}
    check_merges(read(gguf_bytes(metadata | {"tokenizer.ggml.merges": strings(["  a"])})))


@pytest.mark.skipif(not VOCABULARIES.is_dir(), reason=f"{VOCABULARIES} is not there")
@pytest.mark.parametrize("path", sorted(VOCABULARIES.glob("*.gguf")), ids=lambda path: path.stem)
def test_published_vocabularies_pass(path: Path) -> None:
    with GGUFFile.open(path) as file:
        assert check_vocabulary(file) == len(file.get_strings("tokenizer.ggml.tokens"))
        check_merges(file)
