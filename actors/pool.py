"""How many cells the sequences of a model share: what the runner allocates and the scheduler reckons with."""

from typing import Final

# cells for each of the sequences that run at once, before one of them has the context alone
N_EACH: Final = 4096


def pool_cells(n_ctx: int, n_parallel: int) -> int:
    """Cells of the pool that lets one of n_parallel sequences use n_ctx positions.

    Most conversations are shorter than the longest that may be had: so there is room for one of n_ctx, or for
    N_EACH positions of everybody, whichever is more, and not for n_ctx of everybody.
    """
    return max(n_ctx, n_parallel * min(n_ctx, N_EACH))
