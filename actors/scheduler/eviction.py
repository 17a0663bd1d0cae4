"""Which models leave when another needs room: pure choices by measured size and last use."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Candidate:
    """A loaded model that could leave."""

    digest: str
    name: str
    last_used_s: float  # when its last lease left, on any one clock
    is_idle: bool
    held_bytes: Mapping[str, int]  # measured, by device id


@dataclass(frozen=True, slots=True)
class Victims:
    """`stop` are idle and leave now; `drain` are busy: nobody is cut off, but nobody new is let in."""

    stop: tuple[Candidate, ...]
    drain: tuple[Candidate, ...] = ()


def _order(candidate: Candidate) -> tuple[bool, float, str]:
    return not candidate.is_idle, candidate.last_used_s, candidate.digest


def make_room(candidates: Sequence[Candidate], device: str, shortage_bytes: int) -> Victims | None:
    """The least recently used models that free `shortage_bytes` of `device`, none of them needlessly.

    Idle ones first; busy ones are only drained when all the idle ones do not suffice.  None: not even all
    together hold that much.
    """
    holders = [candidate for candidate in candidates if candidate.held_bytes.get(device, 0) > 0]
    holders.sort(key=_order)
    chosen: list[Candidate] = []
    gained = 0
    for candidate in holders:
        if gained >= shortage_bytes:
            break
        chosen.append(candidate)
        gained += candidate.held_bytes[device]
    if gained < shortage_bytes:
        return None
    return _split(_without_needless(chosen, device, shortage_bytes))


def make_place(candidates: Sequence[Candidate], n_places: int = 1) -> Victims:
    """The `n_places` least recently used, idle before busy, whatever their size."""
    order = sorted(candidates, key=_order)
    return _split(order[:n_places])


def _without_needless(chosen: Sequence[Candidate], device: str, shortage_bytes: int) -> list[Candidate]:
    """Spare whoever the others make needless, busy and recently used ones first."""
    kept = list(chosen)
    gained = sum(candidate.held_bytes[device] for candidate in kept)
    for candidate in reversed(chosen):
        if gained - candidate.held_bytes[device] >= shortage_bytes:
            kept.remove(candidate)
            gained -= candidate.held_bytes[device]
    return kept


def _split(chosen: Sequence[Candidate]) -> Victims:
    return Victims(
        stop=tuple(candidate for candidate in chosen if candidate.is_idle),
        drain=tuple(candidate for candidate in chosen if not candidate.is_idle),
    )
