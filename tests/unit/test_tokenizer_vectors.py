"""The published test vectors of real vocabularies, and random text through them."""

import functools
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from actors.runner.gguf import GGUFFile
from actors.runner.tokenizer import TextStream, Tokenizer
from tests.unit.sentencepiece import merge_by_score

FOLDER = Path(__file__).resolve().parents[3] / "shared" / "data" / "tokenizers"
SEPARATOR = "\n__ggml_vocab_test__\n"
BYTE_LEVEL = ("deepseek-llm", "gpt-2", "llama-bpe", "qwen2")
SENTENCEPIECE = ("llama-spm", "phi-3")
WORDPIECE = ("bert-bge",)
LOSSLESS = (*BYTE_LEVEL, *SENTENCEPIECE)
BUILD_BUDGET_S = 1.5  # of the 152k tokens of qwen2, see the runner's start-up

pytestmark = pytest.mark.skipif(not FOLDER.is_dir(), reason=f"no vocabularies in {FOLDER}")
slow_to_load = settings(deadline=None, max_examples=60)


@functools.cache
def metadata(name: str) -> dict[str, Any]:
    with GGUFFile.open(FOLDER / f"ggml-vocab-{name}.gguf") as file:
        return dict(file.metadata)


@functools.cache
def tokenizer(name: str) -> Tokenizer:
    return Tokenizer.from_metadata(metadata(name))


@functools.cache
def tokens_of(name: str) -> dict[str, int]:
    """Ids of the texts that plain text may become: no control, unknown or byte tokens."""
    meta = metadata(name)
    texts = enumerate(zip(meta["tokenizer.ggml.tokens"], meta["tokenizer.ggml.token_type"], strict=True))
    return {text: i for i, (text, kind) in texts if kind in (1, 4, 5)}


def vectors(name: str) -> list[tuple[str, list[int]]]:
    path = FOLDER / f"ggml-vocab-{name}.gguf"
    texts = path.with_suffix(".gguf.inp").read_bytes().decode().split(SEPARATOR)
    rows = path.with_suffix(".gguf.out").read_text().splitlines()
    assert texts.pop() == ""
    return [(text, [int(n) for n in row.split()]) for text, row in zip(texts, rows, strict=True)]


@pytest.mark.parametrize("parse_special", [True, False])
@pytest.mark.parametrize("name", [*LOSSLESS, *WORDPIECE])
def test_every_published_vector_is_encoded_alike(name: str, parse_special: bool) -> None:
    table = vectors(name)
    assert len(table) == 46
    for text, ids in table:
        assert tokenizer(name).encode(text, add_special=False, parse_special=parse_special) == ids


@pytest.mark.parametrize("name", LOSSLESS)
def test_every_published_vector_is_decoded_to_its_text(name: str) -> None:
    for text, ids in vectors(name):
        assert tokenizer(name).decode(ids) == text


def test_wordpiece_decodes_to_its_words() -> None:
    bert = tokenizer("bert-bge")
    assert bert.decode(bert.encode("Äpfel, and PEARS!")) == "apfel , and pears !"


@pytest.mark.parametrize("name", LOSSLESS)
@slow_to_load
@given(text=st.text(max_size=80))
def test_any_text_survives_the_round_trip(name: str, text: str) -> None:
    ids = tokenizer(name).encode(text, add_special=False, parse_special=False)
    assert tokenizer(name).decode(ids) == text


@pytest.mark.parametrize("name", BYTE_LEVEL)
@slow_to_load
@given(text=st.text(max_size=80))
def test_the_pieces_of_a_text_are_its_bytes(name: str, text: str) -> None:
    ids = tokenizer(name).encode(text, add_special=False, parse_special=False)
    assert b"".join(map(tokenizer(name).piece, ids)) == text.encode()


@pytest.mark.parametrize("name", LOSSLESS)
@slow_to_load
@given(text=st.text(st.characters(min_codepoint=0x20, exclude_categories=["Cs"]), max_size=40))
def test_a_stream_of_pieces_gives_the_text(name: str, text: str) -> None:
    model, stream = tokenizer(name), TextStream()
    ids = model.encode(text, add_special=False, parse_special=False)
    joined = "".join(stream.push(model.piece(token_id)) for token_id in ids) + stream.flush()
    assert joined == (" " + text if name in SENTENCEPIECE and text else text)


@pytest.mark.parametrize("name", [*LOSSLESS, *WORDPIECE])
def test_the_table_of_pieces_agrees_with_each_piece(name: str) -> None:
    model = tokenizer(name)
    assert len(model.pieces) == model.n_vocab
    sample = [*range(0, model.n_vocab, 97), *range(300), *range(model.n_vocab - 300, model.n_vocab)]
    assert all(model.pieces[i] == model.piece(i) for i in sample)


