"""A runner and its devices as plain values: sizes depend on the layout, and free memory may be a lie."""

import enum
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import msgspec

from actors.protocol import Device, DeviceMemory, LayerPlacement, MemoryItem, MemoryReport
from actors.scheduler.attempts import Attempt, Round, attempt_of
from actors.scheduler.layout import GPU_RESERVE_BYTES, Placement, Policy, offloaded
from actors.scheduler.rounds import next_step
from actors.scheduler.sizes import MIB
from actors.scheduler.steps import Accept, History, Step, Try

NONE = MemoryItem(0)


def device(
    device_id: str, free: int, library: str = "cuda", *, is_integrated: bool = False, swap: int = 0
) -> Device:
    return Device(
        id=device_id,
        library="cpu" if device_id == "cpu" else library,
        name=device_id,
        total_bytes=1 << 50,
        free_bytes=free,
        is_integrated=is_integrated,
        swap_bytes=swap,
    )


def roomy(device_id: str, mib: int, library: str = "cuda", *, is_integrated: bool = False) -> Device:
    """A GPU that gives a model exactly so much."""
    return device(device_id, GPU_RESERVE_BYTES + mib * MIB, library, is_integrated=is_integrated)


class Tells(enum.Enum):
    """What the report of a failed allocation says beside that it failed."""

    ALL = "what was given before, and what failed"
    FAILED = "what failed"
    NOTHING = "nothing"


@dataclass(slots=True)
class SimulatedRunner:
    """Bytes.  `layers` are weights, the output layer last; `caches` are of repeating layers."""

    layers: Sequence[int]
    cache: int = 0  # of each repeating layer
    input_bytes: int = 0
    graph_base: int = 0  # compute buffer of every device that has layers
    graph_slope: int = 0  # and for each layer there
    graph_output: int = 0  # and for the output layer: logits
    graph_by_count: Mapping[int, int] = field(
        default_factory=dict[int, int]
    )  # instead, by layers on the device
    overhead: int = 0  # context of every GPU that has layers
    really: Mapping[str, int] = field(
        default_factory=dict[str, int]
    )  # what a GPU gives, where not what it says
    tells: Tells = Tells.ALL
    fail_in: int = 0  # the n-th allocation from now fails, whatever is free; 0: none

    @property
    def n_layer(self) -> int:
        return len(self.layers) - 1

    def memory(self, device_id: str, layers: Sequence[int]) -> DeviceMemory:
        """One device's part of a report."""
        held = set(layers)
        is_gpu = device_id != "cpu"
        items = range(self.n_layer + 1)
        return DeviceMemory(
            id=device_id,
            name=device_id,
            weights=tuple(MemoryItem(self.layers[i]) if i in held else NONE for i in items),
            cache=tuple(MemoryItem(self.cache) if i in held and i < self.n_layer else NONE for i in items),
            graph=MemoryItem(self.graph_bytes(held) if held else 0),
            overhead=MemoryItem(self.overhead if is_gpu and held else 0),
        )

    def graph_bytes(self, held: set[int]) -> int:
        if len(held) in self.graph_by_count:
            return self.graph_by_count[len(held)]
        has_output = self.n_layer in held
        return self.graph_base + self.graph_slope * len(held) + self.graph_output * has_output

    def answer(self, round_: Round, placement: Placement, devices: Sequence[Device]) -> MemoryReport:
        """The report of a fit or an alloc."""
        of_gpus = {part.device: part.layers for part in placement if part.device != "cpu"}
        taken = {layer for layers in of_gpus.values() for layer in layers}
        rest = tuple(layer for layer in range(self.n_layer + 1) if layer not in taken)
        parts = [self.memory("cpu", rest), *(self.memory(gpu, layers) for gpu, layers in of_gpus.items())]
        failure = ""
        if round_ is Round.ALLOC:
            free = {each.id: each.free_bytes for each in devices} | dict(self.really)
            for index, part in enumerate(parts):
                if not failure:
                    parts[index], failure = self.allocate(part, free[part.id])
        return MemoryReport(
            devices=tuple(parts),
            input_weights=MemoryItem(self.input_bytes),
            n_layer=self.n_layer,
            n_ctx=4096,
            n_ctx_train=8192,
            n_batch=512,
            n_parallel=1,
            failure=failure,
        )

    def allocate(self, part: DeviceMemory, free: int) -> tuple[DeviceMemory, str]:
        """Item by item; what was given before a failure may be told or not."""
        n_items = len(part.weights)
        items = [*part.weights, *part.cache, part.graph, part.overhead]
        taken = 0
        failure = ""
        for index, item in enumerate(items):
            if not item.planned_bytes:
                continue
            is_refused = self.fail_in == 1
            self.fail_in = max(0, self.fail_in - 1)
            if is_refused or taken + item.planned_bytes > free:
                failure = f"{part.id}: {item.planned_bytes} bytes could not be allocated"
                items[index] = MemoryItem(item.planned_bytes, 0, "failed")
                break
            taken += item.planned_bytes
            items[index] = MemoryItem(item.planned_bytes, item.planned_bytes, "allocated")
        if failure and self.tells is not Tells.ALL:
            kept = ("failed",) if self.tells is Tells.FAILED else ()
            items = [
                MemoryItem(item.planned_bytes, 0, "failed" if item.status in kept else "planned")
                for item in items
            ]
        allocated = DeviceMemory(
            part.id,
            part.name,
            tuple(items[:n_items]),
            tuple(items[n_items : 2 * n_items]),
            items[2 * n_items],
            items[2 * n_items + 1],
        )
        return allocated, failure


