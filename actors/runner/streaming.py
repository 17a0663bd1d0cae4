"""Layers of the host that a device computes: their weights come to it in turn, the next while one computes.

The device has two slots, layers use them alternately.  `take` is what a batch calls before a layer: it
returns when the weights are there, and has those of the next layer begin to come into the other slot, once
what was computed from there is over.  After the last layer the first one comes again, for the next batch.
"""

import threading
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import cycle
from typing import NamedTuple

from actors.runner.staging import CHUNK_BYTES, N_READERS, StagingBuffer, rings_of
from actors.runner.weights import Block
from kernels.backend import Backend, Segment
from kernels.memory import Bytes, Memory, Pending
from kernels.tensor import Bounds

N_SLOTS = 2


class Chunk(NamedTuple):
    """Bytes of a weight [at most CHUNK_BYTES] in the mapped file, and where they go."""

    source: Bytes
    target: Memory


class _Held(NamedTuple):
    """The layer that a slot has, or gets."""

    layer: int
    arrival: Future[None]


class WeightStream:
    """The streamed layers of one device.  One thread takes; `close` before the memory goes."""

    def __init__(
        self,
        device: Backend,
        blocks: Sequence[Block],
        slots: Sequence[Memory],
        sources: Mapping[str, Bytes],
        staging: Bytes,
    ) -> None:
        """blocks: of each layer, in order; slots: as large as the largest; sources: each weight by its name.

        staging [STAGING_BYTES]: host memory to copy through.
        """
        self._device = device
        self._order = [block.layer for block in blocks]
        self._slot_of = {block.layer: index % N_SLOTS for index, block in enumerate(blocks)}
        self._chunks: dict[int, list[Chunk]] = {}
        self.weights: dict[tuple[str, str], Memory] = {}  # where ops find them, by name and device
        for block in blocks:
            slot = slots[self._slot_of[block.layer]]
            parts = [
                (t, slot.part(at, t.n_bytes({}))) for t, at in zip(block.tensors, block.offsets, strict=True)
            ]
            self.weights |= {(t.name, block.device): part for t, part in parts}
            self._chunks[block.layer] = [c for t, part in parts for c in _chunks(sources[t.name], part)]
        self._rings = rings_of(staging)
        self._held: dict[int, _Held] = {}  # by slot
        self.n_brought = 0
        self._is_closing = threading.Event()
        self._bringer = ThreadPoolExecutor(1, "streaming")  # one layer after the other
        self._fillers = ThreadPoolExecutor(N_READERS, "filler")

    @property
    def layers(self) -> Sequence[int]:
        """Those that are streamed, in order."""
        return self._order

    def arrivals(self) -> Mapping[int, Segment]:
        """What a plan runs before each layer."""
        return {layer: _Arrival(self, layer) for layer in self._order}

    def take(self, layer: int) -> None:
        """Have a layer's weights in their slot until the next `take`; whatever broke a copy goes up."""
        index = self._order.index(layer)
        following = self._order[(index + 1) % len(self._order)]
        computed = self._device.mark()
        self._ask(layer, computed)
        if self._slot_of[following] != self._slot_of[layer]:
            self._ask(following, computed)
        self._held[self._slot_of[layer]].arrival.result()

    def bring(self, layer: int) -> None:
        """Copy a layer's weights, for once and whatever its slot holds: to be timed."""
        self._held.pop(self._slot_of[layer], None)
        self._bring(layer, self._device.mark())

    def close(self) -> None:
        """Returns when nothing is under way; what is, ends with the chunks that it is at."""
        self._is_closing.set()
        self._bringer.shutdown(cancel_futures=True)
        self._fillers.shutdown()

    def _ask(self, layer: int, after: Pending) -> None:
        slot = self._slot_of[layer]
        held = self._held.get(slot)
        if held is None or held.layer != layer:
            self._held[slot] = _Held(layer, self._bringer.submit(self._bring, layer, after))

    def _bring(self, layer: int, after: Pending) -> None:
        after.wait()
        chunks = self._chunks[layer]
        list(self._fillers.map(self._fill, [chunks[i::N_READERS] for i in range(N_READERS)], self._rings))
        self.n_brought += 1

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


class _Arrival:
    """Satisfies `kernels.backend.Segment`."""

    def __init__(self, stream: WeightStream, layer: int) -> None:
        self._stream = stream
        self._layer = layer

    def run(self, values: Bounds) -> None:
        """Once for each batch, before the layer's ops."""
        del values
        self._stream.take(self._layer)


def _chunks(source: Bytes, target: Memory) -> Iterator[Chunk]:
    for start in range(0, source.nbytes, CHUNK_BYTES):
        piece = source[start : start + CHUNK_BYTES]
        yield Chunk(piece, target.part(start, piece.nbytes))
