"""Where every layer lives: pure decisions over plain values; free bytes come in, nothing is awaited.

A load is two rounds of questions to the runner, `fit` (sizes only) and `alloc` (real allocations).  After
each answer `next_step` says what follows:

    Try     ask again with this placement
    Accept  the placement is stable and the memory suffices: go on to the next round
    Evict   it would fit if other models left this much of a device
    Refuse  it cannot work; the message has the numbers

The rounds end: within a round a placement is never tried twice, and after the first the number of layers on
GPUs only falls.
"""

import enum
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate

import msgspec

from actors.protocol import Device, LayerPlacement, MemoryItem, MemoryReport
from actors.scheduler.sizes import CPU, MIB, item_bytes, size_text, total_bytes

GPU_RESERVE_BYTES = 457 * MIB  # kept free on a GPU: what drivers and displays take between two readings
BACKOFF_STEP = 0.1  # of the free memory, for each allocation that failed although it should have fitted
N_CTX_STEP = 256  # suggested contexts are multiples of this
N_CTX_LEAST = 512  # a shorter context than this is no advice

Placement = tuple[LayerPlacement, ...]


class Round(enum.Enum):
    """Which question the runner answers."""

    FIT = "fit"
    ALLOC = "alloc"


@dataclass(frozen=True, slots=True)
class Costs:
    """What a model takes, by part.  Bytes."""

    layers: tuple[int, ...]  # [n_layer + 1] weights and cache of each layer; the output layer is last
    input_bytes: int  # host memory whatever the placement
    graph: Mapping[str, int]  # compute buffer by device id, of the placement that was sized
    overhead: Mapping[str, int]  # library and process context by device id


@dataclass(frozen=True, slots=True)
class Policy:
    """What the caller of the load wants."""

    n_gpu: int = -1  # layers on GPUs; -1: as many as fit
    backoff: float = 0.0  # share of each GPU's free memory not to be counted on


@dataclass(frozen=True, slots=True)
class History:
    """A load up to the report that `next_step` judges."""

    name: str  # of the model, for messages
    round: Round
    tried: tuple[Placement, ...]  # in this round, the latest last
    devices: tuple[Device, ...]  # free bytes as they were before this load took any
    policy: Policy
    others: Mapping[str, int]  # bytes that other models hold, by device id: what eviction could win
    other_names: tuple[tuple[str, int], ...] = ()  # (name, bytes) of those models, for advice


@dataclass(frozen=True, slots=True)
class Try:
    """Ask the runner again, with this placement."""

    placement: Placement
    policy: Policy
    reason: str


@dataclass(frozen=True, slots=True)
class Accept:
    """Stable, and the memory suffices."""

    placement: Placement
    reason: str


@dataclass(frozen=True, slots=True)
class Evict:
    """Other models must leave `shortage_bytes` of `device` first."""

    device: str
    shortage_bytes: int
    reason: str


@dataclass(frozen=True, slots=True)
class Refuse:
    """It cannot work."""

    message: str
    mend: str


Step = Try | Accept | Evict | Refuse


def costs_of(report: MemoryReport) -> Costs:
    """The costs that a report tells."""
    layers = [0] * (report.n_layer + 1)
    for device in report.devices:
        for items in (device.weights, device.cache):
            for index, item in enumerate(items[: len(layers)]):
                layers[index] += item_bytes(item)
    return Costs(
        layers=tuple(layers),
        input_bytes=item_bytes(report.input_weights),
        graph={device.id: item_bytes(device.graph) for device in report.devices},
        overhead={device.id: item_bytes(device.overhead) for device in report.devices},
    )


def layout(costs: Costs, devices: Sequence[Device], policy: Policy) -> Placement:
    """Every layer on a device: the last ones on GPUs, as few GPUs as suffice, the rest on the CPU.

    A model never mixes libraries: the library that takes more layers wins, the first at a tie.  If not all
    layers fit, the output layer stays with the CPU, since a repeating layer gains more per byte.
    """
    n_total = len(costs.layers)
    best: dict[str, tuple[int, ...]] = {}
    for gpus in _gpus_by_library(devices):
        placed = _fill(costs, gpus, policy)
        if _n_placed(placed) > _n_placed(best):
            best = placed
    taken = {layer for layers in best.values() for layer in layers}
    on_cpu = tuple(layer for layer in range(n_total) if layer not in taken)
    placement = tuple(LayerPlacement(device, layers) for device, layers in best.items() if layers)
    return (*placement, LayerPlacement(CPU, on_cpu)) if on_cpu else placement


