"""What a model takes of its devices: contexts, weights that cannot stay mapped, caches, compute buffers.

All of it is taken at once, before anything is read, and nothing is taken afterwards.  What the load alone
needs is given back after it.
"""

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from typing import NamedTuple

import numpy as np

from actors.runner.gguf.reader import GGUFFile
from actors.runner.memory import GRAPH, STAGING, STREAM, Attempt, is_overhead
from actors.runner.progress import Tell
from actors.runner.reading import Wanted
from actors.runner.staging import STAGING_BYTES
from actors.runner.streaming import N_SLOTS, WeightStream
from actors.runner.weights import Block
from kernels.backend import Backend
from kernels.memory import Buffer, Bytes, HostMemory, Memory, PinError, host_array
from kernels.plan import Plan

log = logging.getLogger(__name__)


class Need(NamedTuple):
    """One allocation to be made; `name` tells those of a kind apart."""

    device: str
    label: str
    name: str
    n_bytes: int


def needs_of(
    plans: Sequence[Plan], blocks: Sequence[Block], streamed: Sequence[Block], host: str
) -> Iterator[Need]:
    """Everything a model allocates: weights, caches, the largest compute buffers, staging, slots."""
    for block in blocks:
        if not block.is_mapped:
            yield Need(block.device, block.label, block.label, block.n_bytes)
    biggest = plans[-1]
    for tensor in biggest.program.states.values():
        yield Need(biggest.homes[tensor], f"cache.{tensor.layer}", tensor.name, tensor.n_bytes({}))
    for device in biggest.graph_bytes:
        n_bytes = max(plan.graph_bytes[device] for plan in plans)
        if n_bytes:
            yield Need(device, GRAPH, GRAPH, n_bytes)
    yield Need(host, STAGING, STAGING, STAGING_BYTES)
    for slot, block in enumerate(streamed[:N_SLOTS]):
        yield Need(block.device, STREAM, f"{STREAM}.{slot}", max(each.n_bytes for each in streamed))