def attempt(
    runner: SimulatedRunner, round_: Round, placement: Placement, devices: Sequence[Device]
) -> Attempt:
    return attempt_of(round_, placement, runner.answer(round_, placement, devices))


@dataclass(slots=True)
class Load:
    """A load that has ended."""

    step: Step
    attempts: tuple[Attempt, ...]
    fitted: Placement = ()

    @property
    def n_rounds(self) -> int:
        return len(self.attempts)

    @property
    def counts(self) -> dict[str, int]:
        """Layers by GPU."""
        assert isinstance(self.step, Accept), self.step
        return {part.device: len(part.layers) for part in self.step.placement if part.device != "cpu"}


def run_load(
    runner: SimulatedRunner,
    devices: Sequence[Device],
    policy: Policy | None = None,
    others: Mapping[str, int] | None = None,
) -> Load:
    """A whole load, as the scheduler runs it."""
    load = Load(Try((), ""), ())
    for round_ in Round:
        placement = load.fitted
        while True:
            load.attempts += (attempt(runner, round_, placement, devices),)
            load.step = next_step(
                History("m", load.attempts, tuple(devices), policy or Policy(), others or {})
            )
            if not isinstance(load.step, Try):
                break
            assert load.n_rounds < 100, "the load does not end"
            placement = load.step.placement
        if not isinstance(load.step, Accept):
            break
        load.fitted = load.step.placement
    return load


def repeats(load: Load) -> list[tuple[Round, frozenset[tuple[str, tuple[int, ...]]]]]:
    """What was asked more than once in a round.

    But for an alloc round's first failure, which may be asked once more at once, and its last question.
    """
    asked = [(each.round, each.key) for each in load.attempts]
    failed = [index for index, each in enumerate(load.attempts) if each.report.failure]
    if failed and asked[failed[0]] in asked[failed[0] + 1 : failed[0] + 2]:
        del asked[failed[0]]
    last = asked[:-1] if asked[-1][0] is Round.ALLOC else asked
    return [each for index, each in enumerate(last) if each in last[:index]]


def placed(placement: Placement) -> dict[str, tuple[int, ...]]:
    return {part.device: part.layers for part in placement}


def on_gpus(placement: Placement) -> dict[str, tuple[int, ...]]:
    return dict(offloaded(placement))


def with_free(devices: Sequence[Device], **free: int) -> tuple[Device, ...]:
    """The devices with other free memory."""
    return tuple(
        msgspec.structs.replace(each, free_bytes=free.get(each.id, each.free_bytes)) for each in devices
    )


def cpu_layers(*layers: int) -> LayerPlacement:
    return LayerPlacement("cpu", layers)
