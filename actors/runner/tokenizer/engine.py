"""Engines of the `tokenizers` library, built from a vocabulary: plain text in, token ids out.

Special tokens are no business of an engine: `marks` finds them before, so that no setting of an engine can
let text pass for a control token.
"""

import itertools

import numpy as np
from tokenizers import Tokenizer as Engine
from tokenizers.models import BPE, WordPiece
from tokenizers.normalizers import BertNormalizer, Replace
from tokenizers.pre_tokenizers import BertPreTokenizer

from actors.errors import ModelError, Unsupported
from actors.runner.tokenizer.pieces import BYTE_LETTERS, WORD_START
from actors.runner.tokenizer.pretokenizer import Rules, build_pre_tokenizer
from actors.runner.tokenizer.vocabulary import KEY, WHERE, TokenType, Vocabulary, token_byte

MAX_PIECE_CHARS = 1024  # of a SentencePiece token: the ways to split it are tried one by one
_CONTINUED = "##"  # how the engine marks a WordPiece token inside a word


def build_byte_level(vocabulary: Vocabulary, rules: Rules) -> Engine:
    """Byte-level BPE (`gpt2`): merges in the file's order, inside the words that the rules cut.

    A byte whose letter is no token is left out of the ids, as the models' own tokenizers do.
    """
    if vocabulary.merges is None:
        raise ModelError(f"no {KEY}merges in the file, which {KEY}model gpt2 needs", where=WHERE)
    ids = _ids(vocabulary)
    missing = [byte for byte in range(0x21, 0x7F) if BYTE_LETTERS[byte] not in ids]
    if missing:
        raise ModelError(
            f"{KEY}tokens has no token for {chr(missing[0])!r}, expected a byte-level vocabulary",
            where=WHERE,
            mend=f"check {KEY}model",
        )
    if rules.ignore_merges:
        # here a whole word may become a token without merges, and that token must not be a control token
        _drop_control(ids, vocabulary, min_chars=2)
    merges = [(merge[: (at := merge.find(" ", 1))], merge[at + 1 :]) for merge in vocabulary.merges]
    engine = Engine(_bpe(ids, merges, ignore_merges=rules.ignore_merges))
    engine.pre_tokenizer = build_pre_tokenizer(rules)
    return engine


def build_sentencepiece(vocabulary: Vocabulary) -> Engine:
    """SentencePiece BPE (`llama`): of all neighbours whose join is a token, the best-scored join first.

    The engine wants ranked merges, so every way to write a token as two tokens becomes one, ranked by the
    score of the token.  Characters that are no token fall back to the tokens of their bytes.
    """
    ids = _ids(vocabulary)
    _drop_control(ids, vocabulary, min_chars=1)
    for token_id in vocabulary.ids_of(TokenType.BYTE):
        byte = token_byte(vocabulary.tokens[token_id])
        if byte is not None:
            ids[f"<0x{byte:02X}>"] = token_id  # the spelling that the engine looks for
    unknown = None if vocabulary.unk_id is None else vocabulary.tokens[vocabulary.unk_id]
    if unknown is None and (absent := [n for n in range(256) if f"<0x{n:02X}>" not in ids]):
        raise ModelError(
            f"{KEY}tokens has neither an unknown token nor one for the byte <0x{absent[0]:02X}>", where=WHERE
        )
    if unknown is not None and vocabulary.unk_id is not None:
        ids[unknown] = vocabulary.unk_id
    engine = Engine(_bpe(ids, _ranked_merges(vocabulary), unk_token=unknown, byte_fallback=True))
    engine.normalizer = Replace(" ", WORD_START)
    return engine


