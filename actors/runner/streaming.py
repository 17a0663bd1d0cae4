"""Layers of the host that a device computes: their weights come to it in turn, the next while one computes.

The device has two slots, layers use them alternately.  `take` is what a batch calls before a layer: it
returns when the weights are there, and has those of the next layer begin to come into the other slot, once
what was computed from there is over.  After the last layer the first one comes again, for the next batch.

Of a layer with experts all of them come ahead like this where a batch is large enough to use nearly all.  For
a smaller one only the other weights do; `choose` reads from the device which experts its router named, and
brings these, each to where it would be among all.  Between them lies whatever the slot had before, which
nobody reads: a product reads of a weight the experts that its ids name, those of the rows that a batch has
and no others, and these ids are what was read.
"""

import threading
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from itertools import chain, cycle
from typing import NamedTuple

import numpy as np

from actors.runner.staging import CHUNK_BYTES, N_READERS, StagingBuffer, rings_of
from actors.runner.weights import Block
from kernels.backend import Backend, Segment
from kernels.memory import Bytes, Memory, Pending
from kernels.ops.experts import ExpertMatmul, Route
from kernels.ops.op import Op
from kernels.tensor import Bounds, value_of

N_SLOTS = 2


class Chunk(NamedTuple):
    """Bytes of a weight [at most CHUNK_BYTES] in the mapped file, and where they go."""

    source: Bytes
    target: Memory


class _Layer(NamedTuple):
    """What is copied for a layer."""

    slot: int
    route: Route | None  # among its experts
    shared: Sequence[Chunk]  # what all rows need
    experts: Sequence[Sequence[Chunk]]  # of each expert, in all weights

    @property
    def whole(self) -> Iterator[Chunk]:
        """All of it."""
        return chain(self.shared, *self.experts)

    @property
    def expert_bytes(self) -> int:
        """Of one expert; none where there are none."""
        return n_bytes_of(self.experts[0]) if self.experts else 0


class _Held(NamedTuple):
    """The layer that a slot has, or gets; is_whole: with all its experts."""

    layer: int
    arrival: Future[None]
    is_whole: bool


