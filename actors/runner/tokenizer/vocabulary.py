"""What a GGUF file says about its vocabulary, read and checked; no tokenising yet.

Key names and token types: the GGUF specification, "Tokenizer" (`tokenizer.ggml.*`).
"""

import enum
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar, cast

import numpy as np
from numpy.typing import NDArray

from actors.errors import ModelError
from actors.runner.gguf.strings import StringArray

KEY = "tokenizer.ggml."
WHERE = "runner.tokenizer"
USUAL_UNKNOWN = {"llama": 0, "bert": 100, "t5": 2}  # token, where a file names none
NO_TOKEN = (-1, 0xFFFFFFFF)  # how writers say "there is none" in a signed and an unsigned field

# Texts that end a turn or a document in the models there are.  As control tokens they end generation even
# where the file names another one as its end (a model made for documents, tuned later for chat).
END_TEXTS = (
    "<|eot_id|>", "<|im_end|>", "<|end|>", "<|return|>", "<|call|>", "<|endoftext|>", "<|end_of_text|>",
    "<|eom_id|>", "<end_of_turn>", "<end_of_utterance>", "<EOT>", "_<EOT>", "[EOT]", "[EOS]", "</s>",
    "<｜end▁of▁sentence｜>", "<|fim_pad|>", "<|repo_name|>", "<|file_sep|>",
)  # fmt: skip
_HTML_LIKE = (
    "</s>"  # also the end of struck-out text in HTML: only a control token of that text ends anything
)
_BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")

T = TypeVar("T", bool, int, str)


class TokenType(enum.IntEnum):
    """`tokenizer.ggml.token_type`."""

    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """The tokens of a model and the roles some of them have."""

    model: str  # "gpt2", "llama", "bert", "t5"
    pre: str  # name of the pre-tokenizer, "default" when the file has none
    name: str  # general.name, lower case: some models' rules hang on it
    tokens: StringArray  # [n_vocab]
    types: NDArray[np.uint8]  # [n_vocab] TokenType
    scores: NDArray[np.float32] | None  # [n_vocab]
    merges: StringArray | None  # "left right", best first
    bos_id: int | None
    eos_id: int | None
    unk_id: int | None
    cls_id: int | None
    sep_id: int | None
    eog_ids: frozenset[int]
    add_bos: bool | None  # None: the file does not say
    add_eos: bool | None
    add_sep: bool | None
    add_space_prefix: bool
    collapses_spaces: bool  # runs of spaces become one, those at both ends go
    replaced: bytes  # SentencePiece's compiled replacements of characters; empty: there are none

    def ids_of(self, *types: TokenType) -> list[int]:
        """Tokens of any of these types, ascending."""
        return np.flatnonzero(np.isin(self.types, types)).tolist()


def read_vocabulary(meta: Mapping[str, object]) -> Vocabulary:
    """Read `tokenizer.ggml.*`; ModelError names the key that is missing, of a wrong kind or out of range."""
    model = _scalar(meta, KEY + "model", str)
    if model is None:
        raise ModelError(
            f"no {KEY}model in the file", where=WHERE, mend="convert the model with its tokenizer"
        )
    tokens = _strings(meta, KEY + "tokens")
    if not tokens:
        raise ModelError(
            f"no {KEY}tokens in the file", where=WHERE, mend="convert the model with its tokenizer"
        )
    is_spm, is_bert, is_t5 = model == "llama", model == "bert", model == "t5"
    bos_id = _token_id(meta, "bos_token_id", len(tokens), 1 if is_spm else None)
    eos_id = _token_id(meta, "eos_token_id", len(tokens), 2 if is_spm else 1 if is_t5 else None)
    unk_id = _token_id(meta, "unknown_token_id", len(tokens), USUAL_UNKNOWN.get(model))
    cls_id = _token_id(meta, "cls_token_id", len(tokens), 101 if is_bert and bos_id is None else bos_id)
    sep_id = _token_id(meta, "seperator_token_id", len(tokens), 102 if is_bert and eos_id is None else eos_id)
    special_ids = [i for i in (bos_id, eos_id, cls_id, sep_id, unk_id) if i is not None]
    types = _types(meta, tokens, special_ids, has_bytes=is_spm)
    named = [eos_id, *(_token_id(meta, key, len(tokens), None) for key in ("eot_token_id", "eom_token_id"))]
    return Vocabulary(
        model=model,
        pre=_scalar(meta, KEY + "pre", str) or "default",
        name=(_scalar(meta, "general.name", str) or "").lower(),
        tokens=tokens,
        types=types,
        scores=_scores(meta, len(tokens)),
        merges=_strings(meta, KEY + "merges"),
        bos_id=bos_id,
        eos_id=eos_id,
        unk_id=unk_id,
        cls_id=cls_id,
        sep_id=sep_id,
        eog_ids=_eog_ids(tokens, types, [i for i in named if i is not None]),
        add_bos=_scalar(meta, KEY + "add_bos_token", bool),
        add_eos=is_t5 if (said := _scalar(meta, KEY + "add_eos_token", bool)) is None else said,
        add_sep=_scalar(meta, KEY + "add_sep_token", bool),
        add_space_prefix=_adds_space_prefix(meta),
        collapses_spaces=bool(_scalar(meta, KEY + "remove_extra_whitespaces", bool)),
        replaced=_replaced(meta),
    )


