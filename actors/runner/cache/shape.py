"""How large each part of a model's cache is: what its program reads and writes, and what it allocates."""

from dataclasses import dataclass

from actors.runner.cache.rows import n_rows_of
from kernels.dtype import DType

PAGE_SIZE = 32  # cells; a conversation's next turn recomputes at most one page of its past
N_WINDOWS = 2  # for each sequence: its own, and one that a conversation before has left


def padded(n_cells: int, page_size: int = PAGE_SIZE) -> int:
    """Cells of the whole pages that so many take."""
    return -(-n_cells // page_size) * page_size


@dataclass(frozen=True, slots=True)
class CacheShape:
    """Cells come in whole pages; a part that no layer uses has none."""

    n_cells: int  # of layers that see all
    page_size: int
    dtype: DType
    n_window_cells: int = 0  # of layers that look back a window, or into their own chunk
    window: int = 0  # the widest: cells before a row's own
    chunk: int = 0  # the widest, in place of a window
    n_rows: int = 0  # of recurrent state
    n_source_cells: int = 0  # of an encoder's layers, for the prompts of one batch


def cache_shape(
    n_pages: int,
    dtype: DType,
    *,
    window: int,
    is_recurrent: bool,
    n_parallel: int,
    n_batch: int,
    chunk: int = 0,
    has_encoder: bool = False,
) -> CacheShape:
    """Of a model whose sequences share n_pages.

    A window's pages are enough for n_parallel sequences: what their next rows see, begun and ended within a
    page, the batch that is computed and the one that is prepared meanwhile.  More than all cells have would
    never be used.  A chunk is kept like a window as wide as it.
    """
    assert not (window and chunk), "no family has layers of both kinds"
    width = window or chunk
    n_each = -(-width // PAGE_SIZE) + 2
    n_window_pages = n_parallel * N_WINDOWS * n_each + 2 * -(-n_batch // PAGE_SIZE)
    return CacheShape(
        n_cells=n_pages * PAGE_SIZE,
        page_size=PAGE_SIZE,
        dtype=dtype,
        n_window_cells=min(n_pages, n_window_pages) * PAGE_SIZE if width else 0,
        window=window,
        chunk=chunk,
        n_rows=n_rows_of(n_parallel) if is_recurrent else 0,
        n_source_cells=padded(n_batch) if has_encoder else 0,
    )
