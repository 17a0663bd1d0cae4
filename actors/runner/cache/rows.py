"""Rows of recurrent state: what layers remember of everything before, one row for each sequence.

A batch reads a sequence's row and writes another, or the same in place; so a checkpoint is a row that is not
written any more, and costs no copy.  One is left wherever a batch ends at the end of a page, known by the
same digest as that page; a sequence that begins alike goes on from the last one there is.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from actors.runner.cache.pool import Pool

ZERO = 0  # the row that a sequence begins with; never written
N_CHECKPOINTS = 8  # rows for each sequence beside the two that it works with
SPACING = 512  # cells between checkpoints of one answer that stay


@dataclass(slots=True, eq=False)
class State:
    """One sequence's rows."""

    current: int = ZERO  # after its last computed input: `work`, ZERO, or a checkpoint that it holds
    work: int = ZERO  # its own
    spare: int = ZERO  # its own, for the next checkpoint
    passing: bytes = b""  # its last checkpoint, where that is to be forgotten once the next one is there


def n_rows_of(n_parallel: int) -> int:
    """Rows that so many sequences at once need, ZERO among them."""
    return 1 + n_parallel * (2 + N_CHECKPOINTS)


class Rows:
    """Who has which row."""

    def __init__(self, n_rows: int, page_size: int) -> None:
        self.pool = Pool(n_rows)
        self._page_size = page_size
        zero = self.pool.take()
        assert zero == ZERO

    def n_known(self, digests: Sequence[bytes], n: int) -> int:
        """Of the first n pages as many as end with a checkpoint."""
        return next((i for i in range(n, 0, -1) if self.pool.find(digests[i - 1]) is not None), 0)

    def open(self, state: State, digests: Sequence[bytes]) -> None:
        """Let it go on after these pages, the last of which has a checkpoint."""
        if digests:
            row = self.pool.find(digests[-1])
            assert row is not None, "n_known has found it"
            self.pool.hold(row)
            state.current = row
        state.work, state.spare = self.pool.take(), self.pool.take()

    def target(self, state: State, n_cells: int) -> int:
        """The row to write with a batch that ends after n_cells."""
        return state.work if n_cells % self._page_size else state.spare

    def advance(self, state: State, n_inputs: int, n_cells: int, digest: bytes) -> None:
        """So many inputs have been computed, n_cells in all; digest: of the last full page."""
        before = state.current
        if n_cells % self._page_size:
            state.current = state.work
        elif self.pool.publish(state.spare, digest):
            self._forget(state.passing)
            state.current, state.spare = state.spare, self.pool.take()
            state.passing = digest if n_inputs == 1 and n_cells % SPACING else b""
        else:  # an equal one is known; this one stays private
            state.work, state.spare = state.spare, state.work
            state.current = state.work
        if before not in (ZERO, state.work, state.spare):
            self.pool.drop(before)

    def release(self, state: State) -> None:
        """Give up every row; checkpoints stay until their space is needed.  A second call does nothing."""
        for row in {state.current, state.work, state.spare} - {ZERO}:
            self.pool.drop(row)
        state.current = state.work = state.spare = ZERO
        state.passing = b""

    def _forget(self, digest: bytes) -> None:
        """Nobody needs this checkpoint any more, unless somebody holds it."""
        row = self.pool.find(digest)
        if row is not None:
            self.pool.forget(row)
