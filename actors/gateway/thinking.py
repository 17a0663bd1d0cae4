"""Telling what a model thinks from what it answers, in a stream that may cut tags anywhere.

Models write `<think>...</think>` before the answer, or get the opening tag in the prompt already.
"""

from dataclasses import dataclass

OPEN = "<think>"
CLOSE = "</think>"


@dataclass(frozen=True, slots=True)
class Split:
    """Text by kind; either may be empty."""

    thinking: str
    content: str


class ThinkingSplitter:
    """Feed it text as it comes.  Blanks around the tags belong to neither part.

    What may be the beginning of a tag is held until it is known; `flush` gives it up at the end.
    """

    def __init__(self, *, is_open: bool = False) -> None:
        self._held = ""
        self._tag: str | None = CLOSE if is_open else OPEN  # looked for next; None: the answer has begun
        self._is_fresh = True  # nothing but blanks of this part has come

    def push(self, text: str) -> Split:
        """What the text adds to either part."""
        self._held += text
        thinking = ""
        if self._tag == OPEN:
            self._look_for_open()
        if self._tag == CLOSE:
            thinking = self._take_thinking()
        return Split(thinking, self._take_content() if self._tag is None else "")

    def flush(self) -> Split:
        """What is still held: the stream has ended."""
        rest, self._held = self._held, ""
        if self._tag == CLOSE:
            return Split(rest, "")
        return Split("", rest)

    def _look_for_open(self) -> None:
        begun = self._held.lstrip()
        if begun.startswith(OPEN):
            self._held, self._tag = begun.removeprefix(OPEN), CLOSE
        elif not OPEN.startswith(begun):
            # the answer began without any thinking: its own leading blanks are kept
            self._tag, self._is_fresh = None, False

    def _take_thinking(self) -> str:
        if self._is_fresh:
            self._held = self._held.lstrip()
            self._is_fresh = not self._held
        before, tag, after = self._held.partition(CLOSE)
        if tag:
            self._held, self._tag, self._is_fresh = after, None, True
            return before.rstrip()
        n_free = len(self._held) - _overlap(self._held)
        # blanks may stand before the closing tag
        n_free = len(self._held[:n_free].rstrip())
        taken, self._held = self._held[:n_free], self._held[n_free:]
        return taken

    def _take_content(self) -> str:
        if self._is_fresh:
            self._held = self._held.lstrip()
            self._is_fresh = not self._held
        taken, self._held = self._held, ""
        return taken


def _overlap(text: str) -> int:
    """How many of the last characters may begin the closing tag."""
    for n in range(min(len(CLOSE) - 1, len(text)), 0, -1):
        if text.endswith(CLOSE[:n]):
            return n
    return 0