def build_wordpiece(vocabulary: Vocabulary) -> Engine:
    """WordPiece (`bert`): uncased BERT's cleaning and word splitting, then the longest token that fits."""
    if vocabulary.unk_id is None:
        raise ModelError(f"no {KEY}unknown_token_id in the file, which {KEY}model bert needs", where=WHERE)
    special = set(vocabulary.ids_of(TokenType.CONTROL, TokenType.UNKNOWN))
    ids: dict[str, int] = {}
    for token_id, text in enumerate(vocabulary.tokens):
        if token_id in special or not _is_text(text):
            continue
        ids[text[1:] if text.startswith(WORD_START) else _CONTINUED + text] = token_id
    # the engine's name for the unknown token must be one that no word can have: words have no spaces
    unknown = f"unknown {vocabulary.unk_id}"
    ids[unknown] = vocabulary.unk_id
    engine = Engine(WordPiece(ids, unk_token=unknown, continuing_subword_prefix=_CONTINUED))
    engine.normalizer = BertNormalizer(lowercase=True)
    engine.pre_tokenizer = BertPreTokenizer()
    return engine


def build_engine(vocabulary: Vocabulary, rules: Rules | None) -> Engine:
    """The engine for `tokenizer.ggml.model`; rules are for byte-level BPE.  Unsupported for other models."""
    if vocabulary.model == "gpt2" and rules is not None:
        return build_byte_level(vocabulary, rules)
    if vocabulary.model == "llama":
        return build_sentencepiece(vocabulary)
    if vocabulary.model == "bert":
        return build_wordpiece(vocabulary)
    raise Unsupported(
        f"{KEY}model is {vocabulary.model!r}, which is not known",
        where=WHERE,
        mend="known are gpt2 (byte-level BPE), llama (SentencePiece BPE) and bert (WordPiece)",
    )


def _is_text(text: str) -> bool:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def _ids(vocabulary: Vocabulary) -> dict[str, int]:
    """Token ids by text; of two tokens with one text the later.  Texts that are no UTF-8 can never be met."""
    tokens = vocabulary.tokens
    ids = dict(zip(tokens, itertools.count()))
    if not _is_text("".join(tokens)):
        ids = {text: token_id for text, token_id in ids.items() if _is_text(text)}
    return ids


def _drop_control(ids: dict[str, int], vocabulary: Vocabulary, min_chars: int) -> None:
    """Take control and unknown tokens of at least so many characters out of what plain text can become."""
    for token_id in vocabulary.ids_of(TokenType.CONTROL, TokenType.UNKNOWN):
        text = vocabulary.tokens[token_id]
        if len(text) >= min_chars and ids.get(text) == token_id:
            del ids[text]


def _bpe(
    ids: dict[str, int],
    merges: list[tuple[str, str]],
    *,
    ignore_merges: bool = False,
    byte_fallback: bool = False,
    unk_token: str | None = None,
) -> BPE:
    try:
        return BPE(ids, merges, ignore_merges=ignore_merges, byte_fallback=byte_fallback, unk_token=unk_token)
    except Exception as exc:  # the engine raises nothing narrower; it refused what the file says
        raise ModelError(f"{KEY}merges does not fit {KEY}tokens: {exc}", where=WHERE) from exc


def _ranked_merges(vocabulary: Vocabulary) -> list[tuple[str, str]]:
    if vocabulary.scores is None:
        raise ModelError(f"no {KEY}scores in the file, which {KEY}model llama needs", where=WHERE)
    # control, unknown and byte tokens never come of text: "<s>" typed by a user stays three characters
    texts = vocabulary.ids_of(TokenType.NORMAL, TokenType.UNUSED, TokenType.USER_DEFINED)
    known = {vocabulary.tokens[i] for i in texts}
    longest = max(texts, key=lambda i: len(vocabulary.tokens[i]), default=0)
    if len(vocabulary.tokens[longest]) > MAX_PIECE_CHARS:
        n_chars = len(vocabulary.tokens[longest])
        raise ModelError(
            f"{KEY}tokens: token {longest} has {n_chars} characters, the most is {MAX_PIECE_CHARS}",
            where=WHERE,
        )
    best_first: list[int] = np.array(texts, np.int64)[
        np.argsort(-vocabulary.scores[texts], kind="stable")
    ].tolist()
    return [
        (left, right)
        for text in (vocabulary.tokens[i] for i in best_first)
        for at in range(1, len(text))
        if (left := text[:at]) in known and (right := text[at:]) in known
    ]
