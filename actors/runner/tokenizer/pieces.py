"""The exact bytes that each token stands for, by kind of vocabulary."""

from collections.abc import Callable, Mapping
from types import MappingProxyType

from actors.runner.tokenizer.vocabulary import TokenType, Vocabulary, token_byte

WORD_START = "\u2581"  # how SentencePiece writes a space, and GGUF the beginning of a word in WordPiece

_VISIBLE = (range(0x21, 0x7F), range(0xA1, 0xAD), range(0xAE, 0x100))


def _byte_letters() -> tuple[str, ...]:
    """The letter for each byte: itself where Latin-1 shows it, else the next from 256 on (GPT-2)."""
    letters = {byte: chr(byte) for visible in _VISIBLE for byte in visible}
    hidden = [byte for byte in range(256) if byte not in letters]
    letters.update((byte, chr(256 + n)) for n, byte in enumerate(hidden))
    return tuple(letters[byte] for byte in range(256))


BYTE_LETTERS: tuple[str, ...] = _byte_letters()
_BYTE_OF: Mapping[str, int] = MappingProxyType({letter: byte for byte, letter in enumerate(BYTE_LETTERS)})
# what is in Latin-1 but no letter of the alphabet goes where encoding as Latin-1 fails
_LETTER_TO_LATIN1 = dict.fromkeys(range(256), 0xFFFF) | {
    ord(letter): byte for letter, byte in _BYTE_OF.items()
}

MARKED_TYPES = (
    TokenType.CONTROL,
    TokenType.UNKNOWN,
    TokenType.USER_DEFINED,
)  # whose text is written as it stands

TextBytes = Callable[[str], bytes]


def _raw(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")


def _byte_level(text: str) -> bytes:
    if text.isascii():
        return text.encode("ascii")  # visible ASCII stands for itself
    try:
        return text.translate(_LETTER_TO_LATIN1).encode("latin-1")
    except UnicodeEncodeError:
        # a character outside the alphabet was meant as it stands
        return b"".join(bytes((_BYTE_OF[char],)) if char in _BYTE_OF else _raw(char) for char in text)


def _spaced(text: str) -> bytes:
    return _raw(text.replace(WORD_START, " "))


_TEXT_BYTES: Mapping[str, TextBytes] = MappingProxyType(
    {"gpt2": _byte_level, "llama": _spaced, "bert": _spaced, "t5": _spaced}
)


def piece_of(vocabulary: Vocabulary, token_id: int) -> bytes:
    """The bytes of one token, of whatever type; IndexError outside [0, n_vocab)."""
    if token_id < 0:
        raise IndexError(token_id)
    text = vocabulary.tokens[token_id]
    match TokenType(int(vocabulary.types[token_id])):
        case TokenType.NORMAL | TokenType.UNUSED:
            return _TEXT_BYTES[vocabulary.model](text)
        case TokenType.BYTE:
            byte = token_byte(text)
            return _raw(text) if byte is None else bytes((byte,))
        case TokenType.CONTROL | TokenType.UNKNOWN | TokenType.USER_DEFINED:
            return _raw(text)


def all_pieces(vocabulary: Vocabulary) -> list[bytes]:
    """`piece_of` for every token [n_vocab], at once."""
    pieces = list(map(_TEXT_BYTES[vocabulary.model], vocabulary.tokens))
    for token_id in vocabulary.ids_of(*MARKED_TYPES, TokenType.BYTE):
        pieces[token_id] = piece_of(vocabulary, token_id)
    return pieces
