"""How long a context to take when nobody names one: the longest, up to the trained one, at full speed.

Full speed: every layer that may be on a GPU is on one, beside the cache of all sequences; where a shorter
context makes that possible, it is taken.  If even the shortest does not, a longer one would only push more
layers off, so the shortest is taken.  Without GPUs speed does not depend on it, and memory is the measure.

Cache grows in proportion to the cells of the pool, and a little of the compute buffer to n_ctx, so two
reports tell what lies between them.  A cache that stops growing (a sliding window) lies above that line: the
runner sizes what we find, and its report then is the upper of the two.
"""

from collections.abc import Sequence
from typing import Final

from actors.pool import pool_cells
from actors.protocol import ContextChoice, Device, MemoryReport
from actors.scheduler.layout import (
    Costs,
    Policy,
    all_on_cpu,
    costs_of,
    gpus_of,
    host_bytes,
    layout,
    n_offloaded,
)
from actors.scheduler.needs import free_bytes
from actors.scheduler.sizes import CPU

N_CTX_SHORT: Final = 4096  # what a model gets at least, unless it was trained for less
N_CTX_STEP: Final = 256
N_CTX_SHOWN: Final = 2048  # the shortest that is shown; the others are doublings of it
# Of the host's free memory beside the weights, for one model's cache.  Three models may be loaded there at
# once, and other programs want their part: a quarter each.
HOST_SHARE: Final = 0.25


def short_n_ctx(n_ctx_train: int, wanted: int = 0) -> int:
    """The context that a model gets at least; wanted: what a request names, 0 for none."""
    short = wanted or N_CTX_SHORT
    return min(short, n_ctx_train) if n_ctx_train else short


def longest_n_ctx(low: MemoryReport, high: MemoryReport, devices: Sequence[Device], policy: Policy) -> int:
    """The longest context at full speed from `low` to `high`, reports of one placement; `low`'s if none is.

    A multiple of N_CTX_STEP, or one of the two.
    """
    if is_modest(costs_of(high), devices, policy):
        return high.n_ctx
    first, last = low.n_ctx // N_CTX_STEP, (high.n_ctx - 1) // N_CTX_STEP
    while last > first:
        middle = (first + last + 1) // 2
        if is_modest(costs_at(low, high, middle * N_CTX_STEP), devices, policy):
            first = middle
        else:
            last = middle - 1
    return max(low.n_ctx, first * N_CTX_STEP)


def shorter_n_ctx(n_ctx: int, short: int) -> int:
    """What to try where n_ctx could not be allocated: half way to the short one, and soon that."""
    middle = (n_ctx + short) // 2 // N_CTX_STEP * N_CTX_STEP
    return middle if middle - short >= short // 4 else short


def is_full_speed(costs: Costs, devices: Sequence[Device], policy: Policy) -> bool:
    """Whether all layers that may be on GPUs are, and the host holds its part."""
    placement = layout(costs, devices, policy)
    is_held = host_bytes(costs, placement) <= free_bytes(devices, CPU)
    return is_held and n_offloaded(placement) >= _n_wanted(costs, devices, policy)


def is_modest(costs: Costs, devices: Sequence[Device], policy: Policy) -> bool:
    """Full speed, and without GPUs no more cache than one model's share of the host."""
    cache = sum(costs.layers) - sum(costs.weights)
    rest = host_bytes(costs, all_on_cpu(len(costs.layers) - 1)) - cache
    is_shared = _n_wanted(costs, devices, policy) > 0 or cache <= HOST_SHARE * (
        free_bytes(devices, CPU) - rest
    )
    return is_shared and is_full_speed(costs, devices, policy)


def _n_wanted(costs: Costs, devices: Sequence[Device], policy: Policy) -> int:
    """Layers that may be on GPUs."""
    if not gpus_of(devices):
        return 0
    return len(costs.layers) if policy.n_gpu < 0 else min(policy.n_gpu, len(costs.layers))


def costs_at(low: MemoryReport, high: MemoryReport, n_ctx: int) -> Costs:
    """The costs at a context between two that were sized, for the same placement."""
    one, other = costs_of(low), costs_of(high)
    by_n_ctx = (n_ctx - low.n_ctx, high.n_ctx - low.n_ctx)
    first, middle, last = (pool_cells(n, low.n_parallel) for n in (low.n_ctx, n_ctx, high.n_ctx))
    # where the pool stays as it is, only what is no part of it can grow
    by_cells = (middle - first, last - first) if first < last else by_n_ctx
    devices = {*one.graph, *other.graph, *one.overhead, *other.overhead}
    return Costs(
        layers=tuple(_between(a, b, by_cells) for a, b in zip(one.layers, other.layers, strict=True)),
        weights=one.weights,
        input_bytes=one.input_bytes,
        graph={d: _between(one.graph.get(d, 0), other.graph.get(d, 0), by_n_ctx) for d in devices},
        overhead={d: _between(one.overhead.get(d, 0), other.overhead.get(d, 0), by_n_ctx) for d in devices},
    )


def _between(low: int, high: int, way: tuple[int, int]) -> int:
    """On a line, rounded up where it grows.  way: how far, of how much."""
    return low - (low - high) * way[0] // max(1, way[1])


def shown_n_ctx(n_ctx_train: int, n_ctx: int) -> tuple[int, ...]:
    """The contexts to show for a model: doublings up to the trained one, and the one that is taken."""
    doublings: list[int] = []
    step = N_CTX_SHOWN
    while step < n_ctx_train:
        doublings.append(step)
        step *= 2
    return tuple(sorted({*doublings, n_ctx_train or n_ctx, n_ctx}))


def choice_of(report: MemoryReport, devices: Sequence[Device], policy: Policy, n_ctx: int) -> ContextChoice:
    """The row of one context; `n_ctx` is the one that is taken."""
    costs = costs_of(report)
    return ContextChoice(
        n_ctx=report.n_ctx,
        n_offloaded=n_offloaded(layout(costs, devices, policy)),
        cache_bytes=sum(costs.layers) - sum(costs.weights),
        total_bytes=sum(costs.layers)
        + costs.input_bytes
        + sum(costs.graph.values())
        + sum(costs.overhead.values()),
        is_full_speed=is_full_speed(costs, devices, policy),
        is_chosen=report.n_ctx == n_ctx,
    )
