"""Bytes of tokens in, valid text out, however the tokens cut the characters."""

import codecs


class TextStream:
    """Decodes byte pieces; what comes out, joined, is the whole decoded with U+FFFD for bad bytes.

    A character cut by a token boundary is held (at most 3 bytes) until its last byte arrives.  A byte
    sequence that can no longer become a character gives one U+FFFD, and nothing after it is lost.
    """

    __slots__ = ("_decoder",)

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    @property
    def held(self) -> bytes:
        """The bytes, 0 to 3, of a character that is not complete yet."""
        return self._decoder.getstate()[0]

    def push(self, piece: bytes) -> str:
        """The text that is certain after these bytes; "" when all of it must wait."""
        return self._decoder.decode(piece)

    def flush(self) -> str:
        """End of the stream: U+FFFD for a character that never came whole, else ""; ready for another."""
        text = self._decoder.decode(b"", final=True)
        self._decoder.reset()
        return text
