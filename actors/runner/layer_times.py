"""Layers of a loaded model timed on the host, and on the device that they are streamed to."""

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import NamedTuple

import numpy as np

from actors.runner.crossover import (
    Check,
    Chosen,
    Copied,
    Curve,
    LayerTimes,
    measured,
    shortest_s,
    sizes_of,
)
from actors.runner.streaming import WeightStream
from kernels.backend import Backend, Segment
from kernels.memory import Memory
from kernels.ops.experts import Route
from kernels.plan import Plan
from kernels.tensor import N_OUTPUTS, N_PAGES, N_SEQS, N_SOURCE, N_SOURCE_PAGES, N_TOKENS, Bounds, value_of


class Side(NamedTuple):
    """Where layers are computed, by which plan."""

    plan: Plan
    backend: Backend
    graph: Memory
    weights: Mapping[tuple[str, str], Memory]  # by name and device


def times_of(
    stream: WeightStream, host: Side, device: Side, clock: Callable[[], float], check: Check
) -> list[LayerTimes]:
    """Of the streamed layers without experts, and of those with; the first of each kind is timed."""
    kinds: defaultdict[bool, list[int]] = defaultdict(list)
    for layer in stream.layers:
        kinds[stream.route_of(layer) is not None].append(layer)
    found: list[LayerTimes] = []
    for (layer, *_), n_layer in ((layers, len(layers)) for _, layers in sorted(kinds.items())):
        copied = _copied(stream, layer, clock, check)
        on_host, on_device = (
            _curve(side, layer, clock, check, has_experts=copied.chosen is not None)
            for side in (host, device)
        )
        found.append(LayerTimes(n_layer, on_host, on_device, copied))
    return found


def _copied(stream: WeightStream, layer: int, clock: Callable[[], float], check: Check) -> Copied:
    whole_s = shortest_s(partial(stream.bring, layer), clock, check)
    route = stream.route_of(layer)
    if route is None:
        return Copied(whole_s)
    whole_bytes, expert_bytes = stream.sizes(layer)
    return Copied(whole_s, whole_s * expert_bytes / whole_bytes, Chosen(route.n_expert, route.n_used))


def _curve(side: Side, layer: int, clock: Callable[[], float], check: Check, *, has_experts: bool) -> Curve:
    bounds = side.plan.bounds
    segments = side.plan.bind_layer(layer, side.backend, side.graph, side.weights, partial(_Spread, bounds))
    sizes = sizes_of(bounds[N_TOKENS.name], has_experts=has_experts)
    return measured(partial(_run, segments, side.backend), sizes, clock, check)


def _run(segments: Sequence[Segment], backend: Backend, n_rows: int) -> None:
    """A layer on rows of one sequence, until it is done."""
    rows, ones = (N_TOKENS, N_SOURCE), (N_OUTPUTS, N_SEQS, N_PAGES, N_SOURCE_PAGES)
    values = {symbol.name: n_rows for symbol in rows} | {symbol.name: 1 for symbol in ones}
    for segment in segments:
        segment.run(values)
    backend.mark().wait()


class _Spread:
    """Puts experts by chance where a route left ids: of rows that are alike, all choose the same.

    Satisfies `kernels.backend.Segment`.
    """

    def __init__(self, bounds: Bounds, route: Route, ids: Memory) -> None:
        n_rows, self._n_used = value_of(route.ids.shape[0], bounds), route.n_used
        drawn = np.random.default_rng(1).random((n_rows, route.n_expert), np.float32)
        self._chosen = np.argsort(drawn, axis=1)[:, : route.n_used].astype(np.int32).reshape(-1)
        self._dim = route.ids.shape[0]
        self._ids = ids

    def run(self, values: Bounds) -> None:
        """For as many rows as there are: of each, different experts."""
        n = value_of(self._dim, values) * self._n_used
        self._ids.upload(self._chosen[:n].view(np.uint8))
