"""Pages of keys and values: a pool shared by all sequences of a model, with prefixes shared by reference.

A page holds `page_size` cells; a sequence's table lists its pages in order.  A full page is known by the
digest of everything up to its end, so a sequence that begins alike holds it instead of computing it again.

Layers that look back a window, or into their own chunk, have a pool of their own, whose pages are given up as
soon as no row to come sees them.  They keep their place in the table, where nothing reads any more.
"""

from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field

from actors.runner.cache.pool import Pool
from kernels.ops.attention import first_seen

GONE = 0  # stands in a table for a page that was given up


@dataclass(slots=True, eq=False)
class Table:
    """One sequence's pages in order, `n_gone` of them given up; becomes a row of a batch's tables."""

    pages: "array[int]" = field(default_factory=lambda: array("i"))
    n_gone: int = 0


class Pages:
    """The pages of layers that see all cells, or only those that a window or a chunk lets them see."""

    def __init__(self, n_pages: int, page_size: int, window: int = 0, chunk: int = 0) -> None:
        """window, chunk: as `kernels.ops.attention` has them."""
        self.page_size = page_size
        self.pool = Pool(n_pages)
        self._window, self._chunk = window, chunk

    def n_lacking(self, table: Table, n_cells: int) -> int:
        """Pages that the table needs beside its own to hold so many cells."""
        return max(0, -(-n_cells // self.page_size) - len(table.pages))

    def n_room(self, table: Table) -> int:
        """Cells that the table can come to hold now."""
        return (len(table.pages) + self.pool.n_free) * self.page_size

    def n_known(self, digests: Sequence[bytes], n: int) -> int:
        """Of the first n pages as many as a sequence can go on after: what its next row sees is known."""
        while n > 0:
            needed = range(self._first_seen(n * self.page_size), n)
            missing = next((i for i in reversed(needed) if self.pool.find(digests[i]) is None), None)
            if missing is None:
                break
            n = missing
        return n

    def open(self, table: Table, digests: Sequence[bytes]) -> None:
        """Let an empty table hold these pages, as far as its next row sees them; all of those are known."""
        table.n_gone = self._first_seen(len(digests) * self.page_size)
        table.pages.extend([GONE] * table.n_gone)
        for digest in digests[table.n_gone :]:
            page = self.pool.find(digest)
            assert page is not None, "n_known has found it"
            self.pool.hold(page)
            table.pages.append(page)

    def extend(self, table: Table, n_cells: int) -> None:
        """Make room for so many cells; the pool has that many pages."""
        for _ in range(self.n_lacking(table, n_cells)):
            table.pages.append(self.pool.take())

    def cells(self, table: Table, start: int, stop: int) -> list[int]:
        """The cells of these inputs."""
        size, pages = self.page_size, table.pages
        return [pages[i // size] * size + i % size for i in range(start, stop)]

    def trim(self, table: Table, n_cells: int) -> None:
        """Give up what no row after n_cells sees, the nearest last: it is what a next turn wants."""
        for index in range(table.n_gone, self._first_seen(n_cells)):
            self.pool.drop(table.pages[index])
            table.pages[index] = GONE
            table.n_gone = index + 1

    def release(self, table: Table) -> None:
        """Give up every page, so that the end of a prefix is forgotten before its beginning."""
        for page in reversed(table.pages[table.n_gone :]):
            self.pool.drop(page)
        table.pages, table.n_gone = array("i"), 0

    def _first_seen(self, n_cells: int) -> int:
        """The first page that the row after n_cells sees."""
        return first_seen(n_cells, self._window, self._chunk) // self.page_size
