"""SentencePiece unigram: the library's own segmentations, the best one by trying all, damaged files."""

import base64
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from actors.errors import ModelError
from actors.runner.tokenizer import Tokenizer

KEY = "tokenizer.ggml."
# Small models trained by sentencepiece on texts of this project, with replacements, marks and bytes; recorded
# are their pieces and what the library makes of some texts.
RECORDED: dict[str, Any] = json.loads((Path(__file__).parent / "unigram_vectors.json").read_text())


def meta_of(recorded: dict[str, Any], **changes: object) -> dict[str, object]:
    given: dict[str, object] = {
        "model": "t5",
        "tokens": recorded["tokens"],
        "scores": np.array(recorded["scores"], np.float32),
        "token_type": np.array(recorded["types"], np.int32),
        "precompiled_charsmap": np.frombuffer(base64.b64decode(recorded["charsmap"]), np.uint8),
        "add_space_prefix": recorded["add_space_prefix"],
        "remove_extra_whitespaces": recorded["remove_extra_whitespaces"],
        "unknown_token_id": recorded["unk"],
        "eos_token_id": recorded["eos"],
        **changes,
    }
    return {KEY + name: value for name, value in given.items() if value is not None}


@pytest.mark.parametrize("name", RECORDED)
def test_ids_are_those_of_sentencepiece(name: str) -> None:
    tokenizer = Tokenizer.from_metadata(meta_of(RECORDED[name]))
    for text, ids in RECORDED[name]["vectors"]:
        assert tokenizer.encode(text, add_special=False, parse_special=False) == ids, text


PIECES = {"▁": -2.0, "a": -3.0, "b": -3.0, "ab": -4.0, "▁a": -3.5, "ba": -5.5, "aba": -9.0, "bb": -6.0}


def small(**changes: object) -> dict[str, object]:
    tokens = ["<pad>", "</s>", "<unk>", *PIECES]
    recorded = {
        "tokens": tokens,
        "scores": [0.0, 0.0, 0.0, *PIECES.values()],
        "types": [3, 3, 2, *[1] * len(PIECES)],
        "charsmap": "",
        "add_space_prefix": True,
        "remove_extra_whitespaces": True,
        "unk": 2,
        "eos": 1,
    }
    return meta_of(recorded, **changes)


def best_score(text: str) -> float:
    """Of all ways to cut the text."""
    unknown = min(PIECES.values()) - 10
    best = [0.0] + [-np.inf] * len(text)
    for end in range(1, len(text) + 1):
        for start in range(end):
            piece = text[start:end]
            score = PIECES.get(piece, unknown if end - start == 1 else -np.inf)
            best[end] = max(best[end], best[start] + score)
    return best[-1]


@given(st.text("ab cd", max_size=12))
def test_no_other_cut_is_likelier(text: str) -> None:
    tokenizer = Tokenizer.from_metadata(small())
    ids = tokenizer.encode(text, add_special=False)
    words = " ".join(text.split())
    written = f"▁{words}".replace(" ", "▁") if words else ""
    scores = [0.0, 0.0, min(PIECES.values()) - 10, *PIECES.values()]
    if not any(a == b == "?" for a, b in zip(masked(written), masked(written)[1:], strict=False)):
        # unknown characters that stand together are one token
        assert sum(scores[i] for i in ids) == pytest.approx(best_score(written))
    known = "".join(tokenizer.token_text(i) if i != 2 else "?" for i in ids)
    assert known == collapsed(masked(written))


def masked(text: str) -> str:
    return "".join(char if char in "ab▁" else "?" for char in text)


def collapsed(text: str) -> str:
    return "".join(char for i, char in enumerate(text) if char != "?" or text[i - 1 : i] != "?")


def test_a_text_ends_with_its_end_and_comes_back_as_it_was() -> None:
    tokenizer = Tokenizer.from_metadata(small())
    ids = tokenizer.encode("ab  ba b")
    assert ids[-1] == tokenizer.eos_id == 1
    assert tokenizer.decode(ids) == "ab ba b"
    assert Tokenizer.from_metadata(small(add_eos_token=False)).encode("ab") == ids[:2]


def test_what_a_user_writes_is_no_control_token() -> None:
    tokenizer = Tokenizer.from_metadata(small())
    assert tokenizer.encode("a</s>", add_special=False)[-1] == 1
    assert 1 not in tokenizer.encode("a</s>", add_special=False, parse_special=False)


def test_long_texts_take_time_by_their_length_and_no_stack() -> None:
    tokenizer = Tokenizer.from_metadata(small())
    assert len(tokenizer.encode("ab" * 100_000, add_special=False)) == 1 + 100_000


def bytes_map(n_bytes: int, *rest: int) -> "np.ndarray[Any, np.dtype[np.uint8]]":
    words = np.array([n_bytes, *rest], np.uint32).tobytes()
    return np.frombuffer(words, np.uint8)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"scores": None}, "no tokenizer.ggml.scores"),
        ({"unknown_token_id": -1}, "no tokenizer.ggml.unknown_token_id"),
        ({"tokens": ["<pad>", "</s>", "<unk>", "a" * 1025, *list(PIECES)[1:]]}, "has 1025 characters"),
        ({"precompiled_charsmap": np.zeros(3, np.float32)}, "precompiled_charsmap is of type float32"),
        ({"precompiled_charsmap": np.zeros(3, np.uint8)}, "precompiled_charsmap is damaged: 3 bytes"),
        ({"precompiled_charsmap": bytes_map(4096, 0)}, "is damaged: 8 bytes, of which an array of 4096"),
        ({"precompiled_charsmap": bytes_map(4, 0)}, "the last replacement has no end"),
        ({"precompiled_charsmap": bytes_map(4, 1 << 8 | 5 << 10, 0)}, "a unit leads to no leaf"),
        ({"precompiled_charsmap": bytes_map(8, 1 << 8 | 1 << 10, 1 << 31 | 9, 0)}, "points behind"),
    ],
)
def test_damage_is_named(changes: dict[str, object], said: str) -> None:
    with pytest.raises(ModelError, match=said):
        Tokenizer.from_metadata(small(**changes))


@given(st.binary(max_size=400), st.text(max_size=30))
def test_any_map_is_refused_or_used(raw: bytes, text: str) -> None:
    units = raw[: len(raw) // 2 // 4 * 4]
    blob = len(units).to_bytes(4, "little") + raw + b"\0"
    try:
        tokenizer = Tokenizer.from_metadata(small(precompiled_charsmap=np.frombuffer(blob, np.uint8)))
    except ModelError:
        return
    assert all(0 <= i < tokenizer.n_vocab for i in tokenizer.encode(text))