def _gpus_by_library(devices: Sequence[Device]) -> list[list[Device]]:
    gpus = [device for device in devices if device.id != CPU and device.is_usable]
    gpus.sort(key=lambda gpu: (gpu.is_integrated, -gpu.free_bytes))
    libraries = dict.fromkeys(gpu.library for gpu in gpus)
    return [[gpu for gpu in gpus if gpu.library == library] for library in libraries]


def _n_placed(placed: Mapping[str, tuple[int, ...]]) -> int:
    return sum(map(len, placed.values()))


def _fill(costs: Costs, gpus: Sequence[Device], policy: Policy) -> dict[str, tuple[int, ...]]:
    n_total = len(costs.layers)
    n_wanted = n_total if policy.n_gpu < 0 else min(policy.n_gpu, n_total)
    last_used = max((i for i, gpu in enumerate(gpus) if costs.graph.get(gpu.id, 0)), default=0)
    usable = [_usable_bytes(gpu, costs, policy) for gpu in gpus]
    if n_wanted == n_total:
        for n_gpus in range(last_used + 1, len(gpus) + 1):
            placed = _greedy(costs.layers, range(n_total), gpus[:n_gpus], usable)
            if _n_placed(placed) == n_total:
                return placed
    repeating = range(max(0, n_total - 1 - n_wanted), n_total - 1)
    best: dict[str, tuple[int, ...]] = {}
    for n_gpus in range(last_used + 1, len(gpus) + 1):
        placed = _greedy(costs.layers, repeating, gpus[:n_gpus], usable)
        if _n_placed(placed) > _n_placed(best):
            best = placed
        if _n_placed(best) == len(repeating):
            break
    return best


def _usable_bytes(gpu: Device, costs: Costs, policy: Policy) -> int:
    kept = GPU_RESERVE_BYTES + costs.overhead.get(gpu.id, 0) + costs.graph.get(gpu.id, 0)
    return max(0, int(gpu.free_bytes * (1 - policy.backoff)) - kept)


def _greedy(
    sizes: Sequence[int], wanted: range, gpus: Sequence[Device], usable: Sequence[int]
) -> dict[str, tuple[int, ...]]:
    """From the last layer down, from the last GPU up: the output sits on the smallest GPU used."""
    placed: dict[str, tuple[int, ...]] = {}
    left = list(reversed(wanted))
    for index in reversed(range(len(gpus))):
        sums = accumulate(sizes[layer] for layer in left)
        n_fit = sum(total <= usable[index] for total in sums)
        placed[gpus[index].id] = tuple(reversed(left[:n_fit]))
        left = left[n_fit:]
    return placed


def offloaded(placement: Placement) -> frozenset[tuple[str, tuple[int, ...]]]:
    """What makes two placements the same: the layers that are not on the CPU."""
    return frozenset((part.device, part.layers) for part in placement if part.device != CPU and part.layers)


def n_offloaded(placement: Placement) -> int:
    """How many layers are on GPUs."""
    return sum(len(layers) for _, layers in offloaded(placement))


def next_step(history: History, report: MemoryReport) -> Step:
    """What follows the runner's latest answer.  `report` answers for `history.tried[-1]`."""
    if report.failure:
        return _after_failure(history, report)
    costs = costs_of(report)
    current = history.tried[-1]
    wanted = layout(costs, history.devices, history.policy)
    is_new = offloaded(wanted) not in set(map(offloaded, history.tried))
    is_first = len(history.tried) == 1 and history.round is Round.FIT
    if is_new and (is_first or n_offloaded(wanted) <= n_offloaded(current)):
        return Try(wanted, history.policy, f"{n_offloaded(wanted)} of {len(costs.layers)} layers on GPUs")
    return _judge(history, report, costs, current if offloaded(current) else _all_on_cpu(costs))


def _all_on_cpu(costs: Costs) -> Placement:
    return (LayerPlacement(CPU, tuple(range(len(costs.layers)))),)


def _after_failure(history: History, report: MemoryReport) -> Step:
    """An allocation failed: count on less of the GPUs, unless nothing is left there to move away."""
    costs, current = costs_of(report), history.tried[-1]
    tried = set(map(offloaded, history.tried))
    policy = history.policy
    while offloaded(current) and policy.n_gpu < 0 and policy.backoff < 1:
        policy = replace(policy, backoff=round(policy.backoff + BACKOFF_STEP, 3))
        wanted = layout(costs, history.devices, policy)
        if offloaded(wanted) not in tried:
            return Try(wanted, policy, f"{report.failure}; counting on {1 - policy.backoff:.0%} of the GPUs")
    need = host_need_bytes(report)
    if sum(history.others.values()) > 0:
        device = current[0].device if offloaded(current) else CPU
        return Evict(device, max(1, min(need, history.others.get(device, 0))), report.failure)
    return Refuse(
        f"{history.name} at n_ctx {report.n_ctx} cannot be allocated: {report.failure} "
        f"({needs_text(history, report)})",
        _mend(history, report, shortage_bytes=max(1, need - _free_bytes(history.devices, CPU))),
    )


