"""The memory report of a model: planned beside measured, per device and layer."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from actors.protocol import DeviceMemory, MemoryItem, MemoryReport
from actors.runner.weights import Block
from kernels.backend import Backend
from kernels.plan import Plan

GRAPH = "graph"
STAGING = "staging"  # what weights are copied through
STREAM = "stream"  # where a device has weights of layers that are streamed
# A tokenizer keeps hash maps over the file's strings; measured with the 128k-token vocabulary of llama 3
TOKENIZER_BYTES_PER_TOKEN = 250


@dataclass(frozen=True, slots=True)
class Sizes:
    """What a plan was made for."""

    n_layer: int
    n_ctx: int
    n_cells: int
    n_ctx_train: int
    n_batch: int
    n_parallel: int
    kv_type: str


@dataclass(slots=True)
class Attempt:
    """What an allocation has done so far, by (device, label).

    Labels are `weights.<layer>`, `cache.<layer>` and GRAPH; all others, such as CONTEXT, are overhead.
    """

    measured: dict[tuple[str, str], int] = field(default_factory=dict[tuple[str, str], int])
    failed: set[tuple[str, str]] = field(default_factory=set[tuple[str, str]])
    failure: str = ""
    resident: dict[str, int] = field(default_factory=dict[str, int])  # bytes in memory by weight, once loaded

    def measure(self, device: str, label: str, given_bytes: int) -> None:
        """The device gave this much."""
        key = (device, label)
        self.measured[key] = self.measured.get(key, 0) + given_bytes

    def fail(self, device: str, label: str, why: str) -> None:
        """The device refused; everything measured before is given back."""
        self.measured.clear()
        self.failed.add((device, label))
        self.failure = why


def memory_report(
    sizes: Sizes,
    plans: Sequence[Plan],
    blocks: Sequence[Block],
    backends: Mapping[str, Backend],
    overhead: Mapping[str, int],
    attempt: Attempt,
) -> MemoryReport:
    """Planned bytes are the allocator's roundings of what the plans need; measured bytes were given.

    overhead: what each device's context, libraries and other buffers were expected to take when planned.
    """
    weights = {(block.device, block.layer): _weights(block, backends, attempt) for block in blocks}
    cache: dict[tuple[str, int], int] = defaultdict(int)
    for tensor in plans[-1].program.states.values():
        device = plans[-1].homes[tensor]
        cache[device, tensor.layer] += backends[device].round_up(tensor.n_bytes({}))
    layers = range(sizes.n_layer + 1)
    nothing = MemoryItem(0)
    devices = tuple(
        DeviceMemory(
            id=device,
            name=backend.title,
            weights=tuple(weights.get((device, i), nothing) for i in layers),
            cache=tuple(_item(cache[device, i], attempt, device, f"cache.{i}") for i in layers),
            graph=_item(backend.round_up(max(p.graph_bytes[device] for p in plans)), attempt, device, GRAPH),
            overhead=_overhead(overhead[device], attempt, backend),
        )
        for device, backend in backends.items()
    )
    return MemoryReport(
        devices=devices,
        input_weights=weights.get((next(iter(backends)), -1), nothing),
        n_layer=sizes.n_layer,
        n_ctx=sizes.n_ctx,
        n_cells=sizes.n_cells,
        n_ctx_train=sizes.n_ctx_train,
        n_batch=sizes.n_batch,
        n_parallel=sizes.n_parallel,
        failure=attempt.failure,
        kv_type=sizes.kv_type,
    )


def expected_overhead_bytes(backend: Backend, n_vocab: int) -> int:
    """Of a device: its context.  Of the host: the process (interpreter, libraries), and its tokenizer.

    To be asked before anything is allocated.
    """
    if not backend.is_host:
        return backend.context_bytes
    taken_bytes = backend.held_bytes() - backend.allocations.given_bytes
    return max(0, taken_bytes) + n_vocab * TOKENIZER_BYTES_PER_TOKEN


def _item(planned_bytes: int, attempt: Attempt, device: str, label: str) -> MemoryItem:
    if (device, label) in attempt.failed:
        return MemoryItem(planned_bytes, 0, "failed")
    if (device, label) in attempt.measured:
        return MemoryItem(planned_bytes, attempt.measured[device, label], "allocated")
    return MemoryItem(planned_bytes)


def _weights(block: Block, backends: Mapping[str, Backend], attempt: Attempt) -> MemoryItem:
    """Mapped weights take no allocation; measured are the bytes that are in memory once loaded."""
    if not block.is_mapped:
        planned_bytes = backends[block.device].round_up(block.n_bytes)
        return _item(planned_bytes, attempt, block.device, block.label)
    if not attempt.resident:
        return MemoryItem(block.n_bytes)
    resident_bytes = sum(attempt.resident[tensor.name] for tensor in block.tensors)
    return MemoryItem(block.n_bytes, resident_bytes, "allocated")


def _overhead(planned_bytes: int, attempt: Attempt, backend: Backend) -> MemoryItem:
    """Everything that the device says we hold, but for the buffers of weights, caches and graphs."""
    if any(device == backend.name and is_overhead(label) for device, label in attempt.failed):
        return MemoryItem(planned_bytes, 0, "failed")
    if not any(device == backend.name for device, _ in attempt.measured):
        return MemoryItem(planned_bytes)
    buffers = backend.allocations.by_label.items()
    buffer_bytes = sum(n_bytes for label, n_bytes in buffers if not is_overhead(label))
    return MemoryItem(planned_bytes, max(0, backend.held_bytes() - buffer_bytes), "allocated")


def is_overhead(label: str) -> bool:
    """Whether a buffer counts as overhead."""
    return label != GRAPH and not label.startswith(("weights.", "cache."))
