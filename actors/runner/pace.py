"""How much of a prompt may join the batches of running streams, from what batches took.

A batch of streams alone takes `stream_s`.  While somebody else's prompt is processed a stream shall wait at
most SLOWDOWN times as long for its next token, or QUICK_S if that is more.  So the inputs of prompts that
join are as many as keep batches within that time: each batch that takes longer lowers their number a lot,
each that does not raises it a little, in such proportion that it stands still where RARE of them take longer
(Robbins and Monro's approximation of a quantile), and faster where there is much time left.  What a batch
takes is no line through its inputs, it has steps and grows with the depth of the prompt, so nothing is made
of that here.

Nothing but speed depends on these numbers.
"""

from typing import Final

from actors.runner.cache.shape import PAGE_SIZE

SLOWDOWN: Final = 2.0
QUICK_S: Final = 0.01  # faster than anybody reads; a batch that takes less is not worth the time round it
RARE: Final = 0.02  # of batches may take longer
STEP: Final = 0.2  # by which one that does lowers the number
AMPLE: Final = 0.9  # of the time: where batches take clearly less the number grows by GROWTH
CLEARLY: Final = 4  # times as far from it as they are from their mean
GROWTH: Final = 1.1
FULL: Final = 0.8  # of what could join: a batch with fewer inputs tells nothing of it
FIRST_SHARE: Final = 0.8  # of the time, for the first guess
SHARE: Final = 0.2  # of a new measurement in a running mean
N_FIRST: Final = 32  # inputs before anything is known
N_LEAST: Final = 4  # a prompt goes on, whatever was measured; kernels take so few rows at once anyway


class Pace:
    """What batches took on this machine so far."""

    def __init__(self, n_batch: int) -> None:
        self._n_batch = n_batch
        self._stream_s: float | None = None
        self._input_s: float | None = None
        self._n_prompt: float | None = None  # None until a batch had prompts and streams
        self._part: float | None = None  # of the time that batches may take, in the mean
        self._spread = 0.0  # of these parts about their mean

    def observe(self, n_stream: int, n_prompt: int, took_s: float, n_drafted: int = 0) -> None:
        """What a batch took with inputs of so many running streams, of prompts, and drafted for streams."""
        n_more = n_prompt + n_drafted
        if n_more == 0:
            self._stream_s = _mean(self._stream_s, took_s)
        elif n_stream == 0:
            if self._input_s is None:  # a whole batch of them costs less each than a few
                self._input_s = took_s / n_more
        elif self._stream_s is not None:
            if n_prompt > 0 and self._is_full(n_stream, n_prompt):
                self._adapt(took_s / _allowed_s(self._stream_s))
            # what drafts cost beside streams is what inputs of prompts cost
            self._input_s = _mean(self._input_s, max(took_s - self._stream_s, 0.0) / n_more)

    @property
    def n_prompt(self) -> int:
        """Inputs of prompts that may join running streams."""
        return int(self._known())

    @property
    def input_cost(self) -> float | None:
        """What an input more costs in a batch of streams, in parts of such a batch; None while unknown."""
        if self._stream_s is None or self._input_s is None:
            return None
        return self._input_s / max(self._stream_s, 1e-9)

    def _known(self) -> float:
        if self._n_prompt is not None:
            return self._n_prompt
        if self._stream_s is None or self._input_s is None:
            return self._within(N_FIRST)
        # what prompts alone took is all there is
        added_s = _allowed_s(self._stream_s) - self._stream_s
        return self._within(FIRST_SHARE * added_s / max(self._input_s, 1e-9))

    def _adapt(self, part: float) -> None:
        """part: of the time that a batch may take."""
        self._part = _mean(self._part, part)
        self._spread = _mean(self._spread, abs(part - self._part))
        is_ample = self._part + CLEARLY * self._spread < AMPLE
        factor = 1 - STEP if part > 1 else GROWTH if is_ample else 1 + STEP * RARE
        self._n_prompt = self._within(factor * self._known())

    def _is_full(self, n_stream: int, n_prompt: int) -> bool:
        """Whether the number decided how many joined: not more, as a group may be, nor much less.

        Less by up to a page, where it is more than one, since the cache may want batches to end with one.
        """
        n_most = min(self.n_prompt, self._n_batch - n_stream)
        n_least = min(FULL * n_most, n_most - PAGE_SIZE + 1) if n_most > PAGE_SIZE else FULL * n_most
        return n_least <= n_prompt <= n_most

    def _within(self, n_prompt: float) -> float:
        return min(float(self._n_batch), max(float(N_LEAST), n_prompt))


def _allowed_s(stream_s: float) -> float:
    return max(SLOWDOWN * stream_s, QUICK_S)


def _mean(before: float | None, latest: float) -> float:
    return latest if before is None else (1 - SHARE) * before + SHARE * latest
