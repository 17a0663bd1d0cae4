"""Who is served, who waits, and whose pages are whose: sequences, and the pool of cells they share.

All sequences share one pool, so that many short ones and a few long ones fit where not every one could be as
long as the context.  When they grow and the pool is exhausted, somebody is paused: gives up the pages, and is
computed anew when there is room again.  That is whoever's reader does not keep up, then the youngest; so the
oldest always goes on, and everybody is the oldest at some time.
"""

from collections.abc import Iterable, Iterator

from actors.protocol import DoneReason
from actors.runner.cache.cache import Cache, Slot
from actors.runner.sequence import Sequence


class Roster:
    """Sequences that are served (`active`, at most n_parallel of them) and those that wait."""

    def __init__(self, cache: Cache, n_parallel: int) -> None:
        self.active: dict[int, Sequence] = {}
        self.cache = cache
        self.n_paused_total = 0
        self._n_parallel = n_parallel
        self._waiting: dict[int, Sequence] = {}

    def __iter__(self) -> Iterator[Sequence]:
        """Everybody, those that are served first."""
        yield from (*self.active.values(), *self._waiting.values())

    @property
    def n_waiting(self) -> int:
        """Sequences without a slot."""
        return len(self._waiting)

    @property
    def n_free(self) -> int:
        """Places for sequences that are not taken."""
        return self._n_parallel - len(self.active)

    def holds(self, sequence: Sequence) -> bool:
        """Whether the sequence is served now."""
        return self.active.get(sequence.seq_id) is sequence

    def add(self, sequence: Sequence) -> None:
        """It waits its turn from now on."""
        self._waiting[sequence.seq_id] = sequence

    def admit(self) -> None:
        """Give slots to the sequences that wait longest, while there is room for their whole history.

        And for a page more of everybody, or somebody would have to leave again at once.  Who waits for a
        reader is passed over, and gives way if it holds pages.
        """
        while self.n_free > 0 and (sequence := self._oldest_waiting()):
            slot = self._open(sequence)
            n_pages = self.cache.n_lacking(slot, len(sequence.history))
            while self.active and n_pages + len(self.active) > self.cache.n_free:
                idle = self._youngest(s for s in self.active.values() if not s.can_run)
                if idle is None:
                    self.cache.release(slot)
                    return
                self.pause(idle)
            del self._waiting[sequence.seq_id]
            sequence.slot = slot
            sequence.start(slot.n_computed)
            self.active[sequence.seq_id] = sequence

    def grow(self, sequence: Sequence, n_inputs: int) -> int:
        """Make room for the sequence's next inputs, pausing others if need be; how many of them have room.

        0 when it had to be paused itself.
        """
        slot = sequence.slot
        assert slot is not None
        while not self.cache.extend(slot, n_inputs):
            victim = self._victim(sequence)
            if victim is not None:
                self.pause(victim)
            elif (n_room := sequence.n_uncut(min(n_inputs, self.cache.n_room(slot)))) > 0:
                n_inputs = n_room
            else:
                self.pause(sequence)
                return 0
        return n_inputs

    def pause(self, sequence: Sequence) -> None:
        """Take its pages; it waits, before all that came later, until there is room to compute it anew."""
        del self.active[sequence.seq_id]
        self._free(sequence)
        self._waiting[sequence.seq_id] = sequence
        self.n_paused_total += 1

    def remove(self, sequence: Sequence) -> None:
        """It is over: place and pages come back.  A second call does nothing."""
        self.active.pop(sequence.seq_id, None)
        self._waiting.pop(sequence.seq_id, None)
        self._free(sequence)

    def make_room(self, sequence: Sequence) -> None:
        """The context is full: stop, or drop the oldest half after n_keep and compute the rest again."""
        if not sequence.request.shift:
            sequence.end(DoneReason.CONTEXT)
            return
        sequence.shift()
        self._free(sequence)
        sequence.slot = self._open(sequence)

    def _open(self, sequence: Sequence) -> Slot:
        return self.cache.open(sequence.history, sequence.groups, sequence.n_source)

    def _oldest_waiting(self) -> Sequence | None:
        """Of those whose reader keeps up."""
        return min((s for s in self._waiting.values() if s.keeps_up), key=lambda s: s.seq_id, default=None)

    def _victim(self, needy: Sequence) -> Sequence | None:
        """Who gives way to `needy`: whoever waits for a reader, or the youngest of those younger than it."""
        others = [s for s in self.active.values() if s is not needy]
        idle = self._youngest(s for s in others if not s.can_run)
        return idle or self._youngest(s for s in others if s.seq_id > needy.seq_id)

    def _youngest(self, sequences: Iterable[Sequence]) -> Sequence | None:
        return max(sequences, key=lambda s: s.seq_id, default=None)

    def _free(self, sequence: Sequence) -> None:
        if sequence.slot is not None:
            self.cache.release(sequence.slot)
            sequence.slot = None
