"""Numbered places that hold something: who holds them, and what is known to be in them.

A place is free, held by one or more, or idle: nobody holds it, but its content is known by a digest, so that
whoever needs the same may hold it again.  Idle places are given away last, least recently used first.
"""

from collections import OrderedDict


class Pool:
    """Places 0..n-1."""

    def __init__(self, n: int) -> None:
        self.n = n
        self._free = list(range(n - 1, -1, -1))
        self._n_holders = [0] * n
        self._place_of: dict[bytes, int] = {}
        self._digest_of: dict[int, bytes] = {}
        self._idle: OrderedDict[int, None] = OrderedDict()  # oldest first

    @property
    def n_free(self) -> int:
        """Places that can be taken now."""
        return len(self._free) + len(self._idle)

    def find(self, digest: bytes) -> int | None:
        """The place that holds what this digest names."""
        return self._place_of.get(digest)

    def take(self) -> int:
        """A place whose content no longer matters, held by the caller; IndexError when there is none."""
        if self._free:
            place = self._free.pop()
        elif self._idle:
            place, _ = self._idle.popitem(last=False)
            self._disown(place)
        else:
            raise IndexError(f"all {self.n} places are held")
        self._n_holders[place] += 1
        return place

    def hold(self, place: int) -> None:
        """One more holds a place whose content is known."""
        self._idle.pop(place, None)
        self._n_holders[place] += 1

    def publish(self, place: int, digest: bytes) -> bool:
        """What a held place contains; False, with nothing changed, where another place is known for it."""
        if digest in self._place_of:
            return False
        self._place_of[digest] = place
        self._digest_of[place] = digest
        return True

    def drop(self, place: int) -> None:
        """One holds it no more.  The last one leaves it idle, or free when nobody knows its content."""
        self._n_holders[place] -= 1
        if self._n_holders[place] == 0:
            if place in self._digest_of:
                self._idle[place] = None
            else:
                self._free.append(place)

    def forget(self, place: int) -> None:
        """Free it at once if it is idle."""
        if place in self._idle:
            del self._idle[place]
            self._disown(place)
            self._free.append(place)

    def _disown(self, place: int) -> None:
        del self._place_of[self._digest_of.pop(place)]
