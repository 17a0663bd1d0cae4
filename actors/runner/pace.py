"""How much of a prompt may join the batches of running streams, from what batches took.

A batch of streams alone takes `stream_s`, each input of a prompt beside them `input_s` more.  A stream waits
at most SLOWDOWN times as long for its next token while somebody else's prompt is processed, so a batch takes

    n_prompt = (SLOWDOWN - 1) * margin * stream_s / input_s

inputs of prompts.  Both times are running means of what was measured; nothing but speed depends on them.

Single batches differ, on a busy machine by much, so the margin follows what they do: each that takes longer
than it may lowers it a lot, each that does not raises it a little, in such proportion that it stands still
where RARE of them take longer (Robbins and Monro's approximation of a quantile).
"""

from typing import Final

SLOWDOWN: Final = 2.0
RARE: Final = 0.02  # of batches with a prompt may take longer
MARGIN_FIRST, MARGIN_LEAST, MARGIN_MOST = 0.8, 0.2, 0.9  # parts of the time that may be added
MARGIN_STEP: Final = 0.1  # by which a batch that took too long lowers it
SHARE: Final = 0.2  # of a new measurement in the running mean
N_FIRST: Final = 32  # inputs before anything is known
N_LEAST: Final = 4  # a prompt goes on, whatever was measured; kernels take so few rows at once anyway


class Pace:
    """What batches took on this machine so far."""

    def __init__(self) -> None:
        self._stream_s: float | None = None
        self._input_s: float | None = None
        self._margin = MARGIN_FIRST

    def observe(self, n_stream: int, n_prompt: int, took_s: float) -> None:
        """A batch with inputs of n_stream running streams and n_prompt inputs beyond those took this long."""
        if n_prompt == 0:
            self._stream_s = _mean(self._stream_s, took_s)
        elif n_stream == 0:
            if self._input_s is None:  # a whole batch of them costs less each than a few
                self._input_s = took_s / n_prompt
        elif self._stream_s is not None:
            if n_prompt > N_LEAST:  # as few as that go on in any case
                self._adapt(is_late=took_s > SLOWDOWN * self._stream_s)
            self._input_s = _mean(self._input_s, max(took_s - self._stream_s, 0.0) / n_prompt)

    def _adapt(self, *, is_late: bool) -> None:
        step = MARGIN_STEP * (RARE - 1 if is_late else RARE)
        self._margin = min(MARGIN_MOST, max(MARGIN_LEAST, self._margin * (1 + step)))

    @property
    def n_prompt(self) -> int:
        """Inputs of prompts that may join running streams."""
        if self.input_cost is None:
            return N_FIRST
        return max(N_LEAST, int((SLOWDOWN - 1) * self._margin / max(self.input_cost, 1e-6)))

    @property
    def input_cost(self) -> float | None:
        """What an input more costs in a batch of streams, in parts of such a batch; None while unknown."""
        if self._stream_s is None or self._input_s is None:
            return None
        return self._input_s / max(self._stream_s, 1e-9)


def _mean(before: float | None, latest: float) -> float:
    return latest if before is None else (1 - SHARE) * before + SHARE * latest
