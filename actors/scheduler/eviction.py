"""Which models leave when another needs room: pure choices by measured size, last use and reload cost.

A model costs what it takes to load it again, weighed by how likely somebody wants it soon: the longer nobody
has used it, the less.  Of all sets that make enough room on the device that lacks it the cheapest leaves; one
that frees nothing there costs and gains nothing, so it stays.  Loads of under a second count as a second:
what is cheap to reload leaves in the order of its last use.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

LEAST_RELOAD_S = 1.0  # below this the difference is noise
LEAST_IDLE_S = 1e-3
EXACT_MAX = 10  # models among which all sets are compared; more are taken one after the other


@dataclass(frozen=True, slots=True)
class Candidate:
    """A loaded model that could leave.  Times are of one clock, in seconds."""

    digest: str
    name: str
    last_used_s: float  # when its last lease left
    is_idle: bool
    held_bytes: Mapping[str, int]  # measured, by device id
    reload_s: float = 0.0  # what its load took
    is_pinned: bool = False  # somebody asked to keep it for ever: nobody else makes it leave


@dataclass(frozen=True, slots=True)
class Victims:
    """`stop` are idle and can leave now; `drain` are busy: nobody is cut off, but nobody new is let in."""

    stop: tuple[Candidate, ...]
    drain: tuple[Candidate, ...] = ()


def cost(candidate: Candidate, now_s: float) -> float:
    """What its leaving costs: seconds of reloading for each second that nobody used it."""
    idle_s = now_s - candidate.last_used_s if candidate.is_idle else 0.0
    return max(candidate.reload_s, LEAST_RELOAD_S) / max(idle_s, LEAST_IDLE_S)


def make_room(
    candidates: Sequence[Candidate], shortages: Mapping[str, int], now_s: float
) -> tuple[str, Victims] | None:
    """The device whose shortage (in bytes) is the cheapest to mend, and the models that leave it.

    None of them leaves needlessly; busy ones only as far as all the idle ones do not suffice, pinned ones
    never.  None: on no device do all together hold that much.
    """
    found = {
        device: chosen
        for device, shortage_bytes in sorted(shortages.items())
        if (chosen := _choose(candidates, device, shortage_bytes, now_s)) is not None
    }
    if not found:
        return None
    device = min(found, key=lambda device: _rank(found[device], now_s))
    return device, _split(found[device])


def make_place(candidates: Sequence[Candidate], n_places: int, now_s: float) -> Victims:
    """The `n_places` cheapest, idle before busy, whatever their size; fewer if the rest is pinned."""
    order = sorted((one for one in candidates if not one.is_pinned), key=lambda one: _rank((one,), now_s))
    return _split(order[:n_places])


def _choose(
    candidates: Sequence[Candidate], device: str, shortage_bytes: int, now_s: float
) -> Sequence[Candidate] | None:
    holders = [one for one in candidates if one.held_bytes.get(device, 0) > 0 and not one.is_pinned]
    if _gain(holders, device) < shortage_bytes:
        return None
    choose = _cheapest if len(holders) <= EXACT_MAX else _greedy
    return choose(holders, device, shortage_bytes, now_s)


def _gain(chosen: Sequence[Candidate], device: str) -> int:
    return sum(candidate.held_bytes[device] for candidate in chosen)


Rank = tuple[int, float, int, tuple[float, ...], tuple[str, ...]]


def _rank(chosen: Sequence[Candidate], now_s: float) -> Rank:
    """What makes one set better than another: busy models, cost, number, least recently used, any order."""
    return (
        sum(not one.is_idle for one in chosen),
        sum(sorted(cost(one, now_s) for one in chosen)),  # sorted: sums of floats depend on their order
        len(chosen),
        tuple(sorted(one.last_used_s for one in chosen)),
        tuple(sorted(one.digest for one in chosen)),
    )


def _cheapest(
    holders: Sequence[Candidate], device: str, shortage_bytes: int, now_s: float
) -> Sequence[Candidate]:
    sets = (
        chosen
        for n_chosen in range(1, len(holders) + 1)
        for chosen in combinations(holders, n_chosen)
        if _gain(chosen, device) >= shortage_bytes
    )
    return min(sets, key=lambda chosen: _rank(chosen, now_s), default=())


def _greedy(
    holders: Sequence[Candidate], device: str, shortage_bytes: int, now_s: float
) -> Sequence[Candidate]:
    """The cheapest for each byte of use one after the other, then spare whoever the others make needless."""

    def price(one: Candidate) -> tuple[bool, float, float, str]:
        used_bytes = min(one.held_bytes[device], shortage_bytes)
        return not one.is_idle, cost(one, now_s) / max(used_bytes, 1), one.last_used_s, one.digest

    chosen: list[Candidate] = []
    for candidate in sorted(holders, key=price):
        if _gain(chosen, device) >= shortage_bytes:
            break
        chosen.append(candidate)
    for candidate in sorted(chosen, key=lambda one: _rank((one,), now_s), reverse=True):
        if _gain(chosen, device) - candidate.held_bytes[device] >= shortage_bytes:
            chosen.remove(candidate)
    return chosen


def _split(chosen: Sequence[Candidate]) -> Victims:
    order = sorted(chosen, key=lambda one: (one.last_used_s, one.digest))
    return Victims(
        stop=tuple(candidate for candidate in order if candidate.is_idle),
        drain=tuple(candidate for candidate in order if not candidate.is_idle),
    )
