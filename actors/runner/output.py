"""From sampled tokens to text that can be sent: holds what may still change, cuts at stop strings.

Chunks carry the tokens behind their text, so that a stream can be resumed on another runner: replaying the
tokens of all chunks sent so far reproduces exactly this object's state.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from actors.protocol import Chunk, Logprob
from actors.runner.tokenizer.stop import StopMatcher
from actors.runner.tokenizer.stream import TextStream
from actors.runner.tokenizer.tokenizer import Tokenizer


@dataclass(slots=True)
class Held:
    """A token whose text has not been sent in full; `start` counts characters of the whole answer."""

    token: int
    start: int
    logprob: Logprob | None


class Output:
    """The answer of one sequence, as far as it is known; `stop_string` is the one that ended it."""

    def __init__(self, tokenizer: Tokenizer, stop: tuple[str, ...]) -> None:
        self.stop_string = ""
        self._tokenizer = tokenizer
        self._matcher = StopMatcher(stop)
        self._bytes = TextStream()
        self._held: list[Held] = []
        self._n_decoded = 0  # characters decoded from whole UTF-8 sequences
        self._n_sent = 0

    def push(self, token: int, logprob: Logprob | None = None) -> Chunk | None:
        """Add a token; gives what can be sent now.  Once `stop_string` is set the answer has ended."""
        self._held.append(Held(token, self._n_decoded, logprob))
        decoded = self._bytes.push(self._tokenizer.piece(token))
        self._n_decoded += len(decoded)
        return self._chunk(self._matcher.push(decoded))

    def replay(self, tokens: Sequence[int]) -> None:
        """Be where another output stood when it had given these tokens; they are not given again."""
        for token in tokens:
            self.push(token)
        self._held = []

    def flush(self) -> Chunk | None:
        """The answer has ended: everything held is sent."""
        if self.stop_string:
            return None
        rest = self._bytes.flush()
        self._n_decoded += len(rest)
        return self._chunk(self._matcher.push(rest) + self._matcher.flush(), is_last=True)

    def _chunk(self, text: str, *, is_last: bool = False) -> Chunk | None:
        """What goes with text that can be sent: the tokens and entries held so far, but for those cut off."""
        self._n_sent += len(text)
        if self._matcher.found is not None:
            self.stop_string = self._matcher.found
            self._held = [held for held in self._held if held.start < self._n_sent]
        elif not text and not is_last:
            return None
        entries, tokens = self._take_logprobs(), self._take_tokens()
        return Chunk(text, tokens, entries) if text or tokens else None

    def _take_logprobs(self) -> tuple[Logprob, ...]:
        return tuple(held.logprob for held in self._held if held.logprob is not None)

    def _take_tokens(self) -> tuple[int, ...]:
        tokens = tuple(held.token for held in self._held)
        self._held = []
        return tokens
