"""Stop strings: found over token boundaries, and never a character of one sent."""

from collections.abc import Sequence

from actors.errors import RequestError


class StopMatcher:
    """Passes text on until a stop string stands in it; holds back what may yet become one.

    The stop that begins first in the text wins, whatever the order of the list, and of those that begin at
    the same character the shortest: so the answer does not depend on how the text was cut into pieces.  One
    that is complete waits while another that began before it may yet be completed.
    Give it every piece, the last allowed token's too, and only then `flush()`: a stop that the last token
    completes is found and does not leak.
    """

    __slots__ = ("_held", "_stops", "found")

    def __init__(self, stops: Sequence[str]) -> None:
        """RequestError if a stop string is empty: it would end every text before it begins."""
        if any(not stop for stop in stops):
            raise RequestError(
                f"stop string {list(stops).index('')} of {len(stops)} is empty",
                where="options.stop",
                mend="leave it out, or give the text to stop at",
            )
        self._stops = tuple(stops)
        self._held = ""
        self.found: str | None = None

    @property
    def held(self) -> str:
        """Text that is held back because it is the beginning of a stop string."""
        return self._held

    def push(self, text: str) -> str:
        """The text that may be sent now; nothing more once `found` is set."""
        if self.found is not None:
            return ""
        text = self._held + text
        n_sure = len(text) - self._n_doubtful(text)
        hit = self._first_stop(text)
        if hit is not None and hit[0] <= n_sure:
            return self._cut(text, hit)
        self._held = text[n_sure:]
        return text[:n_sure]

    def flush(self) -> str:
        """End of the text: what was held, up to a stop that was complete and waited for one before it."""
        text, self._held = self._held, ""
        hit = self._first_stop(text)
        return text if hit is None else self._cut(text, hit)

    def _cut(self, text: str, hit: tuple[int, int, str]) -> str:
        start, _, self.found = hit
        self._held = ""
        return text[:start]

    def _first_stop(self, text: str) -> tuple[int, int, str] | None:
        """Where it begins, its length and itself."""
        hits = ((start, len(stop), stop) for stop in self._stops if (start := text.find(stop)) >= 0)
        return min(hits, default=None)

    def _n_doubtful(self, text: str) -> int:
        """Length of the longest end of text with which a stop string begins."""
        return max((_n_overlap(text, stop) for stop in self._stops), default=0)


def _n_overlap(text: str, stop: str) -> int:
    longest = min(len(text), len(stop) - 1)
    return next((n for n in range(longest, 0, -1) if text.endswith(stop[:n])), 0)


def cut_at_stop(pieces: Sequence[str], stop: str) -> tuple[list[str], bool]:
    """The pieces before the first occurrence of stop in their joined text, and whether one was cut inside.

    A piece that keeps some of its characters stays, shortened, and the second value is True: what belongs to
    the token (its log-probability) is kept with it.  Pieces wholly behind the cut are gone.  Without the stop
    in the text all pieces come back.
    """
    n_left = "".join(pieces).find(stop)
    if n_left < 0:
        return list(pieces), False
    kept: list[str] = []
    for piece in pieces:
        if n_left < len(piece):
            if n_left:
                kept.append(piece[:n_left])
            return kept, n_left > 0
        kept.append(piece)
        n_left -= len(piece)
    return kept, False
