"""Runaway repetition: an answer that has become one group of tokens over and over and will not end by itself.

Only exact loops count.  Long lists and tables repeat their form, not every token; a model that is in a loop
for good gives the same tokens for ever, as its context has become periodic, too.
"""

from collections.abc import Sequence
from typing import Final

LOOK_EVERY: Final = 16  # tokens; looking takes microseconds, and a loop does not run away
LEAST_TIMES: Final = 4  # that the group must stand there


def repeats(tokens: Sequence[int], n_least: int) -> bool:
    """Whether the tokens, n_least of them or more, are one group LEAST_TIMES times or more (the last cut)."""
    n_tokens = len(tokens)
    return n_tokens >= n_least and any(
        tokens[-1] == tokens[-1 - period] and tokens[period:] == tokens[: n_tokens - period]
        for period in range(1, n_tokens // LEAST_TIMES + 1)
    )