@pytest.mark.parametrize(
    ("name", "text", "token_id"),
    [
        ("qwen2", "<|im_start|>", 151644),
        ("llama-bpe", "<|eot_id|>", 128009),
        ("llama-spm", "</s>", 2),
        ("phi-3", "<|user|>", 32010),
        ("gpt-2", "<|endoftext|>", 50256),
        ("deepseek-llm", "<｜end▁of▁sentence｜>", 100001),
        ("bert-bge", "[MASK]", 103),
    ],
)
def test_a_control_token_in_text_is_one_only_when_parsed(name: str, text: str, token_id: int) -> None:
    model = tokenizer(name)
    assert model.encode(text, add_special=False, parse_special=True) == [token_id]
    typed = model.encode(text, add_special=False, parse_special=False)
    assert not any(map(model.is_control, typed))
    assert model.piece(token_id) == b""
    assert model.piece(token_id, special=True) == text.encode()


@pytest.mark.parametrize("name", LOSSLESS)
def test_no_control_token_typed_by_a_user_is_one(name: str) -> None:
    model = tokenizer(name)
    for token_id in filter(model.is_control, range(model.n_vocab)):
        typed = model.encode(model.token_text(token_id), add_special=False, parse_special=False)
        assert not any(map(model.is_control, typed))


@pytest.mark.parametrize("name", BYTE_LEVEL)
def test_a_chat_survives_the_round_trip_with_its_marks(name: str) -> None:
    model = tokenizer(name)
    mark = next(model.token_text(i) for i in sorted(model.eog_ids))
    text = f"{mark}user\nhello{mark}\n{mark}"
    ids = model.encode(text, add_special=False)
    assert model.decode(ids, special=True) == text
    assert model.decode(ids) == text.replace(mark, "")


@slow_to_load
@given(st.text("ab -<s>\n\u2581é中🦙", max_size=30) | st.text(max_size=30))
def test_sentencepiece_merges_as_scores_say(text: str) -> None:
    meta = metadata("llama-spm")
    expected = merge_by_score(
        " " + text if text else "", tokens_of("llama-spm"), meta["tokenizer.ggml.scores"]
    )
    assert tokenizer("llama-spm").encode(text, add_special=False, parse_special=False) == expected


def test_user_defined_tokens_are_found_even_unparsed() -> None:
    assert tokenizer("qwen2").encode("a[PAD151646]b", parse_special=False) == [64, 151646, 65]


@pytest.mark.parametrize(
    ("name", "ids"),
    [
        ("llama-spm", [1, 15043]),
        ("llama-bpe", [128000, 9906]),
        ("deepseek-llm", [100000, 17464]),
        ("qwen2", [9707]),
        ("gpt-2", [15496]),
        ("bert-bge", [101, 7592, 102]),
    ],
)
def test_the_first_and_last_tokens_are_what_the_model_wants(name: str, ids: list[int]) -> None:
    assert tokenizer(name).encode("Hello") == ids


@pytest.mark.parametrize("name", ["llama-spm", "llama-bpe", "deepseek-llm"])
def test_a_text_that_begins_with_bos_does_not_get_another(name: str) -> None:
    model = tokenizer(name)
    assert model.bos_id is not None
    bos = model.token_text(model.bos_id)
    assert model.encode(f"{bos}Hello") == [model.bos_id, *model.encode("Hello", add_special=False)]


def test_phi3_marks_take_the_white_space_behind_them() -> None:
    model = tokenizer("phi-3")
    spaced = model.encode("<|user|>\n hi<|end|>\n<|assistant|>\n", add_special=False)
    assert spaced == model.encode("<|user|>hi<|end|><|assistant|>", add_special=False)


@pytest.mark.parametrize(
    ("name", "eog"),
    [
        ("qwen2", {"<|endoftext|>", "<|im_end|>"}),
        ("llama-bpe", {"<|end_of_text|>", "<|eot_id|>"}),
        ("phi-3", {"<|endoftext|>", "<|end|>"}),
        ("llama-spm", {"</s>"}),
        ("deepseek-llm", {"<｜end▁of▁sentence｜>"}),
    ],
)
def test_generation_ends_at_named_and_well_known_tokens(name: str, eog: set[str]) -> None:
    model = tokenizer(name)
    assert set(map(model.token_text, model.eog_ids)) == eog


def test_the_largest_vocabulary_builds_within_its_budget() -> None:
    meta = metadata("qwen2")
    begin_s = time.process_time()
    Tokenizer.from_metadata(meta)
    assert time.process_time() - begin_s < BUILD_BUDGET_S