class WeightStream:
    """The streamed layers of one device.  One thread takes; `close` before the memory goes.

    whole_from: rows of a batch from which on all experts of a layer come ahead.  Satisfies
    `kernels.plan.Supply`.
    """

    def __init__(
        self,
        device: Backend,
        blocks: Sequence[Block],
        slots: Sequence[Memory],
        sources: Mapping[str, Bytes],
        staging: Bytes,
        ops: Iterable[Op] = (),
    ) -> None:
        """blocks: of each layer, in order; slots: as large as the largest; sources: each weight by its name.

        staging [STAGING_BYTES]: host memory to copy through.  ops: of the program, which tell of experts.
        """
        self._device = device
        self._order = [block.layer for block in blocks]
        self.weights: dict[tuple[str, str], Memory] = {}  # where ops find them, by name and device
        self.whole_from = 0
        ops = list(ops)
        routes = {op.layer: op for op in ops if isinstance(op, Route)}
        expert_bytes = {op.weight.name: op.expert_bytes for op in ops if isinstance(op, ExpertMatmul)}
        self._layers: dict[int, _Layer] = {}
        for index, block in enumerate(blocks):
            slot = index % N_SLOTS
            parts = {
                tensor.name: slots[slot].part(at, tensor.n_bytes({}))
                for tensor, at in zip(block.tensors, block.offsets, strict=True)
            }
            self.weights |= {(name, block.device): part for name, part in parts.items()}
            shared, experts = _copies(parts, sources, expert_bytes)
            self._layers[block.layer] = _Layer(slot, routes.get(block.layer), shared, experts)
        self._rings = rings_of(staging)
        self._held: dict[int, _Held] = {}  # by slot
        self.n_brought = 0  # layers
        self.brought_bytes = 0
        self._is_closing = threading.Event()
        self._bringer = ThreadPoolExecutor(1, "streaming")  # one layer after the other
        self._fillers = ThreadPoolExecutor(N_READERS, "filler")

    @property
    def layers(self) -> Sequence[int]:
        """Those that are streamed, in order."""
        return self._order

    @property
    def has_experts(self) -> bool:
        """Whether any of them chooses."""
        return any(layer.route is not None for layer in self._layers.values())

    def route_of(self, layer: int) -> Route | None:
        """What chooses among the experts of a layer; None where it has none."""
        return self._layers[layer].route

    def sizes(self, layer: int) -> tuple[int, int]:
        """Bytes of a layer, and of one of its experts."""
        found = self._layers[layer]
        return n_bytes_of(found.whole), found.expert_bytes

    def before(self, layer: int) -> Segment:
        """See `kernels.plan.Supply`."""
        return _Hook(partial(self.take, layer))

    def after(self, route: Route, ids: Memory) -> Segment:
        """See `kernels.plan.Supply`."""
        return _Hook(partial(self.choose, route, ids))

    def take(self, layer: int, values: Bounds) -> None:
        """Have a layer's weights in their slot until the next `take`; whatever broke a copy goes up.

        values: sizes of the batch, which say whether experts are among them, or `choose` brings these.
        """
        index = self._order.index(layer)
        following = self._order[(index + 1) % len(self._order)]
        computed = self._device.mark()
        self._ask(layer, computed, values)
        slot = self._layers[layer].slot
        if self._layers[following].slot != slot:
            self._ask(following, computed, values)
        self._held[slot].arrival.result()

    def choose(self, route: Route, ids: Memory, values: Bounds) -> None:
        """Have also the experts of the layer that was taken which its route named, unless all are there.

        This waits for what the device was given so far, of which the route is the last; so that nothing any
        more reads the slot that they go to.
        """
        layer = self._layers[route.layer]
        if self._held[layer.slot].is_whole:
            return
        chosen = np.empty(value_of(route.ids.shape[0], values) * route.n_used, np.int32)
        ids.download(chosen.view(np.uint8))
        chunks = list(chain(*(layer.experts[int(expert)] for expert in np.unique(chosen))))
        self._bringer.submit(self._bring, chunks).result()

    def bring(self, layer: int) -> None:
        """Copy a layer's weights, for once and whatever its slot holds: to be timed, and not counted."""
        self._held.pop(self._layers[layer].slot, None)
        self._device.mark().wait()
        self._copy(list(self._layers[layer].whole))

    def close(self) -> None:
        """Returns when nothing is under way; what is, ends with the chunks that it is at."""
        self._is_closing.set()
        self._bringer.shutdown(cancel_futures=True)
        self._fillers.shutdown()

    def _ask(self, layer: int, after: Pending, values: Bounds) -> None:
        wanted = self._layers[layer]
        route = wanted.route
        is_whole = route is None or value_of(route.ids.shape[0], values) >= self.whole_from
        held = self._held.get(wanted.slot)
        if held is None or held.layer != layer:
            chunks = list(wanted.whole if is_whole else wanted.shared)
            arrival = self._bringer.submit(self._begin, chunks, after)
        elif is_whole and not held.is_whole:  # it came for a smaller batch
            arrival = self._bringer.submit(self._complete, held.arrival, wanted.experts, after)
        else:
            return
        self._held[wanted.slot] = _Held(layer, arrival, is_whole)

    def _begin(self, chunks: Sequence[Chunk], after: Pending) -> None:
        after.wait()
        self._bring(chunks)
        self.n_brought += 1

    def _complete(self, arrival: Future[None], experts: Sequence[Sequence[Chunk]], after: Pending) -> None:
        arrival.result()  # over, as one thread brings everything; what broke it is not to be lost
        after.wait()
        self._bring(list(chain(*experts)))

    def _bring(self, chunks: Sequence[Chunk]) -> None:
        self._copy(chunks)
        self.brought_bytes += n_bytes_of(chunks)

    def _copy(self, chunks: Sequence[Chunk]) -> None:
        list(self._fillers.map(self._fill, [chunks[i::N_READERS] for i in range(N_READERS)], self._rings))

    def _fill(self, chunks: Sequence[Chunk], ring: Sequence[StagingBuffer]) -> None:
        for buffer, chunk in zip(cycle(ring), chunks, strict=False):
            if self._is_closing.is_set():
                break
            buffer.wait()
            data = buffer.data[: chunk.source.nbytes]
            data[:] = chunk.source
            buffer.copies = (chunk.target.start_upload(data),)
        for buffer in ring:
            buffer.wait()


class _Hook:
    """Satisfies `kernels.backend.Segment`: something done once for each batch."""

    def __init__(self, call: Callable[[Bounds], None]) -> None:
        self._call = call

    def run(self, values: Bounds) -> None:
        """Do it."""
        self._call(values)


def n_bytes_of(chunks: Iterable[Chunk]) -> int:
    """Of all of them."""
    return sum(chunk.source.nbytes for chunk in chunks)


def _copies(
    parts: Mapping[str, Memory], sources: Mapping[str, Bytes], expert_bytes: Mapping[str, int]
) -> tuple[Sequence[Chunk], Sequence[Sequence[Chunk]]]:
    """For the weights at these places: what all rows need, and of each expert; expert_bytes: by weight."""
    shared: list[Chunk] = []
    experts: defaultdict[int, list[Chunk]] = defaultdict(list)
    for name, part in parts.items():
        n_bytes = expert_bytes.get(name)
        if n_bytes is None:
            shared += _chunks(sources[name], part)
            continue
        for expert, start in enumerate(range(0, part.n_bytes, n_bytes)):
            experts[expert] += _chunks(sources[name][start : start + n_bytes], part.part(start, n_bytes))
    return shared, [experts[expert] for expert in range(len(experts))]


def _chunks(source: Bytes, target: Memory) -> Iterator[Chunk]:
    for start in range(0, source.nbytes, CHUNK_BYTES):
        piece = source[start : start + CHUNK_BYTES]
        yield Chunk(piece, target.part(start, piece.nbytes))
