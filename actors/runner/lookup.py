"""Speculation by prompt look-up: what followed the last few tokens when they stood in the text before.

arXiv:2304.04487, section 2 (copying from a reference).  The verification is arXiv:2211.17192's, which for
draws that are a function of (seed, position) comes down to comparing tokens: a drafted token is right if it
is the one that is drawn anyway.  So the tokens are the same as without, in fewer batches where the text
repeats itself.

Whether it pays is measured for each sequence: the part of drafted tokens that were right, against what an
input more costs in a batch.
"""

from collections.abc import Sequence
from typing import Final

N_GRAM: Final = 3  # tokens that must agree; two agree by accident too often
N_DRAFT_MAX: Final = 8
FIRST_RATE: Final = 0.6
SHARE: Final = 0.15  # of the latest draft in the running rate
N_REST: Final = 64  # tokens after which a sequence that was wrong too often tries again
ASSUMED_COST: Final = 0.15  # of an input more, while nothing is measured
N_LEARNT_MAX: Final = 4096  # groups noted at once, some milliseconds: a long prompt takes several draws


def n_worth(rate: float, input_cost: float, n_most: int) -> int:
    """How many tokens to draft: the number that makes a token cheapest; 0 where none does.

    rate: the probability that a drafted token is right, given that those before it are.  input_cost: of an
    input more, in parts of a batch with one.
    """
    best, n_best = 1.0, 0
    gained, right = 1.0, 1.0
    for n_draft in range(1, n_most + 1):
        right *= rate
        gained += right
        worth = gained / (1 + n_draft * input_cost)
        if worth > best:
            best, n_best = worth, n_draft
    return n_best


class Lookup:
    """The drafts of one sequence.  `history` is the engine's own list, which grows."""

    def __init__(self) -> None:
        self._history: Sequence[int] = ()
        self._after: dict[tuple[int, ...], int] = {}  # where a group of N_GRAM tokens went on last
        self._n_known = N_GRAM
        self.rate = FIRST_RATE  # the probability that a drafted token is right
        self._resumes_at = 0  # a length of the history

    def draft(self, history: Sequence[int], n_most: int, input_cost: float | None) -> Sequence[int]:
        """At most n_most tokens that may follow; none where nothing is known or it does not pay."""
        n_most = min(n_most, N_DRAFT_MAX)
        if n_most <= 0 or len(history) < self._resumes_at <= len(history) + N_REST:
            return ()
        n_draft = n_worth(self.rate, ASSUMED_COST if input_cost is None else input_cost, n_most)
        if n_draft == 0:
            self._resumes_at, self.rate = len(history) + N_REST, FIRST_RATE
            return ()
        self._learn(history)
        start = self._after.get(tuple(history[-N_GRAM:]))
        return () if start is None else history[start : start + n_draft]

    def judge(self, n_drafted: int, n_right: int) -> None:
        """So many of the drafted tokens were right, up to the first that was not."""
        if n_drafted:
            n_judged = min(n_right + 1, n_drafted)
            self.rate += SHARE * (n_right / n_judged - self.rate)

    def _learn(self, history: Sequence[int]) -> None:
        """Note the groups that something follows."""
        if history is not self._history:  # a shift of the context made a new one
            self._history, self._after, self._n_known = history, {}, N_GRAM
        stop = min(len(history), self._n_known + N_LEARNT_MAX)
        for end in range(self._n_known, stop):
            self._after[tuple(history[end - N_GRAM : end])] = end
        self._n_known = max(self._n_known, stop)
