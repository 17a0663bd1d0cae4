"""Where every layer lives: pure decisions over plain values; free bytes come in, nothing is awaited.

As few devices as suffice, discrete ones before integrated ones, each filled evenly; devices of different
libraries are never mixed.  The output layer, and what a runner counts with it (the tensors of a vision
encoder), goes to a device only when every layer does, since a repeating layer gains more per byte; it then
sits on the last device.  `packing` says which layers go into which device's room.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from actors.protocol import Device, LayerPlacement, MemoryReport
from actors.scheduler.packing import Bins, Packed, n_packed, pack, pack_all, pack_beyond
from actors.scheduler.sizes import CPU, MIB, item_bytes

GPU_RESERVE_BYTES: Final = (
    457 * MIB
)  # kept free on a GPU: what drivers and displays take between two readings

Placement = tuple[LayerPlacement, ...]
Limits = Mapping[tuple[str, bool], int]  # by (device id, whether the output layer is on a device)
NO_LIMITS: Final[Limits] = {}


@dataclass(frozen=True, slots=True)
class Costs:
    """What a model takes, by part.  Bytes."""

    layers: tuple[int, ...]  # [n_layer + 1] weights and cache of each layer; the output layer is last
    weights: tuple[int, ...]  # [n_layer + 1] of which weights
    input_bytes: int  # host memory whatever the placement
    graph: Mapping[str, int]  # compute buffer by device id, of the placement that was sized
    overhead: Mapping[str, int]  # library and process context by device id


@dataclass(frozen=True, slots=True)
class Policy:
    """What the caller of the load wants."""

    n_gpu: int = -1  # layers on GPUs; -1: as many as fit and are worth it
    is_spread: bool = False  # over all GPUs, not over as few as suffice
    gpu_overhead_bytes: int = 0  # kept free on each GPU beyond the reserve
    is_forced: bool = False  # n_gpu layers go to GPUs even where they seem not to fit: the allocation tells


def costs_of(report: MemoryReport) -> Costs:
    """The costs that a report tells."""
    layers, weights = [0] * (report.n_layer + 1), [0] * (report.n_layer + 1)
    for device in report.devices:
        for index, item in enumerate(device.weights[: len(layers)]):
            weights[index] += item_bytes(item)
            layers[index] += item_bytes(item)
        for index, item in enumerate(device.cache[: len(layers)]):
            layers[index] += item_bytes(item)
    return Costs(
        layers=tuple(layers),
        weights=tuple(weights),
        input_bytes=item_bytes(report.input_weights),
        graph={device.id: item_bytes(device.graph) for device in report.devices},
        overhead={device.id: item_bytes(device.overhead) for device in report.devices},
    )


def layout(costs: Costs, devices: Sequence[Device], policy: Policy, limits: Limits = NO_LIMITS) -> Placement:
    """Every layer on a device; the rest on the CPU.

    `limits`: bytes of layers that a device is not to be given more than, learnt from attempts.
    The library that takes more layers wins, the first at a tie.
    """
    best: Placement = ()
    for gpus in _gpus_by_library(devices):
        placed = _fill(costs, gpus, policy, limits)
        if n_offloaded(placed) > n_offloaded(best):
            best = placed
    taken = {layer for part in best for layer in part.layers}
    on_cpu = tuple(layer for layer in range(len(costs.layers)) if layer not in taken)
    return (*best, LayerPlacement(CPU, on_cpu)) if on_cpu else best


def all_on_cpu(n_layer: int) -> Placement:
    """The placement without any device."""
    return (LayerPlacement(CPU, tuple(range(n_layer + 1))),)


def offloaded(placement: Placement) -> frozenset[tuple[str, tuple[int, ...]]]:
    """What makes two placements the same: the layers that are not on the CPU."""
    return frozenset((part.device, part.layers) for part in placement if part.device != CPU and part.layers)


def n_offloaded(placement: Placement) -> int:
    """How many layers are on GPUs."""
    return sum(len(part.layers) for part in placement if part.device != CPU)


def host_bytes(costs: Costs, placement: Placement) -> int:
    """Host memory that a placement takes, with the compute buffer and overhead of the one that was sized."""
    on_cpu = sum(costs.layers[layer] for part in placement if part.device == CPU for layer in part.layers)
    return costs.input_bytes + costs.graph.get(CPU, 0) + costs.overhead.get(CPU, 0) + on_cpu


def gpus_of(devices: Iterable[Device]) -> list[Device]:
    """The devices besides the host that layers can be placed on."""
    return [device for device in devices if device.id != CPU and device.is_usable]


def available_bytes(gpu: Device, policy: Policy) -> int:
    """What a model may take of a GPU: free memory without what is to stay free."""
    return max(0, gpu.free_bytes - GPU_RESERVE_BYTES - policy.gpu_overhead_bytes)


def _gpus_by_library(devices: Sequence[Device]) -> list[list[Device]]:
    gpus = gpus_of(devices)
    gpus.sort(key=lambda gpu: (gpu.is_integrated, -gpu.free_bytes))
    libraries = dict.fromkeys(gpu.library for gpu in gpus)
    return [[gpu for gpu in gpus if gpu.library == library] for library in libraries]


def _fill(costs: Costs, gpus: Sequence[Device], policy: Policy, limits: Limits) -> Placement:
    """The layers of one library's GPUs, without the CPU's part."""
    n_total = len(costs.layers)
    n_wanted = n_total if policy.n_gpu < 0 else min(policy.n_gpu, n_total)
    if n_wanted == n_total:
        bins = [_room(gpu, costs, policy, limits, is_whole=True) for gpu in gpus]
        for n_gpus in _counts(gpus, policy):
            classes = _classes(gpus[:n_gpus], bins, policy)
            packed = pack_all(costs.layers, range(n_total), classes)
            if packed is not None:
                return _placement(gpus, packed)
        if policy.is_forced:
            return _placement(gpus, pack_beyond(costs.layers, range(n_total), tuple(bins)))
    return _fill_repeating(costs, gpus, policy, limits, min(n_wanted, n_total - 1))


def _fill_repeating(
    costs: Costs, gpus: Sequence[Device], policy: Policy, limits: Limits, n_wanted: int
) -> Placement:
    """The last n_wanted repeating layers, or as many of them as go in."""
    repeating = range(len(costs.layers) - 1 - n_wanted, len(costs.layers) - 1)
    bins = [_room(gpu, costs, policy, limits, is_whole=False) for gpu in gpus]
    best: Packed = ()
    for n_gpus in _counts(gpus, policy):
        if n_packed(best) < len(repeating):
            packed = pack(costs.layers, repeating, _classes(gpus[:n_gpus], bins, policy))
            best = packed if n_packed(packed) > n_packed(best) else best
    if n_packed(best) < len(repeating) and policy.is_forced:
        best = pack_beyond(costs.layers, repeating, tuple(bins))
    return _placement(gpus, best)


def _counts(gpus: Sequence[Device], policy: Policy) -> range:
    """How many GPUs to try, in this order."""
    return range(len(gpus), len(gpus) + 1) if policy.is_spread else range(1, len(gpus) + 1)


def _room(gpu: Device, costs: Costs, policy: Policy, limits: Limits, *, is_whole: bool) -> int:
    """Bytes of layers that a GPU holds beside its compute buffer and its context."""
    fixed = costs.overhead.get(gpu.id, 0) + costs.graph.get(gpu.id, 0)
    room = max(0, available_bytes(gpu, policy) - fixed)
    return min(room, limits.get((gpu.id, is_whole), room))


def _classes(gpus: Sequence[Device], bins: Sequence[int], policy: Policy) -> tuple[Bins, ...]:
    """Discrete GPUs are filled before integrated ones, unless the caller says how many or all of them."""
    rooms = tuple(bins[: len(gpus)])
    n_discrete = sum(not gpu.is_integrated for gpu in gpus)
    if policy.n_gpu >= 0 or policy.is_spread or n_discrete in (0, len(gpus)):
        return (rooms,)
    return rooms[:n_discrete], rooms[n_discrete:]


def _placement(gpus: Sequence[Device], packed: Packed) -> Placement:
    return tuple(LayerPlacement(gpu.id, layers) for gpu, layers in zip(gpus, packed, strict=False) if layers)
