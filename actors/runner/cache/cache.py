"""The cache of one model: who holds what, for every kind of layer the model has.

Layers that see all have pages, those that look back a window or into their chunk have pages of their own
(`pages`), recurrent ones have rows (`rows`).  Behind an encoder a decoder's layers have pages for the prompt,
which hold what the encoder made of it, and then others for the decoder's inputs.  A sequence's slot holds its
part of each; its logical history is kept by the engine.  A new sequence goes on after the longest prefix that
every kind knows.

Nothing here touches device memory: programs read and write through the index arrays made from slots.
"""

import hashlib
from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field

from actors.runner.cache.pages import Pages, Table
from actors.runner.cache.rows import Rows, State
from actors.runner.cache.shape import CacheShape, padded
from actors.runner.groups import NO_GROUPS, Groups


@dataclass(slots=True, eq=False)
class Slot:
    """A sequence's place in the cache."""

    table: Table = field(default_factory=Table)
    window: Table = field(default_factory=Table)  # of layers that have one
    state: State = field(default_factory=State)
    n_cells: int = 0  # inputs that are computed
    digests: list[bytes] = field(default_factory=list[bytes])  # of each full page, in order
    tail: list[int] = field(default_factory=list[int])  # tokens of the page that is not full yet
    n_source: int = 0  # inputs at the beginning that an encoder reads, all of them in one batch
    n_padded: int = 0  # cells for them: whole pages, of the last one only as many are used
    root: bytes = b""  # names what every page depends on: those inputs, which see one another

    @property
    def n_to_encode(self) -> int:
        """Of the next inputs those that an encoder reads, and what fills their last page."""
        return max(0, self.n_padded - self.n_cells)

    @property
    def n_computed(self) -> int:
        """Inputs that are computed, without what fills a page."""
        return self.n_cells - (self.n_padded - self.n_source if self.n_cells else 0)


class Cache:
    """Every kind together: a prefix is there, or room is, where it is for each of them."""

    def __init__(self, shape: CacheShape) -> None:
        self.page_size = size = shape.page_size
        self.pages = Pages(shape.n_cells // size, size)
        n_window_pages, window, chunk = shape.n_window_cells // size, shape.window, shape.chunk
        self.window = Pages(n_window_pages, size, window, chunk) if n_window_pages else None
        self.rows = Rows(shape.n_rows, size) if shape.n_rows else None
        self.has_encoder = shape.n_source_cells > 0

    @property
    def n_pages(self) -> int:
        """Pages of the layers that see all."""
        return self.pages.pool.n

    @property
    def n_free(self) -> int:
        """Of them, those that can be had now."""
        return self.pages.pool.n_free

    @property
    def n_held(self) -> int:
        """Of them, those that some slot holds."""
        return self.n_pages - self.n_free

    @property
    def can_rewind(self) -> bool:
        """Whether inputs that were computed can be taken back; what is recurrent has changed for good."""
        return self.rows is None

    def n_lacking(self, slot: Slot, n_cells: int) -> int:
        """Pages that the slot needs beside its own to hold so many cells."""
        return self.pages.n_lacking(slot.table, n_cells)

    def n_room(self, slot: Slot) -> int:
        """Inputs by which the slot can grow now."""
        n_room = self.pages.n_room(slot.table)
        if self.window is not None:
            n_room = min(n_room, self.window.n_room(slot.window))
        return n_room - slot.n_cells

    def open(self, tokens: Sequence[int], groups: Groups = NO_GROUPS, n_source: int = 0) -> Slot:
        """A slot that already holds the longest known prefix of whole pages, short of the last token.

        The last token is always left to compute, for its logits are wanted; of a group nothing or all of it.
        n_source: tokens at the beginning that an encoder reads; tokens that fill their last page follow them,
        and the groups have both as one.
        """
        root = _digest(b"source", tokens[:n_source]) if n_source else b""
        digests: list[bytes] = []
        for start in range(0, len(tokens) - self.page_size, self.page_size):
            digest = _digest(digests[-1] if digests else root, tokens[start : start + self.page_size])
            if self.pages.pool.find(digest) is None:
                break
            digests.append(digest)
        digests = digests[: self._n_known(digests, groups)]
        n_padded = padded(n_source, self.page_size)
        n_cells = len(digests) * self.page_size
        slot = Slot(n_cells=n_cells, digests=digests, n_source=n_source, n_padded=n_padded, root=root)
        self.pages.open(slot.table, digests)
        if self.window is not None:
            self.window.open(slot.window, digests)
        if self.rows is not None:
            self.rows.open(slot.state, digests)
        return slot

    def n_inputs(self, slot: Slot, n_most: int, n_pending: int) -> int:
        """Of the next n_most inputs those to compute at once, so that checkpoints are where prompts share.

        n_pending: all that are known.  The last of them is left out, as `open` would: then the same prompt
        finds a checkpoint before it.
        """
        end = slot.n_cells + n_most
        edge = (end - (n_most == n_pending)) // self.page_size * self.page_size
        return edge - slot.n_cells if self.rows is not None and edge > slot.n_cells else n_most

    def extend(self, slot: Slot, n_inputs: int) -> bool:
        """Make room for n more inputs; False, with nothing changed, when there is none."""
        if n_inputs > self.n_room(slot):
            return False
        self.pages.extend(slot.table, slot.n_cells + n_inputs)
        if self.window is not None:
            self.window.extend(slot.window, slot.n_cells + n_inputs)
        return True

    def advance(self, slot: Slot, tokens: Sequence[int]) -> None:
        """These inputs have been computed, for which there was room; pages they fill can now be shared."""
        slot.n_cells += len(tokens)
        slot.tail.extend(tokens)
        while len(slot.tail) >= self.page_size:
            full, slot.tail = slot.tail[: self.page_size], slot.tail[self.page_size :]
            digest = _digest(slot.digests[-1] if slot.digests else slot.root, full)
            index = len(slot.digests)
            slot.digests.append(digest)
            # where an equal page is known already, this one stays private
            self.pages.pool.publish(slot.table.pages[index], digest)
            if self.window is not None:
                self.window.pool.publish(slot.window.pages[index], digest)
        if self.window is not None:
            self.window.trim(slot.window, slot.n_cells)
        if self.rows is not None:
            self.rows.advance(
                slot.state, len(tokens), slot.n_cells, slot.digests[-1] if slot.digests else b""
            )

    def release(self, slot: Slot) -> None:
        """Give up everything; known content stays until its space is needed.  A second call does nothing."""
        self.pages.release(slot.table)
        if self.window is not None:
            self.window.release(slot.window)
        if self.rows is not None:
            self.rows.release(slot.state)
        slot.digests, slot.tail, slot.n_cells = [], [], 0

    def _n_known(self, digests: Sequence[bytes], groups: Groups) -> int:
        """Pages after which every kind can go on, and which cut no group."""
        n = len(digests)
        kinds = [kind for kind in (self.window, self.rows) if kind is not None]
        while True:
            found = groups.before(n * self.page_size) // self.page_size
            for kind in kinds:
                found = kind.n_known(digests, found)
            if found == n:
                return n
            n = found


def _digest(parent: bytes, tokens: Sequence[int]) -> bytes:
    """Names a page by its tokens and everything before them; long enough never to collide by accident."""
    return hashlib.blake2b(parent + array("i", tokens).tobytes(), digest_size=16).digest()