def _judge(history: History, report: MemoryReport, costs: Costs, placement: Placement) -> Step:
    """The placement is stable: does host memory hold its part, and would eviction put more on GPUs?"""
    need, free = host_need_bytes(report), _free_bytes(history.devices, CPU)
    shortage = need - free
    what = needs_text(history, report)
    if shortage > 0 and history.others.get(CPU, 0) >= shortage:
        return Evict(CPU, shortage, what)
    if shortage > 0:
        return Refuse(what, _mend(history, report, shortage))
    if history.round is Round.FIT and history.policy.n_gpu < 0:
        return _for_more_on_gpus(history, costs, placement, what) or Accept(placement, what)
    return Accept(placement, what)


def _for_more_on_gpus(history: History, costs: Costs, placement: Placement, what: str) -> Evict | None:
    """Eviction, if other models are what keeps layers off the GPUs."""
    roomier = [_with_room(device, history.others) for device in history.devices]
    alone = layout(costs, roomier, history.policy)
    # the same search with the room there is: what it lacks of `alone`, others take
    n_now = max(n_offloaded(placement), n_offloaded(layout(costs, history.devices, history.policy)))
    if n_offloaded(alone) <= n_now:
        return None
    missing = {layer for _, layers in offloaded(alone) for layer in layers}
    missing -= {layer for _, layers in offloaded(placement) for layer in layers}
    wanted_bytes = sum(costs.layers[layer] for layer in missing)
    held = {device: history.others.get(device, 0) for device, _ in offloaded(alone)}
    device = max(sorted(held), key=held.__getitem__)
    if not held[device]:
        return None
    return Evict(device, max(1, min(wanted_bytes, held[device])), f"{what}, more on GPUs")


def _with_room(device: Device, others: Mapping[str, int]) -> Device:
    free = min(device.total_bytes, device.free_bytes + others.get(device.id, 0))
    return msgspec.structs.replace(device, free_bytes=free)


def host_need_bytes(report: MemoryReport) -> int:
    """Host memory the placement takes.  Mapped weights count in full: each token reads them all."""
    need = item_bytes(report.input_weights)
    for device in report.devices:
        if device.id == CPU:
            need += total_bytes(_items(device.weights, device.cache)) + item_bytes(device.graph)
            need += item_bytes(device.overhead)
    return need


def _items(*lists: tuple[MemoryItem, ...]) -> tuple[MemoryItem, ...]:
    return tuple(item for items in lists for item in items)


def _free_bytes(devices: Sequence[Device], device_id: str) -> int:
    return next((device.free_bytes for device in devices if device.id == device_id), 0)


def needs_text(history: History, report: MemoryReport) -> str:
    """The numbers of a load in a sentence."""
    free = _free_bytes(history.devices, CPU)
    text = f"{history.name} at n_ctx {report.n_ctx} needs {size_text(host_need_bytes(report))}, "
    text += f"{CPU} has {size_text(free)} free"
    for device in report.devices:
        own = total_bytes(_items(device.weights, device.cache)) + item_bytes(device.graph)
        if device.id != CPU and own:
            text += f"; {size_text(own + item_bytes(device.overhead))} of "
            text += f"{size_text(_free_bytes(history.devices, device.id))} on {device.name or device.id}"
    return text


def _mend(history: History, report: MemoryReport, shortage_bytes: int) -> str:
    """What would help: a context whose cache fits, other models unloaded, a smaller file."""
    advice: list[str] = []
    cache = sum(total_bytes(device.cache) for device in report.devices if device.id == CPU)
    if cache > shortage_bytes:
        # the cache is the part that falls in proportion to the context; the rest is left as it is
        n_ctx = int(report.n_ctx * (cache - shortage_bytes) / cache) // N_CTX_STEP * N_CTX_STEP
        if n_ctx >= N_CTX_LEAST:
            advice.append(f"ask for n_ctx {n_ctx}")
    advice += [f"unload {name} ({size_text(size)})" for name, size in history.other_names]
    advice.append("use a smaller quantisation" if report.n_parallel <= 1 else "lower OLLAMA_NUM_PARALLEL")
    return ", or ".join(advice)
