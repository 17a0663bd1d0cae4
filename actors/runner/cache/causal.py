"""The causal cache: a pool of pages shared by all sequences of a model, with prefixes shared by reference.

A page holds `page_size` cells.  A sequence's slot lists its pages in order; its logical history is kept by
the engine, apart from these physical pages.  A full page is known by the digest of everything up to its
end, so a new sequence that begins alike takes a reference instead of computing again.  A page without
references keeps its content until its space is needed, least recently used first.

Nothing here touches device memory: programs read and write cells through the index arrays that `cells` and
`tables` give.
"""

import hashlib
from array import array
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field

PAGE_SIZE = 32  # cells; a conversation's next turn recomputes at most one page of its past


@dataclass(slots=True, eq=False)
class Slot:
    """A sequence's place in the cache."""

    pages: "array[int]" = field(default_factory=lambda: array("i"))  # becomes a row of a batch's tables
    n_cells: int = 0  # cells whose keys and values are computed
    digests: list[bytes] = field(default_factory=list[bytes])  # of each full page, in order
    tail: list[int] = field(default_factory=list[int])  # tokens of the page that is not full yet


class CausalCache:
    """Pages, who holds them, and what they contain."""

    def __init__(self, n_pages: int, page_size: int = PAGE_SIZE) -> None:
        self.page_size = page_size
        self.n_pages = n_pages
        self._free = list(range(n_pages - 1, -1, -1))
        self._n_holders = [0] * n_pages
        self._page_of: dict[bytes, int] = {}
        self._digest_of: dict[int, bytes] = {}
        self._idle: OrderedDict[int, None] = OrderedDict()  # known content, no holder; oldest first

    @property
    def n_free(self) -> int:
        """Pages that can be had now."""
        return len(self._free) + len(self._idle)

    @property
    def n_held(self) -> int:
        """Pages that some slot holds."""
        return self.n_pages - self.n_free

    def n_pages_of(self, n_cells: int) -> int:
        """Pages that hold so many cells of one sequence."""
        return -(-n_cells // self.page_size)

    def n_room(self, slot: Slot) -> int:
        """Inputs by which the slot can grow now."""
        return (len(slot.pages) + self.n_free) * self.page_size - slot.n_cells

    def open(self, tokens: Sequence[int]) -> Slot:
        """A slot that already holds the longest known prefix of whole pages, short of the last token.

        The last token is always left to compute, for its logits are wanted.
        """
        slot = Slot()
        parent = b""
        for start in range(0, len(tokens) - self.page_size, self.page_size):
            parent = _digest(parent, tokens[start : start + self.page_size])
            page = self._page_of.get(parent)
            if page is None:
                break
            self._hold(page)
            slot.pages.append(page)
            slot.digests.append(parent)
            slot.n_cells += self.page_size
        return slot

    def extend(self, slot: Slot, n_inputs: int) -> bool:
        """Make room for n more inputs; False, with nothing changed, when there is none."""
        n_more = self.n_pages_of(slot.n_cells + n_inputs) - len(slot.pages)
        if n_more > self.n_free:
            return False
        for _ in range(n_more):
            page = self._free.pop() if self._free else self._forget_oldest()
            self._hold(page)
            slot.pages.append(page)
        return True

    def cells(self, slot: Slot, n_inputs: int) -> list[int]:
        """The cells of the next n inputs, which `extend` made room for."""
        size = self.page_size
        return [slot.pages[i // size] * size + i % size for i in range(slot.n_cells, slot.n_cells + n_inputs)]

    def advance(self, slot: Slot, tokens: Sequence[int]) -> None:
        """These inputs have been computed into the slot's next cells; pages they fill can now be shared."""
        slot.n_cells += len(tokens)
        slot.tail.extend(tokens)
        while len(slot.tail) >= self.page_size:
            full, slot.tail = slot.tail[: self.page_size], slot.tail[self.page_size :]
            digest = _digest(slot.digests[-1] if slot.digests else b"", full)
            page = slot.pages[len(slot.digests)]
            slot.digests.append(digest)
            if digest not in self._page_of:  # else an equal page is known already; this one stays private
                self._page_of[digest] = page
                self._digest_of[page] = digest

    def release(self, slot: Slot) -> None:
        """Give up every page; known content stays until its space is needed.  A second call does nothing."""
        for page in reversed(slot.pages):  # so that the end of a prefix is forgotten before its beginning
            self._n_holders[page] -= 1
            if self._n_holders[page] == 0:
                if page in self._digest_of:
                    self._idle[page] = None
                else:
                    self._free.append(page)
        slot.pages, slot.digests, slot.tail, slot.n_cells = array("i"), [], [], 0

    def _hold(self, page: int) -> None:
        self._idle.pop(page, None)
        self._n_holders[page] += 1

    def _forget_oldest(self) -> int:
        page, _ = self._idle.popitem(last=False)
        del self._page_of[self._digest_of.pop(page)]
        return page


def _digest(parent: bytes, tokens: Sequence[int]) -> bytes:
    """Names a page by its tokens and everything before them; long enough never to collide by accident."""
    return hashlib.blake2b(parent + array("i", tokens).tobytes(), digest_size=16).digest()
