"""Runs of inputs that are computed in one batch and dropped together, such as those of one image.

A sequence may be cut between two inputs, for a batch or when its context is full, but not inside a group.
Places count inputs before them.
"""

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Groups:
    """Spans of inputs, each from its first to one past its last, in order and apart."""

    spans: tuple[tuple[int, int], ...] = ()

    def before(self, place: int) -> int:
        """The last place up to this one where the sequence may be cut."""
        return next((begin for begin, end in self.spans if begin < place < end), place)

    def after(self, place: int) -> int:
        """The first place from this one on where the sequence may be cut."""
        return next((end for begin, end in self.spans if begin < place < end), place)

    def since(self, place: int) -> "Groups":
        """The groups of what follows this place, at which the sequence may be cut."""
        if not self.spans:
            return self
        return Groups(tuple((begin - place, end - place) for begin, end in self.spans if begin >= place))

    def without(self, first: int, last: int) -> "Groups":
        """What is left when inputs first..last-1 are dropped, places where the sequence may be cut."""
        n_dropped = last - first
        early = [span for span in self.spans if span[1] <= first]
        late = [(begin - n_dropped, end - n_dropped) for begin, end in self.spans if begin >= last]
        return Groups((*early, *late))


NO_GROUPS = Groups()


def groups_of(spans: Iterable[tuple[int, int]]) -> Groups:
    """Of first inputs and numbers of inputs; groups that overlap are one, one input alone is none."""
    merged: list[tuple[int, int]] = []
    for first, n_inputs in sorted(span for span in spans if span[1] > 1):
        if merged and first < merged[-1][1]:
            merged[-1] = (merged[-1][0], max(merged[-1][1], first + n_inputs))
        else:
            merged.append((first, first + n_inputs))
    return Groups(tuple(merged))
