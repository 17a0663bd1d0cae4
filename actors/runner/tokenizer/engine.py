"""Engines built from a vocabulary: plain text in, token ids out, other threads running meanwhile.

Special tokens are no business of an engine: `marks` finds them before, so that no setting of an engine can
let text pass for a control token.

The `tokenizers` library cuts text into words; merging inside them is native code of our own, which works on
the strings as the file has them.  Measured with the 128 256 tokens and 280 147 merges of llama 3: the library
takes 0.5 s and 140 MB for its tables, ours 0.05 s and 12 MB.
"""

from typing import Protocol

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer as Library
from tokenizers.models import WordLevel, WordPiece
from tokenizers.normalizers import BertNormalizer
from tokenizers.pre_tokenizers import BertPreTokenizer

from actors.errors import ModelError, Unsupported
from actors.runner import _native
from actors.runner.tokenizer.pieces import BYTE_LETTERS, WORD_START
from actors.runner.tokenizer.pretokenizer import Rules, build_pre_tokenizer
from actors.runner.tokenizer.vocabulary import KEY, WHERE, TokenType, Vocabulary, token_byte
from kernels.ops.op import I32

MAX_PIECE_CHARS = 1024  # of a SentencePiece token; bounds the work for each pair of neighbours
NO_TOKEN = -1
# to native `Unigram` PLAIN, UNUSED and USER; all others are no text
_PIECE_TYPES = (TokenType.NORMAL, TokenType.UNUSED, TokenType.USER_DEFINED)
_CONTINUED = "##"  # how the library marks a WordPiece token inside a word
_ANY_WORD = "?"  # the one token of a library tokenizer that is asked for words only


class Engine(Protocol):
    """Tokenises plain text; unchanging, so any number of threads may use it."""

    def encode(self, text: str) -> list[int]:
        """Token ids of well-formed text."""
        ...


class ByteLevelEngine:
    """Byte-level BPE (`gpt2`): merges in the file's order, inside the words that the rules cut.

    A byte whose letter is no token is left out of the ids, as the models' own tokenizers do.
    """

    def __init__(self, vocabulary: Vocabulary, rules: Rules) -> None:
        """ModelError for a vocabulary that is not byte-level, or merges that do not fit it."""
        if vocabulary.merges is None:
            raise ModelError(f"no {KEY}merges in the file, which {KEY}model gpt2 needs", where=WHERE)
        # here a whole word may become a token without merges, and that token must not be a control token
        skip = _control_flags(vocabulary, min_chars=2) if rules.ignore_merges else None
        index = _native.Index(vocabulary.tokens.data, vocabulary.tokens.starts, skip)
        letters = [letter.encode() for letter in BYTE_LETTERS]
        missing = [byte for byte in range(0x21, 0x7F) if index.find(letters[byte]) == NO_TOKEN]
        if missing:
            raise ModelError(
                f"{KEY}tokens has no token for {chr(missing[0])!r}, expected a byte-level vocabulary",
                where=WHERE,
                mend=f"check {KEY}model",
            )
        merges = vocabulary.merges
        try:
            self._bpe = _native.RankedBpe(
                index, BYTE_LETTERS, merges.data, merges.starts, whole_words=rules.ignore_merges
            )
        except ValueError as exc:
            raise ModelError(f"{KEY}merges does not fit {KEY}tokens: {exc}", where=WHERE) from exc
        self._words = Library(WordLevel({_ANY_WORD: 0}, unk_token=_ANY_WORD))
        self._words.pre_tokenizer = build_pre_tokenizer(rules)

    def encode(self, text: str) -> list[int]:
        """Token ids of well-formed text."""
        # a batch of one: only `encode_batch` lets other threads run meanwhile, and a long text takes a while
        offsets = self._words.encode_batch([text], add_special_tokens=False)[0].offsets
        ends = np.fromiter((end for _, end in offsets), np.int32, len(offsets))
        return self._bpe.encode(text.encode(), ends)