class Allocation:
    """The memory of one model, taken by `take` and given back by `free`."""

    def __init__(
        self,
        plans: Sequence[Plan],
        blocks: Sequence[Block],
        streamed: Sequence[Block],
        backends: Mapping[str, Backend],
        host: str,
    ) -> None:
        """blocks: weights that stay where they are; streamed: those that come to a device again and again."""
        self._needs = list(needs_of(plans, blocks, streamed, host))
        self._ops = plans[-1].program.ops
        self._blocks = blocks
        self._streamed_blocks = streamed
        self._backends = backends
        self._host = host
        self._undo = ExitStack()
        self._staged = ExitStack()
        self._streamed = ExitStack()
        self._buffers: dict[tuple[str, str], Buffer] = {}  # by device and name

    def take(self, attempt: Attempt, tell: Tell) -> None:
        """Everything, noted in `attempt`.

        OutOfMemory when a device refuses.  After it, and after whatever `tell` raises, `free` is to follow.
        """
        total_bytes = sum(need.n_bytes for need in self._needs)
        done_bytes = 0
        for device in dict.fromkeys(need.device for need in self._needs):
            self._undo.callback(self._backends[device].close)
            self._backends[device].open()
        self._undo.callback(self._staged.close)
        self._undo.callback(self._streamed.close)
        for need in self._needs:
            tell("allocating", done_bytes, total_bytes)
            self._allocate(need, attempt)
            done_bytes += need.n_bytes
        self._pin()

    def free_staging(self) -> None:
        """Give back what only a load needs, and streaming."""
        self._streamed.close()
        self._staged.close()
        self._needs = [need for need in self._needs if need.label not in (STREAM, STAGING)]

    def free(self) -> None:
        """Give everything back, the contexts last."""
        self._buffers = {}
        self._undo.close()

    def stream(self, file: GGUFFile) -> WeightStream:
        """What brings the streamed layers; ends with `free_staging`."""
        device = self._backends[self._streamed_blocks[0].device]
        slots = [self._memory(need) for need in self._needs if need.label == STREAM]
        names = [tensor.name for block in self._streamed_blocks for tensor in block.tensors]
        sources = {name: np.frombuffer(file.tensor_bytes(name), np.uint8) for name in names}
        stream = WeightStream(device, self._streamed_blocks, slots, sources, self.staging, self._ops)
        self._streamed.callback(stream.close)
        return stream

    @property
    def staging(self) -> Bytes:
        """What the readers read into, [STAGING_BYTES], until `free_staging`."""
        return host_array(self._buffers[self._host, STAGING].memory)

    def overhead_bytes(self, device: str) -> int:
        """What is planned of a device that is neither weights nor cache nor compute buffer."""
        backend = self._backends[device]
        overhead = (n for n in self._needs if n.device == device and is_overhead(n.label))
        return sum(backend.round_up(need.n_bytes) for need in overhead)

    @property
    def graphs(self) -> dict[str, Memory]:
        """The compute buffer of each device that has one."""
        return {device: b.memory for (device, name), b in self._buffers.items() if name == GRAPH}

    @property
    def states(self) -> dict[str, Memory]:
        """The memory of each state by its name."""
        return {need.name: self._memory(need) for need in self._needs if need.label.startswith("cache.")}

    def weights(self, file: GGUFFile) -> dict[tuple[str, str], Memory]:
        """Where each weight is used, by name and device."""
        found: dict[tuple[str, str], Memory] = {}
        for block in self._blocks:
            for tensor, offset in zip(block.tensors, block.offsets, strict=True):
                if block.is_mapped:
                    raw = np.frombuffer(file.tensor_bytes(tensor.name), np.uint8)
                    found[tensor.name, block.device] = HostMemory(raw)
                else:
                    whole = self._buffers[block.device, block.label].memory
                    found[tensor.name, block.device] = whole.part(offset, tensor.n_bytes({}))
        return found

    def wanted(self, file: GGUFFile) -> list[Wanted]:
        """What has to be read of the file, and where it goes: a tied embedding to two places."""
        memory = self.weights(file)
        targets: dict[str, list[Memory]] = {}
        mapped: set[str] = set()
        for block in self._blocks:
            for tensor in block.tensors:
                there = targets.setdefault(tensor.name, [])
                if block.is_mapped:
                    mapped.add(tensor.name)
                else:
                    there.append(memory[tensor.name, block.device])
        return [_wanted(file, name, targets[name], is_mapped=name in mapped) for name in targets]

    def _allocate(self, need: Need, attempt: Attempt) -> None:
        backend = self._backends[need.device]
        before_bytes = backend.allocations.given_bytes
        buffer = backend.allocate(need.n_bytes, need.label)
        {STAGING: self._staged, STREAM: self._streamed}.get(need.label, self._undo).callback(buffer.free)
        self._buffers[need.device, need.name] = buffer
        attempt.measure(need.device, need.label, backend.allocations.given_bytes - before_bytes)

    def _pin(self) -> None:
        """Let devices copy from staging by themselves, where there is one and the system lets it."""
        device = next((backend for backend in self._backends.values() if not backend.is_host), None)
        if device is None:
            return
        try:
            device.pin(self.staging)
        except PinError as exc:
            log.warning("%s loads slowly, through memory that is not pinned: %s", device.name, exc)
            return
        self._staged.callback(device.unpin, self.staging)

    def _memory(self, need: Need) -> Memory:
        return self._buffers[need.device, need.name].memory


def _wanted(file: GGUFFile, name: str, targets: Sequence[Memory], *, is_mapped: bool) -> Wanted:
    info = file.tensors[name]
    return Wanted(info.offset, info.n_bytes, tuple(targets), file.tensor_bytes(name) if is_mapped else None)
