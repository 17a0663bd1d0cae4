"""The memory report of a model: planned beside measured, per device and layer."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from actors.protocol import DeviceMemory, MemoryItem, MemoryReport
from kernels.backend import Backend
from kernels.plan import Plan
from kernels.tensor import Tensor

# A tokenizer keeps hash maps over the file's strings; measured with the 128k-token vocabulary of llama 3
TOKENIZER_BYTES_PER_TOKEN = 250


@dataclass(frozen=True, slots=True)
class Sizes:
    """What a plan was made for."""

    n_layer: int
    n_ctx: int
    n_ctx_train: int
    n_batch: int
    n_parallel: int
    kv_type: str


@dataclass(slots=True)
class Attempt:
    """What an allocation has done so far, by (device, label): labels are `cache.<layer>` and `graph`."""

    measured: dict[tuple[str, str], int] = field(default_factory=dict[tuple[str, str], int])
    failed: set[tuple[str, str]] = field(default_factory=set[tuple[str, str]])
    failure: str = ""
    planned_overhead_bytes: int = 0
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
    sizes: Sizes, plans: Sequence[Plan], backends: Mapping[str, Backend], attempt: Attempt
) -> MemoryReport:
    """Planned bytes are the allocator's roundings of what the plans need; measured bytes were given."""
    host = next(iter(backends))
    weights: dict[tuple[str, int], list[Tensor]] = defaultdict(list)
    for tensor, device in plans[-1].weights:
        # a tied embedding is an input weight at home, and belongs to the output layer elsewhere
        layer = tensor.layer if tensor.layer >= 0 or device == host else sizes.n_layer
        weights[device, layer].append(tensor)
    cache: dict[tuple[str, int], int] = defaultdict(int)
    for tensor in plans[-1].program.states.values():
        device = plans[-1].homes[tensor]
        cache[device, tensor.layer] += backends[device].round_up(tensor.n_bytes({}))
    layers = range(sizes.n_layer + 1)
    devices = tuple(
        DeviceMemory(
            id=device,
            name=device,
            weights=tuple(_weight(weights[device, i], attempt) for i in layers),
            cache=tuple(_item(cache[device, i], attempt, device, f"cache.{i}") for i in layers),
            graph=_item(
                backend.round_up(max(p.graph_bytes[device] for p in plans)), attempt, device, "graph"
            ),
            overhead=_overhead(attempt) if device == host else MemoryItem(0),
        )
        for device, backend in backends.items()
    )
    return MemoryReport(
        devices=devices,
        input_weights=_weight(weights[host, -1], attempt),
        n_layer=sizes.n_layer,
        n_ctx=sizes.n_ctx,
        n_ctx_train=sizes.n_ctx_train,
        n_batch=sizes.n_batch,
        n_parallel=sizes.n_parallel,
        failure=attempt.failure,
        kv_type=sizes.kv_type,
    )


def private_bytes() -> int:
    """Memory that this process alone holds: anonymous pages, so without the mapped model file."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) * 1024
    return 0


def _item(planned_bytes: int, attempt: Attempt, device: str, label: str) -> MemoryItem:
    if (device, label) in attempt.failed:
        return MemoryItem(planned_bytes, 0, "failed")
    if (device, label) in attempt.measured:
        return MemoryItem(planned_bytes, attempt.measured[device, label], "allocated")
    return MemoryItem(planned_bytes)


def _weight(tensors: Sequence[Tensor], attempt: Attempt) -> MemoryItem:
    """Weights of the host stay in the mapped file; measured are the bytes that are in memory once loaded."""
    planned_bytes = sum(t.n_bytes({}) for t in tensors)
    if not attempt.resident:
        return MemoryItem(planned_bytes)
    return MemoryItem(planned_bytes, sum(attempt.resident[t.name] for t in tensors), "allocated")


def planned_overhead_bytes(n_vocab: int) -> int:
    """The process before anything is allocated (interpreter, libraries), and its tokenizer."""
    return private_bytes() + n_vocab * TOKENIZER_BYTES_PER_TOKEN


def _overhead(attempt: Attempt) -> MemoryItem:
    """Everything private to the process that is neither cache nor compute buffer."""
    if not attempt.measured:
        return MemoryItem(attempt.planned_overhead_bytes)
    now_bytes = max(0, private_bytes() - sum(attempt.measured.values()))
    return MemoryItem(attempt.planned_overhead_bytes, now_bytes, "allocated")