class SentencePieceEngine:
    """SentencePiece BPE (`llama`): of all neighbours whose join is a token, the best-scored join first.

    Of equal scores the leftmost.  Characters that are no token fall back to the tokens of their bytes.
    """

    def __init__(self, vocabulary: Vocabulary) -> None:
        """ModelError for a vocabulary without scores, or with neither byte tokens nor an unknown token."""
        tokens, unknown = vocabulary.tokens, vocabulary.unk_id
        skip = _control_flags(vocabulary, min_chars=1)
        if unknown is not None:
            skip[unknown] = 0
        index = _native.Index(tokens.data, tokens.starts, skip)
        byte_ids = np.array([index.find(b"<0x%02X>" % byte) for byte in range(256)], np.int32)
        typed_ids = _byte_ids(vocabulary)
        byte_ids = np.where(typed_ids == NO_TOKEN, byte_ids, typed_ids)
        absent = np.flatnonzero(byte_ids == NO_TOKEN)
        if unknown is None and absent.size:
            raise ModelError(
                f"{KEY}tokens has neither an unknown token nor one for the byte <0x{absent[0]:02X}>",
                where=WHERE,
            )
        unknown_id = NO_TOKEN if unknown is None else unknown
        self._bpe = _native.ScoredBpe(index, _ranks(vocabulary), byte_ids, unknown_id)

    def encode(self, text: str) -> list[int]:
        """Token ids of well-formed text."""
        return self._bpe.encode(text.replace(" ", WORD_START).encode())


class UnigramEngine:
    """SentencePiece unigram (`t5`): the pieces whose log-probabilities add up to the most.

    arXiv:1804.10959; the text is normalised before, as the file says.  Characters that are no piece become
    the tokens of their bytes, or one unknown token for all that stand together.
    """

    def __init__(self, vocabulary: Vocabulary) -> None:
        """ModelError for a vocabulary without scores or an unknown token, or damaged replacements."""
        if vocabulary.scores is None:
            raise ModelError(f"no {KEY}scores in the file, which {KEY}model t5 needs", where=WHERE)
        if vocabulary.unk_id is None:
            raise ModelError(f"no {KEY}unknown_token_id in the file, which {KEY}model t5 needs", where=WHERE)
        _check_lengths(vocabulary)
        kinds = np.zeros(len(vocabulary.tokens), np.uint8)
        for kind, token_type in enumerate(_PIECE_TYPES, 1):
            kinds[vocabulary.ids_of(token_type)] = kind
        units, texts = _replacements(vocabulary.replaced)
        try:
            self._unigram = _native.Unigram(
                vocabulary.tokens.data,
                vocabulary.tokens.starts,
                kinds,
                vocabulary.scores,
                _byte_ids(vocabulary),
                vocabulary.unk_id,
                units,
                texts,
                vocabulary.add_space_prefix,
                vocabulary.collapses_spaces,
            )
        except ValueError as exc:
            raise _damaged(str(exc)) from exc

    def encode(self, text: str) -> list[int]:
        """Token ids of well-formed text."""
        return self._unigram.encode(text.encode())