def token_byte(text: str) -> int | None:
    """The byte that a token written <0xNN> stands for; None for other texts."""
    match = _BYTE_TOKEN.fullmatch(text)
    return int(match[1], 16) if match else None


def _scalar(meta: Mapping[str, object], key: str, kind: type[T]) -> T | None:
    value = meta.get(key)
    if value is None:
        return None
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise ModelError(f"{key} is {value!r}, expected {kind.__name__}", where=WHERE)
    return value


def _adds_space_prefix(meta: Mapping[str, object]) -> bool:
    """SentencePiece's `add_dummy_prefix`; gemma's vocabularies have none, and not every converter says so."""
    said = _scalar(meta, KEY + "add_space_prefix", bool)
    return meta.get("general.architecture") != "gemma3" if said is None else said


def _replaced(meta: Mapping[str, object]) -> bytes:
    key = KEY + "precompiled_charsmap"
    value = np.asarray(meta.get(key, ()))
    if value.size == 0:
        return b""
    if value.ndim != 1 or value.dtype.kind not in "iu" or value.dtype.itemsize != 1:
        raise ModelError(f"{key} is of type {value.dtype}, expected an array of bytes", where=WHERE)
    return value.tobytes()


def _token_id(meta: Mapping[str, object], name: str, n_vocab: int, default: int | None) -> int | None:
    value = _scalar(meta, KEY + name, int)
    if value is None:
        return default if default is not None and default < n_vocab else None
    if value in NO_TOKEN:
        return None
    if not 0 <= value < n_vocab:
        raise ModelError(
            f"{KEY}{name} is {value}, but there are {n_vocab} tokens",
            where=WHERE,
            mend="convert the model again, or correct the key",
        )
    return value


def _strings(meta: Mapping[str, object], key: str) -> StringArray | None:
    value = meta.get(key)
    if value is None or isinstance(value, StringArray):
        return value
    tolist = getattr(value, "tolist", None)
    if tolist is None and not (isinstance(value, Sequence) and not isinstance(value, str | bytes)):
        raise ModelError(f"{key} is {type(value).__name__}, expected an array of strings", where=WHERE)
    items = cast("list[object]", tolist() if tolist is not None else list(cast("Sequence[object]", value)))
    if set(map(type, items)) - {str}:
        raise ModelError(f"{key} is an array of something else, expected an array of strings", where=WHERE)
    return StringArray.of(cast("list[str]", items))


def _numbers(meta: Mapping[str, object], key: str, n_vocab: int, kinds: str) -> NDArray[np.generic] | None:
    """An array with one number a token, of one of these numpy kinds; None when the file has none."""
    value = meta.get(key)
    if value is None:
        return None
    numbers = np.asarray(value)
    if numbers.ndim != 1 or numbers.dtype.kind not in kinds:
        raise ModelError(f"{key} is of type {numbers.dtype}, expected an array of numbers", where=WHERE)
    if len(numbers) != n_vocab:
        raise ModelError(f"{key} has {len(numbers)} numbers, but there are {n_vocab} tokens", where=WHERE)
    return numbers


def _scores(meta: Mapping[str, object], n_vocab: int) -> NDArray[np.float32] | None:
    scores = _numbers(meta, KEY + "scores", n_vocab, "fiu")
    if scores is None:
        return None
    wide = scores.astype(np.float32)
    if np.isnan(wide).any():
        raise ModelError(f"{KEY}scores has a NaN for token {int(np.isnan(wide).argmax())}", where=WHERE)
    return wide


def _types(
    meta: Mapping[str, object], tokens: StringArray, special_ids: list[int], *, has_bytes: bool
) -> NDArray[np.uint8]:
    types = _numbers(meta, KEY + "token_type", len(tokens), "iu")
    if types is not None:
        # what is not one of the six (0, undefined, is written for filled-up vocabularies) is plain text
        known = np.isin(types, list(TokenType))
        return np.where(known, types.astype(np.int64), int(TokenType.NORMAL)).astype(np.uint8)
    plain = np.full(len(tokens), TokenType.NORMAL, np.uint8)
    if has_bytes:
        plain[[i for i, text in enumerate(tokens) if token_byte(text) is not None]] = TokenType.BYTE
    plain[special_ids] = TokenType.CONTROL
    return plain


def _eog_ids(tokens: StringArray, types: NDArray[np.uint8], named: list[int]) -> frozenset[int]:
    """End of generation: what the file names, and control tokens with a well-known text."""
    marked = np.flatnonzero(np.isin(types, (TokenType.CONTROL, TokenType.USER_DEFINED))).tolist()
    ids = {tokens[i]: i for i in marked if types[i] == TokenType.CONTROL or tokens[i] != _HTML_LIKE}
    found = {ids[text] for text in END_TEXTS if text in ids}
    if {"<|return|>", "<|call|>", "<|end|>"} <= ids.keys():
        # in the harmony format a message ends with <|end|> and the turn goes on with the next one
        found.discard(ids["<|end|>"])
    return frozenset(found | set(named))
