"""Runaway repetition: an answer that has become one group of tokens over and over and will not end by itself.

Only exact loops count.  Long lists and tables repeat their form, not every token; a model that is in a loop
for good gives the same tokens for ever, as its context has become periodic, too.
"""

from array import array
from collections.abc import Sequence
from typing import Final

LOOK_EVERY: Final = 16  # tokens: a loop does not run away
LEAST_TIMES: Final = 4  # that the group must stand there


def repeats(tokens: Sequence[int], n_least: int) -> bool:
    """Whether the tokens, n_least of them or more, are one group LEAST_TIMES times or more (the last cut)."""
    if len(tokens) < n_least:
        return False
    ids = array("i", tokens)
    raw = ids.tobytes()  # compared as a whole, not number by number
    return any(
        ids[-1] == ids[-1 - period] and raw.startswith(raw[period * ids.itemsize :])
        for period in range(1, len(ids) // LEAST_TIMES + 1)
    )
