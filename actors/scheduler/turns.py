"""Loads that are under way at the same time, and which of them goes first: decisions over plain values.

Loads run side by side; what orders them is memory.  A load that is about to take memory lets those go first
that began before it and wait for room on one of the same devices, or do not know yet which devices they need,
though not for longer than SIZING_S.  So nobody is overtaken on a device, and nobody waits for a device that
is none of its own.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

SIZING_S = 5.0  # a runner starts and fits within a second or two


@dataclass(slots=True, eq=False)
class Turn:
    """One load among those under way."""

    name: str  # of the model
    since_s: float
    wants: frozenset[str] = frozenset()  # devices it waits for room on; none: not known yet
    has_place: bool = False  # it counts among the models in memory
    is_settled: bool = False  # its memory is promised to it
    is_waiting: bool = False  # for others to leave or go first
    closed: frozenset[str] = frozenset()  # digests of busy models that let nobody new in for its sake


class Turns:
    """The loads under way, in the order in which they began."""

    def __init__(self) -> None:
        self._turns: list[Turn] = []

    def __len__(self) -> int:
        return len(self._turns)

    def __iter__(self) -> Iterator[Turn]:
        return iter(tuple(self._turns))

    def open(self, name: str, now_s: float) -> Turn:
        """A load begins."""
        turn = Turn(name, now_s)
        self._turns.append(turn)
        return turn

    def close(self, turn: Turn) -> None:
        """It ended, one way or another."""
        self._turns.remove(turn)

    def closed(self) -> frozenset[str]:
        """Digests of the models that take nobody new."""
        return frozenset[str]().union(*(turn.closed for turn in self._turns))

    def n_without_place(self, turn: Turn) -> int:
        """How many that began earlier do not count among the models in memory yet, but will."""
        return sum(not earlier.has_place for earlier in self._earlier(turn))

    def ahead(self, turn: Turn, wants: frozenset[str], now_s: float) -> Turn | None:
        """The first load that goes before `turn` where both want memory of one of the devices `wants`."""
        return next((each for each in self._unsettled(turn) if _is_ahead(each, wants, now_s)), None)

    def patience_ends_s(self, turn: Turn, now_s: float) -> float:
        """When `ahead` may change by time alone."""
        ends = [each.since_s + SIZING_S for each in self._unsettled(turn) if not each.wants]
        return min((end_s for end_s in ends if end_s > now_s), default=math.inf)

    def _earlier(self, turn: Turn) -> list[Turn]:
        return self._turns[: self._turns.index(turn)]

    def _unsettled(self, turn: Turn) -> list[Turn]:
        return [earlier for earlier in self._earlier(turn) if not earlier.is_settled]


def _is_ahead(earlier: Turn, wants: frozenset[str], now_s: float) -> bool:
    if earlier.wants:
        return bool(earlier.wants & wants)
    return now_s < earlier.since_s + SIZING_S
