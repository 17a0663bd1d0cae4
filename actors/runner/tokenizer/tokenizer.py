"""A model's tokenizer, whole: text to ids and ids to bytes, with the special tokens' rules."""

import functools
from collections.abc import Iterable, Mapping
from typing import Self

from actors.runner.tokenizer.engine import Engine, build_engine
from actors.runner.tokenizer.marks import Marks
from actors.runner.tokenizer.pieces import all_pieces, piece_of
from actors.runner.tokenizer.pretokenizer import Rules, rules_named
from actors.runner.tokenizer.vocabulary import TokenType, Vocabulary, read_vocabulary

# Phi-3's own tokenizer drops white space behind its marks, all but these (its tokenizer.json, "rstrip").
_PHI3_NAMES = ("phi-3", "phi3")
_PHI3_KEEPS_SPACE = ("<unk>", "<s>", "<|endoftext|>")


class Tokenizer:
    """Text to token ids and back for one model; unchanging, so any number of threads may use it.

    Build it with `from_metadata`.
    """

    def __init__(self, vocabulary: Vocabulary, engine: Engine, rules: Rules | None) -> None:
        self._vocabulary = vocabulary
        self._engine = engine
        self._adds_prefix = vocabulary.model == "llama" and vocabulary.add_space_prefix
        # the engine of t5 puts it there itself, for only behind its other rules there is a beginning
        has_prefix = vocabulary.model in ("llama", "t5") and vocabulary.add_space_prefix
        self._strips_prefix = vocabulary.model == "bert" or has_prefix
        self._control_ids = frozenset(vocabulary.ids_of(TokenType.CONTROL, TokenType.UNKNOWN))
        user_ids = vocabulary.ids_of(TokenType.USER_DEFINED)
        self._mark_ids = self._control_ids.union(user_ids)
        # those that users define are pieces to t5's engine, of which rules for spaces know
        found_ids = self._control_ids if vocabulary.model == "t5" else self._mark_ids
        self._user_marks = Marks({vocabulary.tokens[i]: i for i in user_ids if i in found_ids})
        self._all_marks = Marks({vocabulary.tokens[i]: i for i in sorted(found_ids)})
        self._space_eaters = _space_eaters(vocabulary, self._mark_ids)
        self.n_vocab: int = len(vocabulary.tokens)
        self.bos_id: int | None = None if rules is not None and not rules.has_bos else vocabulary.bos_id
        self.eos_id: int | None = vocabulary.eos_id
        self.eog_ids: frozenset[int] = vocabulary.eog_ids
        self._prefix_ids, self._suffix_ids = self._ends(rules)
        self._known_pieces: dict[int, bytes] = {}  # asked for before; a text uses few of all tokens

    @classmethod
    def from_metadata(cls, meta: Mapping[str, object]) -> Self:
        """Build from a GGUF file's metadata (`GGUFFile.metadata`).

        ModelError says which `tokenizer.ggml.*` key is missing or wrong; Unsupported, a ModelError, names the
        tokenizer model or pre-tokenizer that is not known.
        """
        vocabulary = read_vocabulary(meta)
        rules = rules_named(vocabulary.pre) if vocabulary.model == "gpt2" else None
        return cls(vocabulary, build_engine(vocabulary, rules), rules)

    @property
    def adds_bos(self) -> bool:
        """Whether `encode` with add_special puts a token before the text."""
        return bool(self._prefix_ids)

    def encode(self, text: str, *, add_special: bool = True, parse_special: bool = True) -> list[int]:
        """Token ids of a text.

        add_special: put the model's first and last tokens around it, where it wants them and the text does
        not already begin (end) with them.  parse_special: control tokens written in the text are control
        tokens; otherwise they are the characters they are written with, so that what a user types stays text.
        User-defined tokens are found always.  A lone surrogate, which no UTF-8 has, counts as U+FFFD.
        """
        marks = self._all_marks if parse_special else self._user_marks
        ids: list[int] = []
        after_mark, eats_space = True, False
        for part, token_id in marks.split(_well_formed(text)):
            if token_id is not None:
                ids.append(token_id)
                after_mark, eats_space = True, token_id in self._space_eaters
                continue
            plain = part.lstrip() if eats_space else part
            if plain:
                ids += self._encode_plain(" " + plain if self._adds_prefix and after_mark else plain)
            after_mark = eats_space = False
        return self._with_ends(ids) if add_special else ids

    def decode(self, ids: Iterable[int], *, special: bool = False) -> str:
        """The text of ids, U+FFFD for bytes that are no UTF-8; control tokens' texts only if special.

        The space that `encode` puts before a text (`llama`) or a first word (`bert`) is taken off again.
        IndexError for an id that is not in the vocabulary.
        """
        out: list[bytes] = []
        strips = self._strips_prefix
        for token_id in ids:
            piece = self.piece(token_id, special=special)
            if token_id in self._mark_ids:
                # shown, a mark begins a new text as in encode; hidden, it must not glue words together
                strips = self._adds_prefix if piece else strips
            elif strips:
                piece = piece.removeprefix(b" ")
                strips = False
            out.append(piece)
        return b"".join(out).decode("utf-8", "replace")

    def piece(self, token_id: int, *, special: bool = False) -> bytes:
        """The exact bytes of one token, b"" for a control or unknown token unless special.

        IndexError for an id that is not in the vocabulary.
        """
        if not special and token_id in self._control_ids:
            return b""
        piece = self._known_pieces.get(token_id)
        if piece is None:
            piece = self._known_pieces[token_id] = piece_of(self._vocabulary, token_id)
        return piece

    @functools.cached_property
    def pieces(self) -> tuple[bytes, ...]:
        """The bytes of all tokens [n_vocab], control tokens' b"".  Made when first asked for."""
        pieces = all_pieces(self._vocabulary)
        for token_id in self._control_ids:
            pieces[token_id] = b""
        return tuple(pieces)

    def is_control(self, token_id: int) -> bool:
        """Whether the token is a mark for the model and no text of an answer."""
        return token_id in self._control_ids

    def token_text(self, token_id: int) -> str:
        """The token as the file writes it, for templates (`bos_token`); IndexError for no token's id."""
        if token_id < 0:
            raise IndexError(token_id)
        return self._vocabulary.tokens[token_id]

    def _encode_plain(self, text: str) -> list[int]:
        return self._engine.encode(text)

    def _ends(self, rules: Rules | None) -> tuple[list[int], list[int]]:
        """What add_special puts before and after a text: the file's word, else the family's habit."""
        vocabulary = self._vocabulary
        if vocabulary.model == "bert":
            first, last = vocabulary.cls_id, vocabulary.sep_id
            adds = vocabulary.add_bos is not False, vocabulary.add_sep is not False
        else:
            first, last = self.bos_id, self.eos_id
            by_habit = rules.add_bos if rules is not None else True
            adds = by_habit if vocabulary.add_bos is None else vocabulary.add_bos, bool(vocabulary.add_eos)
        return (
            [first] if adds[0] and first is not None else [],
            [last] if adds[1] and last is not None else [],
        )

    def _with_ends(self, ids: list[int]) -> list[int]:
        prefix = [] if ids[:1] == self._prefix_ids else self._prefix_ids
        suffix = [] if ids[-1:] == self._suffix_ids else self._suffix_ids
        return [*prefix, *ids, *suffix]


def _space_eaters(vocabulary: Vocabulary, mark_ids: Iterable[int]) -> frozenset[int]:
    if not any(name in vocabulary.name for name in _PHI3_NAMES):
        return frozenset()
    return frozenset(i for i in mark_ids if vocabulary.tokens[i] not in _PHI3_KEEPS_SPACE)


def _well_formed(text: str) -> str:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text
