"""What the attempts of a load have shown: sizes that a layout brought with it, and bytes that did not fit.

A report is exact for its own placement only: compute buffers depend on the placement.  And free memory is
what somebody said a moment ago.  So a device's room is learnt between two bounds, what did fit and what did
not, and the next attempt lies between them.
"""

import enum
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import msgspec

from actors.protocol import Device, DeviceMemory, MemoryItem, MemoryReport
from actors.scheduler.layout import (
    GPU_RESERVE_BYTES,
    Costs,
    Limits,
    Placement,
    Policy,
    available_bytes,
    costs_of,
    n_offloaded,
    offloaded,
)
from actors.scheduler.sizes import CPU, item_bytes, total_bytes

K = TypeVar("K")


class Round(enum.Enum):
    """Which question the runner answers."""

    FIT = "fit"
    ALLOC = "alloc"


@dataclass(frozen=True, slots=True)
class Part:
    """One device in an attempt.  Bytes."""

    layer_bytes: int  # weights and cache
    fixed_bytes: int  # compute buffer and context
    planned_bytes: int  # all of it, as it was before anything was measured
    given_bytes: int  # what was allocated and measured
    failed_bytes: int  # the size of what could not be allocated
    has_failed: bool  # also where that was nothing yet: a device that is gone

    @property
    def need_bytes(self) -> int:
        """All of it."""
        return self.layer_bytes + self.fixed_bytes


@dataclass(frozen=True, slots=True)
class Attempt:
    """One question to the runner and its answer.  Get one from `attempt_of`."""

    round: Round
    placement: Placement
    report: MemoryReport
    costs: Costs
    parts: Mapping[str, Part]  # of every device that the report names, by id

    @property
    def key(self) -> frozenset[tuple[str, tuple[int, ...]]]:
        """Equal for attempts with the same layers on the same GPUs."""
        return offloaded(self.placement)

    @property
    def worth(self) -> tuple[int, int]:
        """Larger is better: more layers on GPUs, then fewer GPUs."""
        return worth(self.placement)

    @property
    def is_whole(self) -> bool:
        """Whether the output layer is on a GPU."""
        return any(part.device != CPU and self.report.n_layer in part.layers for part in self.placement)


def worth(placement: Placement) -> tuple[int, int]:
    """Larger is better: more layers on GPUs, then fewer GPUs."""
    return n_offloaded(placement), -len(offloaded(placement))


def attempt_of(round_: Round, placement: Placement, report: MemoryReport) -> Attempt:
    """The attempt with what follows from its report."""
    parts = {memory.id: _part(memory) for memory in report.devices}
    return Attempt(round_, placement, report, costs_of(report), parts)


def _part(memory: DeviceMemory) -> Part:
    items = (*memory.weights, *memory.cache, memory.graph, memory.overhead)
    return Part(
        layer_bytes=total_bytes(memory.weights) + total_bytes(memory.cache),
        fixed_bytes=item_bytes(memory.graph) + item_bytes(memory.overhead),
        planned_bytes=sum(item.planned_bytes for item in items),
        given_bytes=sum(item.measured_bytes for item in items if item.status == "allocated"),
        failed_bytes=sum(item.planned_bytes for item in items if item.status == "failed"),
        has_failed=any(item.status == "failed" for item in items),
    )


def known_costs(attempts: Sequence[Attempt]) -> Costs:
    """The costs as all attempts together tell: the largest of each layer, the latest of each device.

    A tied output layer costs nothing on the host, so that only an attempt with it on a GPU tells its size.
    """
    latest = attempts[-1].costs
    graph: dict[str, int] = {}
    overhead: dict[str, int] = {}
    for attempt in attempts:
        used = {part.device for part in attempt.placement} | {CPU}
        graph |= {device: size for device, size in attempt.costs.graph.items() if size or device in used}
        overhead |= {
            device: size for device, size in attempt.costs.overhead.items() if size or device in used
        }
    return Costs(
        layers=tuple(map(max, *(attempt.costs.layers for attempt in attempts), latest.layers)),
        weights=tuple(map(max, *(attempt.costs.weights for attempt in attempts), latest.weights)),
        input_bytes=latest.input_bytes,
        graph=graph,
        overhead=overhead,
    )


def failing(attempt: Attempt, devices: Iterable[Device], policy: Policy) -> frozenset[str]:
    """Ids of the devices that the placement is too much for.

    Where a failure names no device that we know of, all GPUs used are suspect, or the host if there are none.
    """
    if attempt.report.failure:
        named = {device for device, part in attempt.parts.items() if part.has_failed} | _failed_input(
            attempt.report.input_weights
        )
        return frozenset(named or {device for device, _ in attempt.key} or {CPU})
    used = {device for device, _ in attempt.key}
    room = {device.id: available_bytes(device, policy) for device in devices}
    return frozenset(
        device
        for device, part in attempt.parts.items()
        if device in used and _is_over(part, room.get(device, 0), attempt.round)
    )


