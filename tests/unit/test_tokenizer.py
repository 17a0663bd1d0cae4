"""Tokenizers from small vocabularies made here: special tokens, refusals, pre-tokenizers."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer as Library
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel, Sequence

from actors.errors import ModelError, Unsupported
from actors.runner.tokenizer import Tokenizer
from actors.runner.tokenizer.marks import Marks
from actors.runner.tokenizer.pieces import BYTE_LETTERS
from actors.runner.tokenizer.pretokenizer import RULES, build_pre_tokenizer, rules_named
from tests.unit.sentencepiece import merge_by_score

KEY = "tokenizer.ggml."
BYTE_TOKENS = [f"<0x{byte:02X}>" for byte in range(256)]


def meta_of(**keys: object) -> dict[str, object]:
    return {KEY + name: value for name, value in keys.items() if value is not None}


def byte_level(marks: dict[str, int] | None = None, **keys: object) -> dict[str, object]:
    """256 bytes, "he", "ll", "hell", "Ġhell", and marks: text to token type."""
    marks = {"<|bos|>": 3, "<|im_end|>": 3} if marks is None else marks
    tokens = [*BYTE_LETTERS, "he", "ll", "hell", "Ġhell", *marks]
    types = [1] * 260 + list(marks.values())
    merges = ["h e", "l l", "he ll", "Ġ hell"]
    all_keys = {"model": "gpt2", "pre": "gpt-2", "tokens": tokens, "token_type": types, "merges": merges}
    return meta_of(**(all_keys | {"bos_token_id": 260, "eos_token_id": 261} | keys))


def sentencepiece(words: list[str], scores: list[float] | None = None, **keys: object) -> dict[str, object]:
    tokens = ["<unk>", "<s>", "</s>", *BYTE_TOKENS, *words]
    all_scores = [0.0] * 259 + (scores or [-float(n) for n in range(len(words))])
    types = [2, 3, 3] + [6] * 256 + [1] * len(words)
    return meta_of(**({"model": "llama", "tokens": tokens, "scores": all_scores, "token_type": types} | keys))


def wordpiece(**keys: object) -> dict[str, object]:
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "▁play", "ing", "▁,", "▁中", "▁a"]
    all_keys = {"model": "bert", "tokens": tokens, "token_type": [3, 3, 3, 3, 1, 1, 1, 1, 1]}
    roles = {"unknown_token_id": 1, "cls_token_id": 2, "seperator_token_id": 3}
    return meta_of(**(all_keys | roles | keys))


def build(meta: dict[str, object]) -> Tokenizer:
    return Tokenizer.from_metadata(meta)


SMALL = build(byte_level())


def test_merges_are_made_in_the_words_that_the_rules_cut() -> None:
    assert list(map(SMALL.token_text, SMALL.encode("hell hello"))) == ["hell", "Ġhell", "o"]


@st.composite
def merge_lists(draw: st.DrawFn) -> list[tuple[str, str]]:
    """Merges in any order over a few letters, each of parts that a merge before it or a byte made."""
    texts = ["a", "b", "Ġ", "Ã", "©"]
    merges: list[tuple[str, str]] = []
    for _ in range(draw(st.integers(0, 12))):
        left, right = draw(st.sampled_from(texts)), draw(st.sampled_from(texts))
        if (left, right) not in merges:
            merges.append((left, right))
            texts.append(left + right)
    return draw(st.permutations(merges))


@given(merges=merge_lists(), text=st.text("ab é", max_size=30), pre=st.sampled_from(["gpt-2", "llama-bpe"]))
@settings(deadline=None)
def test_merging_gives_what_the_tokenizers_library_gives(
    merges: list[tuple[str, str]], text: str, pre: str
) -> None:
    tokens = [*BYTE_LETTERS, *dict.fromkeys(left + right for left, right in merges)]
    written = [f"{left} {right}" for left, right in merges]
    ours = build(meta_of(model="gpt2", pre=pre, tokens=tokens, merges=written, add_bos_token=False))
    ids = {token: token_id for token_id, token in enumerate(tokens)}
    judge = Library(BPE(ids, merges, ignore_merges=rules_named(pre).ignore_merges))
    judge.pre_tokenizer = Sequence([build_pre_tokenizer(rules_named(pre)), ByteLevel(False, use_regex=False)])
    assert ours.encode(text) == judge.encode(text).ids


@given(n_words=st.integers(1, 200))
def test_a_long_word_is_merged_like_a_short_one(n_words: int) -> None:
    assert SMALL.encode("hell" * n_words) == [258] * n_words


@given(st.text())
def test_byte_level_text_survives_and_its_pieces_are_its_bytes(text: str) -> None:
    ids = SMALL.encode(text, parse_special=False)
    assert b"".join(map(SMALL.piece, ids)) == text.encode()
    assert SMALL.decode(ids) == text


def test_every_byte_has_a_piece_of_its_own() -> None:
    assert [SMALL.piece(byte) for byte in range(256)] == [bytes((byte,)) for byte in range(256)]


def test_text_that_begins_and_ends_with_its_marks_gets_no_more() -> None:
    model = build(byte_level(add_bos_token=True, add_eos_token=True))
    assert model.encode("he") == [260, 256, 261]
    assert model.encode("<|bos|>he<|im_end|>") == [260, 256, 261]
    assert model.encode("") == [260, 261]


@pytest.mark.parametrize(
    ("pre", "key", "adds"),
    [("gpt-2", None, False), ("gpt-2", True, True), ("llama-bpe", None, True), ("llama-bpe", False, False)],
)
def test_bos_is_added_as_the_file_says_or_the_family_does(pre: str, key: bool | None, adds: bool) -> None:
    assert build(byte_level(pre=pre, add_bos_token=key)).adds_bos is adds


def test_glm_has_no_bos_whatever_id_the_file_gives() -> None:
    model = build(byte_level(pre="glm4", add_bos_token=True))
    assert (model.bos_id, model.encode("he")) == (None, [256])


def test_a_word_that_is_a_token_needs_no_merges_where_the_model_ignores_them() -> None:
    tokens = [*BYTE_LETTERS, "word", "secret"]
    types = [1] * 257 + [3]
    model = build(meta_of(model="gpt2", pre="llama-bpe", tokens=tokens, token_type=types, merges=[]))
    assert model.encode("word") == [256]
    assert 257 not in model.encode("secret", parse_special=False)


def test_a_user_defined_token_is_found_unparsed_and_a_control_token_is_not() -> None:
    model = build(byte_level({"<tool>": 4, "<ctl>": 3}, bos_token_id=None, eos_token_id=None))
    assert model.encode("<tool>", parse_special=False) == [260]
    assert model.encode("<ctl>", parse_special=False) == list(b"<ctl>")
    assert model.encode("a<ctl><tool>") == [ord("a"), 261, 260]
    assert model.decode([260, 261]) == "<tool>"


def test_a_lone_surrogate_counts_as_a_replacement_character() -> None:
    assert SMALL.encode("a\ud800b") == SMALL.encode("a\ufffdb")


def test_ids_outside_the_vocabulary_are_an_error() -> None:
    for token_id in (-1, SMALL.n_vocab):
        with pytest.raises(IndexError):
            SMALL.piece(token_id)
        with pytest.raises(IndexError):
            SMALL.token_text(token_id)


def test_a_token_that_is_no_utf8_keeps_its_bytes() -> None:
    model = build(byte_level({"\udcff\udcfe": 1}, bos_token_id=None, eos_token_id=None))
    assert model.piece(260) == b"\xff\xfe"
    assert model.decode(model.encode("hell")) == "hell"


def test_a_token_outside_the_byte_alphabet_stands_for_itself() -> None:
    model = build(byte_level({"é 中": 1}, bos_token_id=None, eos_token_id=None))
    assert model.piece(260) == b"\xe9 \xe4\xb8\xad"


# --- end of generation


def test_named_and_well_known_control_tokens_end_generation() -> None:
    marks = {"<|a|>": 3, "<|eot_id|>": 3, "<|b|>": 3, "</s>": 4, "<|c|>": 3, "<|end|>": 1}
    model = build(byte_level(marks, eos_token_id=260, eot_token_id=262, eom_token_id=264, bos_token_id=None))
    assert model.eog_ids == {260, 261, 262, 264}


def test_a_harmony_message_end_does_not_end_the_turn() -> None:
    marks = {"<|return|>": 3, "<|call|>": 3, "<|end|>": 3}
    assert build(byte_level(marks, eos_token_id=260, bos_token_id=None)).eog_ids == {260, 261}


# --- SentencePiece


WORDS = ["▁", "a", "b", "c", "ab", "bc", "abc", "▁a", "aa", "aaa", "▁ab", "bb", "▁▁"]


@given(text=st.text("ab c", max_size=12), order=st.permutations(range(len(WORDS))))
@settings(deadline=None)
def test_sentencepiece_merges_the_best_scored_pair_first(text: str, order: list[int]) -> None:
    scores = [-float(rank) for rank in order]
    model = build(sentencepiece(WORDS, scores, add_space_prefix=False))
    ids = {word: 259 + n for n, word in enumerate(WORDS)}
    assert model.encode(text, add_special=False) == merge_by_score(text, ids, [0.0] * 259 + scores)


def test_characters_without_a_token_become_their_bytes_and_come_back() -> None:
    model = build(sentencepiece(["▁", "a"]))
    ids = model.encode("aé🦙")
    assert ids == [1, 259, 260, *(3 + byte for byte in "é🦙".encode())]
    assert model.decode(ids) == "aé🦙"


def test_byte_tokens_and_control_tokens_cannot_be_typed() -> None:
    model = build(sentencepiece(["▁", "<", "s", ">", "<s", "0x", "A", "<0x0", "A>", "<0x0A", "s>"]))
    ids = model.encode("<s><0x0A>", parse_special=False, add_special=False)
    assert not {0, 1, 2, 3 + 0x0A} & set(ids)
    assert model.decode(ids) == "<s><0x0A>"


def test_text_behind_a_mark_gets_its_space_prefix_and_loses_it_again() -> None:
    model = build(sentencepiece(["▁", "a", "▁a"]))
    ids = model.encode("a</s>a a", add_special=False)
    assert ids == [261, 2, 261, 261]
    assert model.decode(ids, special=True) == "a</s>a a"
    assert model.decode(ids) == "a a a"


def test_the_space_prefix_is_left_out_where_the_file_says_so() -> None:
    model = build(sentencepiece(["▁", "a", "▁a"], add_space_prefix=False))
    assert model.encode("a a", add_special=False) == [260, 261]
    assert model.decode([261]) == " a"


def test_gemma3_has_no_space_prefix_where_its_file_says_nothing() -> None:
    words = sentencepiece(["▁", "a", "▁a"])
    assert build(words).encode("a", add_special=False) == [261]
    model = build({"general.architecture": "gemma3"} | words)
    assert model.encode("a a", add_special=False) == [260, 261]
    assert model.decode([261]) == " a"


def test_the_end_of_a_turn_ends_generation_beside_the_end_of_a_document() -> None:
    tokens = ["<pad>", "<eos>", "<bos>", "<unk>", *BYTE_TOKENS, "\n", "<start_of_turn>", "<end_of_turn>", "m"]
    types = [3, 3, 3, 2, *[6] * 256, 1, 3, 3, 1]
    ids = {"bos_token_id": 2, "eos_token_id": 1, "unknown_token_id": 3, "padding_token_id": 0}
    scores = [0.0] * len(tokens)
    model = build(
        meta_of(model="llama", tokens=tokens, token_type=types, scores=scores, add_space_prefix=False, **ids)
    )
    assert model.eog_ids == {1, 262}
    assert model.encode("<bos><start_of_turn>m\nm<end_of_turn>")[:5] == [2, 261, 263, 260, 263]


# --- WordPiece


def test_wordpiece_splits_words_and_puts_its_marks_around() -> None:
    model = build(wordpiece())
    assert model.encode("Playing, 中ing") == [2, 4, 5, 6, 7, 1, 3]
    assert model.decode([2, 4, 5, 6, 3]) == "playing ,"
    assert model.decode([2, 4, 5, 3], special=True) == "[CLS] playing[SEP]"


def test_wordpiece_control_tokens_are_text_when_not_parsed() -> None:
    model = build(wordpiece())
    assert model.encode("[SEP]", add_special=False) == [3]
    assert 3 not in model.encode("[SEP]", add_special=False, parse_special=False)


# --- marks


@given(
    st.dictionaries(st.text("ab<", min_size=1, max_size=4), st.integers(0, 99), max_size=6), st.text("ab<c")
)
def test_marks_leave_no_character_out_and_take_the_longest_first(ids: dict[str, int], text: str) -> None:
    parts = list(Marks(ids).split(text))
    assert "".join(part for part, _ in parts) == text
    at = 0
    for part, token_id in parts:
        here = [mark for mark in ids if text.startswith(mark, at)]
        assert (ids[part] if token_id is not None else None) == token_id
        assert part == max(here, key=len) if token_id is not None else not here
        at += len(part)


def test_an_empty_mark_marks_nothing() -> None:
    assert list(Marks({"": 1, "x": 2}).split("axa")) == [("a", None), ("x", 2), ("a", None)]


# --- pre-tokenizers


def words(name: str, text: str) -> list[str]:
    return [piece for piece, _ in build_pre_tokenizer(rules_named(name)).pre_tokenize_str(text)]


@pytest.mark.parametrize("name", sorted(RULES))
@given(text=st.text(max_size=40))
@settings(deadline=None, max_examples=25)
def test_no_rule_loses_a_character(name: str, text: str) -> None:
    assert "".join(words(name, text)) == text


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("gpt-2", "I'll pay  12345 €!\n\n", ["I", "'ll", " pay", " ", " 12345", " €!", "\n\n"]),
        ("default", "a=$1234.5", ["a", "=$", "123", "4", ".", "5"]),
        ("llama-bpe", "I'LL pay 12345!\n", ["I", "'LL", " pay", " ", "123", "45", "!\n"]),
        ("qwen2", "x 123", ["x", " ", "1", "2", "3"]),
        ("qwen2", "e\u0301te", ["e", "\u0301te"]),
        ("qwen35", "e\u0301te", ["e\u0301te"]),
        ("starcoder", "x 12's", ["x", " ", "1", "2", "'s"]),
        ("deepseek-v3", "中文x, .foo 1234", ["中文", "x", ",", " .", "foo", " ", "123", "4"]),
        ("deepseek-coder", "a, 12\n", ["a", ",", " ", "1", "2", "\n"]),
        ("deepseek-llm", "Ab, 한국 12\n", ["Ab", ",", " ", "한국", " ", "12", "\n"]),
        ("tekken", "helloWorld 12/\n", ["hello", "World", " ", "1", "2", "/\n"]),
        ("gpt-4o", "HelloWORLD's 1234", ["Hello", "WORLD's", " ", "123", "4"]),
        ("falcon", "a`b 1234", ["a", "`", "b", " ", "123", "4"]),
    ],
)
def test_words_are_cut_as_the_family_cuts_them(name: str, text: str, expected: list[str]) -> None:
    assert words(name, text) == expected


def test_an_unknown_pre_tokenizer_is_refused_by_name_with_the_known_ones() -> None:
    with pytest.raises(Unsupported, match=r"'my-own'.*llama-bpe.*qwen2"):
        build(byte_level(pre="my-own"))


def test_an_unknown_tokenizer_model_is_refused_by_name() -> None:
    with pytest.raises(Unsupported, match=r"'rwkv'.*gpt2.*llama.*bert"):
        build(byte_level(model="rwkv"))


# --- bad files


@pytest.mark.parametrize(
    ("meta", "names"),
    [
        ({}, "tokenizer.ggml.model"),
        (byte_level(model=7), "tokenizer.ggml.model is 7, expected str"),
        (byte_level(tokens=None), "tokenizer.ggml.tokens"),
        (byte_level(tokens=[]), "tokenizer.ggml.tokens"),
        (byte_level(tokens="abc"), "tokenizer.ggml.tokens is str"),
        (byte_level(tokens=np.arange(3)), "tokenizer.ggml.tokens is an array of something else"),
        (byte_level(tokens=["a", "b"], token_type=None, bos_token_id=0, eos_token_id=1), "no token for"),
        (byte_level(merges=None), "no tokenizer.ggml.merges"),
        (byte_level(merges=["h zz"]), "tokenizer.ggml.merges does not fit"),
        (byte_level(merges=["hh"]), "tokenizer.ggml.merges does not fit"),
        (byte_level(token_type=[1, 1]), "token_type has 2 numbers, but there are 262 tokens"),
        (byte_level(token_type=["x"] * 262), "token_type is of type"),
        (byte_level(bos_token_id=262), "bos_token_id is 262, but there are 262 tokens"),
        (byte_level(eos_token_id="x"), "eos_token_id is 'x', expected int"),
        (byte_level(add_bos_token=1), "add_bos_token is 1, expected bool"),
        (sentencepiece(["a"], scores=[float("nan")]), "scores has a NaN for token 259"),
        (sentencepiece(["a"]) | {KEY + "scores": None}, "no tokenizer.ggml.scores"),
        (sentencepiece(["a" * 1025]), "token 259 has 1025 characters"),
        (meta_of(model="llama", tokens=["a"], scores=[0.0], unknown_token_id=-1), "byte <0x00>"),
        (wordpiece(unknown_token_id=None), "no tokenizer.ggml.unknown_token_id"),
    ],
)
def test_a_bad_vocabulary_is_an_error_that_names_the_key(meta: dict[str, Any], names: str) -> None:
    with pytest.raises(ModelError) as caught:
        build(meta)
    assert names in str(caught.value)


def test_an_id_that_means_none_is_none() -> None:
    model = build(byte_level(bos_token_id=0xFFFFFFFF, eos_token_id=-1))
    assert (model.bos_id, model.eos_id) == (None, None)


def test_a_vocabulary_without_types_still_has_its_special_tokens() -> None:
    model = build(sentencepiece(["▁", "a"]) | {KEY + "token_type": None})
    assert [i for i in range(model.n_vocab) if model.is_control(i)] == [0, 1, 2]
    assert model.piece(3 + 0x0A) == b"\n"