class WordPieceEngine:
    """WordPiece (`bert`): uncased BERT's cleaning and word splitting, then the longest token that fits."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        """ModelError for a vocabulary without an unknown token."""
        if vocabulary.unk_id is None:
            raise ModelError(
                f"no {KEY}unknown_token_id in the file, which {KEY}model bert needs", where=WHERE
            )
        special = set(vocabulary.ids_of(TokenType.CONTROL, TokenType.UNKNOWN))
        ids: dict[str, int] = {}
        for token_id, text in enumerate(vocabulary.tokens):
            if token_id in special or not _is_text(text):
                continue
            ids[text[1:] if text.startswith(WORD_START) else _CONTINUED + text] = token_id
        # the library's name for the unknown token must be one that no word can have: words have no spaces
        unknown = f"unknown {vocabulary.unk_id}"
        ids[unknown] = vocabulary.unk_id
        self._library = Library(WordPiece(ids, unk_token=unknown, continuing_subword_prefix=_CONTINUED))
        self._library.normalizer = BertNormalizer(lowercase=True)
        self._library.pre_tokenizer = BertPreTokenizer()

    def encode(self, text: str) -> list[int]:
        """Token ids of well-formed text."""
        # a batch of one: only `encode_batch` lets other threads run meanwhile, and a long text takes a while
        return self._library.encode_batch_fast([text], add_special_tokens=False)[0].ids


def build_engine(vocabulary: Vocabulary, rules: Rules | None) -> Engine:
    """The engine for `tokenizer.ggml.model`; rules are for byte-level BPE.  Unsupported for other models."""
    if vocabulary.model == "gpt2" and rules is not None:
        return ByteLevelEngine(vocabulary, rules)
    if vocabulary.model == "llama":
        return SentencePieceEngine(vocabulary)
    if vocabulary.model == "bert":
        return WordPieceEngine(vocabulary)
    if vocabulary.model == "t5":
        return UnigramEngine(vocabulary)
    raise Unsupported(
        f"{KEY}model is {vocabulary.model!r}, which is not known",
        where=WHERE,
        mend="known are gpt2 (byte-level BPE), llama (SentencePiece BPE), bert (WordPiece) and t5 "
        "(SentencePiece unigram)",
    )


def _is_text(text: str) -> bool:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def _control_flags(vocabulary: Vocabulary, min_chars: int) -> npt.NDArray[np.uint8]:
    """1 for control and unknown tokens of at least so many characters: plain text never becomes one."""
    flags = np.zeros(len(vocabulary.tokens), np.uint8)
    for token_id in vocabulary.ids_of(TokenType.CONTROL, TokenType.UNKNOWN):
        flags[token_id] = len(vocabulary.tokens[token_id]) >= min_chars
    return flags


def _byte_ids(vocabulary: Vocabulary) -> I32:
    """[256]: the token for each byte that has one, NO_TOKEN for the others."""
    found = np.full(256, NO_TOKEN, np.int32)
    for token_id in vocabulary.ids_of(TokenType.BYTE):
        byte = token_byte(vocabulary.tokens[token_id])
        if byte is not None:
            found[byte] = token_id
    return found


def _replacements(raw: bytes) -> tuple[bytes, bytes]:
    """Of SentencePiece's compiled map the units of its double array, and the texts that they lead to."""
    if not raw:
        return b"", b""
    n_bytes = int.from_bytes(raw[:4], "little")
    if len(raw) < 4 or n_bytes % 4 or not 0 < n_bytes <= len(raw) - 4:
        raise _damaged(f"{len(raw)} bytes, of which an array of {n_bytes} is said to be")
    return raw[4 : 4 + n_bytes], raw[4 + n_bytes :]


def _damaged(what: str) -> ModelError:
    return ModelError(
        f"{KEY}precompiled_charsmap is damaged: {what}", where=WHERE, mend="convert the model again"
    )


def _check_lengths(vocabulary: Vocabulary) -> None:
    """ModelError for a token of more than MAX_PIECE_CHARS."""
    for token_id in np.flatnonzero(np.diff(vocabulary.tokens.starts) > MAX_PIECE_CHARS).tolist():
        n_chars = len(vocabulary.tokens[token_id])
        if n_chars > MAX_PIECE_CHARS:
            raise ModelError(
                f"{KEY}tokens: token {token_id} has {n_chars} characters, the most is {MAX_PIECE_CHARS}",
                where=WHERE,
            )


def _ranks(vocabulary: Vocabulary) -> I32:
    """[n_vocab]: how many better scores there are, for tokens that text can join to; -1 for the others."""
    if vocabulary.scores is None:
        raise ModelError(f"no {KEY}scores in the file, which {KEY}model llama needs", where=WHERE)
    # control, unknown and byte tokens never come of text: "<s>" typed by a user stays three characters
    texts = vocabulary.ids_of(TokenType.NORMAL, TokenType.UNUSED, TokenType.USER_DEFINED)
    _check_lengths(vocabulary)
    ranks = np.full(len(vocabulary.tokens), NO_TOKEN, np.int32)
    ranks[texts] = np.unique(-vocabulary.scores[texts], return_inverse=True)[1]
    return ranks