def _is_over(part: Part, room_bytes: int, round_: Round) -> bool:
    """What turns out larger than planned may use the reserve, which is there for surprises."""
    reserve = 0 if round_ is Round.FIT else GPU_RESERVE_BYTES
    return part.planned_bytes > room_bytes or part.need_bytes > room_bytes + reserve


def _failed_input(item: MemoryItem) -> set[str]:
    return {CPU} if item.status == "failed" else set()


@dataclass(slots=True)
class Bounds:
    """What is known to fit and known not to, in bytes."""

    fits: dict[tuple[str, bool], int] = field(default_factory=dict[tuple[str, bool], int])
    fails: dict[tuple[str, bool], int] = field(default_factory=dict[tuple[str, bool], int])
    holds: dict[str, int] = field(default_factory=dict[str, int])  # of all memory, by device, allocated
    refuses: dict[str, int] = field(default_factory=dict[str, int])

    def limits(self, *, is_bold: bool) -> Limits:
        """Less layers than did not fit; or half way from those that did."""
        return {
            key: too_much - 1 if is_bold else (self.fits.get(key, 0) + too_much) // 2
            for key, too_much in self.fails.items()
        }

    def capped(self, devices: Iterable[Device], policy: Policy, *, is_bold: bool) -> tuple[Device, ...]:
        """The devices with as much free memory as allocations leave believable."""
        kept = GPU_RESERVE_BYTES + policy.gpu_overhead_bytes
        return tuple(
            msgspec.structs.replace(device, free_bytes=min(device.free_bytes, kept + cap))
            if (cap := self._cap(device.id, is_bold=is_bold)) is not None
            else device
            for device in devices
        )

    def _cap(self, device: str, *, is_bold: bool) -> int | None:
        if device not in self.refuses:
            return None
        too_much = self.refuses[device]
        return too_much - 1 if is_bold else (self.holds.get(device, 0) + too_much) // 2


def bounds_of(attempts: Sequence[Attempt], devices: Sequence[Device], policy: Policy) -> Bounds:
    """Bounds from all attempts, the later ones believed where memory has come or gone meanwhile."""
    bounds = Bounds()
    for attempt in attempts:
        bad = failing(attempt, devices, policy)
        is_unclear = bool(attempt.report.failure)
        if is_unclear:
            # of several suspects, those that have held as much are the last to blame
            bad = {each for each in bad if _need(attempt, each) > bounds.holds.get(each, 0)} or bad
        for device, _ in attempt.key:
            part, key = attempt.parts.get(device), (device, attempt.is_whole)
            if part is None:
                continue
            if device in bad:
                _lower(bounds.fails, bounds.fits, key, part.layer_bytes)
            elif not is_unclear:
                _raise(bounds.fits, bounds.fails, key, part.layer_bytes)
            if attempt.round is Round.ALLOC:
                _learn_totals(bounds, device, part, is_bad=device in bad, is_unclear=is_unclear)
    return bounds


def _need(attempt: Attempt, device: str) -> int:
    part = attempt.parts.get(device)
    return part.need_bytes if part is not None else 0


def _learn_totals(bounds: Bounds, device: str, part: Part, *, is_bad: bool, is_unclear: bool) -> None:
    # before what failed, or a failure that passed would take with it what a later one tells
    given = part.given_bytes if is_unclear else part.need_bytes
    if given and not (is_bad and not is_unclear):
        _raise(bounds.holds, bounds.refuses, device, given)
    if is_bad:
        # the first thing that failed came on top of what was given, where that is told
        is_told = part.given_bytes and part.failed_bytes
        too_much = part.given_bytes + part.failed_bytes if is_told else part.need_bytes
        _lower(bounds.refuses, bounds.holds, device, min(part.need_bytes, too_much))


def _lower(upper: dict[K, int], lower: dict[K, int], key: K, size: int) -> None:
    """So much does not fit; what fitted before and is more than that is no longer believed."""
    upper[key] = min(size, upper.get(key, size))
    if lower.get(key, 0) >= upper[key]:
        lower.pop(key, None)


def _raise(lower: dict[K, int], upper: dict[K, int], key: K, size: int) -> None:
    """So much fits."""
    lower[key] = max(size, lower.get(key, 0))
    if key in upper and upper[key] <= lower[key]:
        del upper[key]
