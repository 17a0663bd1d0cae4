"""A program bound to devices: which op runs where, which bytes each value occupies, what has to be copied.

Inputs arrive and outputs leave on the host, where `placement.input` is.  Inputs are copied to the devices
that read them before anything runs, a value that another device reads before its first reader there, through
the host's memory where neither device is the host nor reaches the other.

A layer of the host may be streamed: another device computes it, for which its weights are brought in time by
whoever runs the plan (`Supply`); what reads or writes its states stays where they are.

`plan()` is a pure function of the program, the placement and the bounds; it allocates nothing, so its memory
figures are what `fit` answers.  `Plan.bind()` turns it into an `Executable` over memory that exists.

Offsets are found greedily, largest value first, each at the lowest place that is free during its lifetime
(the "greedy by size" strategy of arXiv:2001.03288).  Values that are never alive together share bytes.
"""

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from itertools import chain, groupby
from typing import Final, Protocol

from kernels.backend import Backend, Binding, Segment
from kernels.executable import Executable
from kernels.memory import Memory
from kernels.ops.copy import Copy
from kernels.ops.experts import Route
from kernels.ops.op import Op
from kernels.program import Program
from kernels.tensor import Bounds, Role, Tensor
from kernels.transfer import Transfer

NOT_STREAMED: Final[Mapping[int, str]] = {}


class PlanError(ValueError):
    """The program cannot run on the devices it was placed on; the message says which op and why."""


class Supply(Protocol):
    """What brings the weights of streamed layers while a plan runs."""

    def before(self, layer: int) -> Segment:
        """To be run before the layer's first op on the device that computes it."""
        ...

    def after(self, route: Route, ids: Memory) -> Segment:
        """To be run after a `Route` of such a layer, before its experts are used; ids: where it left them."""
        ...


@dataclass(frozen=True, slots=True)
class Placement:
    """The device of each layer 0..n_layer (the output layer last), and of the input side, which is a host."""

    layers: tuple[str, ...]
    input: str

    def device_of(self, layer: int) -> str:
        """The device of a layer; -1 is the input side."""
        return self.input if layer < 0 else self.layers[layer]


@dataclass(frozen=True, slots=True)
class Step:
    """One op on one device."""

    op: Op
    device: str


@dataclass(frozen=True, slots=True)
class Plan:
    """Steps in order, and where each value lies in its device's arena.

    `weights` are (tensor, device) pairs: a tied embedding is needed on two devices when input and output
    differ.  `streamed`: the device that computes a layer of the host, for which its weights come anew.
    """

    program: Program
    bounds: Bounds
    steps: tuple[Step, ...]
    outputs: Mapping[str, Tensor]  # where the host reads each
    homes: Mapping[Tensor, str]  # device of every input, value and state
    offsets: Mapping[Tensor, int]  # of every input and value in its home's arena
    weights: tuple[tuple[Tensor, str], ...]
    arena_bytes: Mapping[str, int]
    workspace_bytes: Mapping[str, int]
    streamed: Mapping[int, str]

    @property
    def graph_bytes(self) -> Mapping[str, int]:
        """Compute buffer per device: arena and workspace."""
        return {d: self.arena_bytes[d] + self.workspace_bytes[d] for d in self.arena_bytes}

    def bind(
        self,
        backends: Mapping[str, Backend],
        graphs: Mapping[str, Memory],
        weights: Mapping[tuple[str, str], Memory],
        states: Mapping[str, Memory],
        supply: Supply | None = None,
    ) -> Executable:
        """Compile for memory that exists.

        graphs: per device at least `graph_bytes` of it; weights by (name, device); states by name.
        supply: what brings the weights of streamed layers, where there are any.
        """
        memory = self._values(graphs) | {t: states[t.name] for t in self.program.states.values()}
        segments: list[Segment] = []
        awaited = set(self.streamed)
        for device, layer, ops in self._runs():
            if supply is not None and layer in awaited:
                segments.append(supply.before(layer))
                awaited.remove(layer)
            if device:
                binding = self._binding(device, ops, memory, graphs[device], weights)
                segments.append(backends[device].bind(binding))
            else:
                copies = [op for op in ops if isinstance(op, Copy)]
                segments.append(Transfer([(op, memory[op.x], memory[op.out]) for op in copies]))
            if supply is not None and layer is not None and isinstance(route := ops[-1], Route):
                segments.append(supply.after(route, memory[route.ids]))
        inputs = {name: (t, memory[t]) for name, t in self.program.inputs.items() if t in memory}
        outputs = {name: (t, memory[t]) for name, t in self.outputs.items()}
        return Executable(segments, inputs, outputs, self.bounds, self.program.constants)

    def bind_layer(
        self,
        layer: int,
        backend: Backend,
        graph: Memory,
        weights: Mapping[tuple[str, str], Memory],
        after: Callable[[Route, Memory], Segment],
    ) -> Sequence[Segment]:
        """The ops of a layer on a device that need no state, on whatever their values hold: to be timed.

        after: what is run after a `Route`; as `Supply` has it.
        """
        steps = (step for step in self.steps if step.op.layer == layer and step.device == backend.name)
        wanted = [step.op for step in steps if not isinstance(step.op, Copy) and not touches_state(step.op)]
        memory = self._values({backend.name: graph})
        segments: list[Segment] = []
        for ops in _up_to_routes(wanted):
            segments.append(backend.bind(self._binding(backend.name, ops, memory, graph, weights)))
            if isinstance(route := ops[-1], Route):
                segments.append(after(route, memory[route.ids]))
        return segments

    def _values(self, graphs: Mapping[str, Memory]) -> dict[Tensor, Memory]:
        """Of inputs and values, those on these devices."""
        return {
            tensor: graphs[self.homes[tensor]].part(offset, tensor.n_bytes(self.bounds))
            for tensor, offset in self.offsets.items()
            if self.homes[tensor] in graphs
        }

    def _runs(self) -> Iterator[tuple[str, int | None, Sequence[Op]]]:
        """The ops of each segment, and what `_segment_of` says of them; a streamed layer's end at a route."""
        for (device, layer), steps in groupby(self.steps, key=self._segment_of):
            ops = [step.op for step in steps]
            for part in [ops] if layer is None else _up_to_routes(ops):
                yield device, layer, part

    def _segment_of(self, step: Step) -> tuple[str, int | None]:
        """Steps that follow each other and have this alike run together: device (none: copies), layer."""
        if isinstance(step.op, Copy):
            return "", None
        is_streamed = self.streamed.get(step.op.layer) == step.device
        return step.device, step.op.layer if is_streamed else None

    def _binding(
        self,
        device: str,
        ops: Sequence[Op],
        memory: Mapping[Tensor, Memory],
        graph: Memory,
        weights: Mapping[tuple[str, str], Memory],
    ) -> Binding:
        used = {t: memory[t] for op in ops for t in (*op.reads, *op.writes) if t in memory}
        used |= {t: weights[t.name, device] for op in ops for t in op.reads if t.role is Role.WEIGHT}
        workspace = graph.part(self.arena_bytes[device], self.workspace_bytes[device])
        return Binding(ops, used, self.bounds, workspace)


def _up_to_routes(ops: Iterable[Op]) -> Iterator[Sequence[Op]]:
    """Cut after each `Route`."""
    part: list[Op] = []
    for op in ops:
        part.append(op)
        if isinstance(op, Route):
            yield part
            part = []
    if part:
        yield part


def touches_state(op: Op) -> bool:
    """Whether it reads or writes what outlives a run."""
    return any(tensor.role is Role.STATE for tensor in (*op.reads, *op.writes))


def streamable(program: Program, placement: Placement, backends: Mapping[str, Backend]) -> dict[int, str]:
    """Layers of the host that a device could compute if their weights came to it: the first that has layers.

    Not the output layer, whose rows are few.  Nothing where no device has layers.
    """
    layers = placement.layers[: program.n_layer]
    device = next((name for name in layers if not backends[name].is_host), None)
    if device is None:
        return {}
    refused = {op.layer for op in program.ops if not touches_state(op) and backends[device].refuses(op)}
    return {i: device for i, home in enumerate(layers) if backends[home].is_host and i not in refused}


def plan(program: Program, placement: Placement, backends: Mapping[str, Backend], bounds: Bounds) -> Plan:
    """Place, copy, lay out.  PlanError when a device refuses an op."""
    return plans(program, placement, backends, [bounds])[0]


def plans(
    program: Program,
    placement: Placement,
    backends: Mapping[str, Backend],
    bounds: Sequence[Bounds],
    streamed: Mapping[int, str] = NOT_STREAMED,
) -> list[Plan]:
    """A plan for each of these bounds, all with the same steps.  PlanError when a device refuses an op.

    streamed: layers that another device than their own computes, but for what touches their states.
    """
    route = _Route(program, placement, backends)
    for op in program.ops:
        device = placement.device_of(op.layer)
        if op.layer in streamed and not touches_state(op):
            device = streamed[op.layer]
        refusal = backends[device].refuses(op)
        if refusal is not None:
            raise PlanError(f"{type(op).__name__} in layer {op.layer}: {device} says {refusal}")
        route.add(op, device)
    outputs = {name: route.to_host(tensor) for name, tensor in program.outputs.items()}
    steps, homes = tuple(route.steps), route.homes
    weights = dict.fromkeys((t, s.device) for s in steps for t in s.op.reads if t.role is Role.WEIGHT)
    lives = _lifetimes(outputs.values(), steps)
    made: list[Plan] = []
    for limit in bounds:
        offsets, arena = _lay_out(lives, len(steps), homes, backends, limit)
        workspace = _workspace_bytes(steps, backends, limit)
        made.append(
            Plan(program, limit, steps, outputs, homes, offsets, tuple(weights), arena, workspace, streamed)
        )
    return made


def _workspace_bytes(
    steps: Sequence[Step], backends: Mapping[str, Backend], bounds: Bounds
) -> dict[str, int]:
    """Scratch of each device: what the hungriest of its kernels needs."""
    needed = dict.fromkeys(backends, 0)
    for step in steps:
        if not isinstance(step.op, Copy):  # which no kernel does
            n_bytes = backends[step.device].workspace_bytes(step.op, bounds)
            needed[step.device] = max(needed[step.device], n_bytes)
    return needed


class _Route:
    """Steps so far, and on which device each input, value and state is."""

    def __init__(self, program: Program, placement: Placement, backends: Mapping[str, Backend]) -> None:
        self._arrivals: list[Step] = []  # copies of inputs
        self._steps: list[Step] = []
        self.homes = {t: placement.device_of(t.layer) for t in program.states.values()}
        self.homes |= dict.fromkeys(program.inputs.values(), placement.input)
        self._n_layer = program.n_layer
        self._host = placement.input
        self._backends = backends
        self._are_hosts = {device: backend.is_host for device, backend in backends.items()}
        self._copies: dict[tuple[Tensor, str], Tensor] = {}
        if not self._are_hosts[self._host]:
            raise PlanError(f"inputs arrive on the host, which {self._host} is not")

    @property
    def steps(self) -> Sequence[Step]:
        """All of them, in order."""
        return [*self._arrivals, *self._steps]

    def add(self, op: Op, device: str) -> None:
        """Append an op, and before it the copies of what it reads."""
        moved: dict[Tensor, Tensor] = {}
        for tensor in op.reads:
            if tensor.role is Role.WEIGHT or self.homes[tensor] == device:
                continue
            if tensor.role is Role.STATE:
                raise PlanError(f"state {tensor.name} lives on {self.homes[tensor]}, its reader on {device}")
            moved[tensor] = self._on(tensor, device, op.layer)
        self.homes |= {t: device for t in op.writes if t.role is not Role.STATE}
        self._steps.append(Step(_substitute(op, moved) if moved else op, device))

    def to_host(self, tensor: Tensor) -> Tensor:
        """An output where the host can read it."""
        if self._are_hosts[self.homes[tensor]]:
            return tensor
        return self._on(tensor, self._host, self._n_layer)

    def _on(self, tensor: Tensor, device: str, layer: int) -> Tensor:
        """The tensor on a device it was not made on, copied there once."""
        key = (tensor, device)
        if key not in self._copies:
            source = tensor
            if self._passes_host(self.homes[tensor], device):
                source = self._on(tensor, self._host, layer)
            copy = replace(tensor, name=f"{tensor.name}@{device}", role=Role.VALUE)
            self._copies[key] = copy
            self.homes[copy] = device
            steps = self._arrivals if tensor.role is Role.INPUT else self._steps
            steps.append(Step(Copy(layer, source, copy), device))
        return self._copies[key]

    def _passes_host(self, source: str, target: str) -> bool:
        """Whether a value has to be copied to the host on its way."""
        if self._are_hosts[source] or self._are_hosts[target]:
            return False
        return not self._backends[target].reaches(self._backends[source])


def _substitute(op: Op, moved: Mapping[Tensor, Tensor]) -> Op:
    changes: dict[str, Tensor] = {}
    for field in fields(op):
        value = getattr(op, field.name)
        if isinstance(value, Tensor) and value in moved:
            changes[field.name] = moved[value]
    return replace(op, **changes)


def _lay_out(
    lives: Mapping[Tensor, range],
    n_steps: int,
    homes: Mapping[Tensor, str],
    backends: Mapping[str, Backend],
    bounds: Bounds,
) -> tuple[dict[Tensor, int], dict[str, int]]:
    """Byte offset of every input and value in its device's arena, and the arenas' sizes."""
    offsets: dict[Tensor, int] = {}
    arena = dict.fromkeys(backends, 0)
    # settled tensors by the steps at which they are alive: most values live for a few steps, so that looking
    # there for rivals stays near-linear in the number of values
    alive: dict[str, list[list[Tensor]]] = {device: [[] for _ in range(n_steps + 2)] for device in backends}
    size = {t: t.n_bytes(bounds) for t in lives}
    for tensor in sorted(lives, key=lambda t: -size[t]):
        device = homes[tensor]
        align = backends[device].alignment
        moments = alive[device][lives[tensor].start + 1 : lives[tensor].stop + 1]  # inputs begin at step -1
        rivals = set(chain.from_iterable(moments))
        offset = 0
        for rival in sorted(rivals, key=offsets.__getitem__):
            if offset + size[tensor] <= offsets[rival]:
                break
            offset = max(offset, -(-(offsets[rival] + size[rival]) // align) * align)
        offsets[tensor] = offset
        for moment in moments:
            moment.append(tensor)
        arena[device] = max(arena[device], -(-(offset + size[tensor]) // align) * align)
    return offsets, arena


def _lifetimes(outputs: Collection[Tensor], steps: Sequence[Step]) -> dict[Tensor, range]:
    """Steps during which a tensor's bytes are taken: from its writing until after its last reader."""
    first: dict[Tensor, int] = {}
    last: dict[Tensor, int] = {}
    for index, step in enumerate(steps):
        for tensor in step.op.writes:
            if tensor.role is Role.VALUE:
                first[tensor] = last[tensor] = index
        for tensor in step.op.reads:
            if tensor.role is Role.INPUT:
                first[tensor] = -1  # written before the first step
            if tensor in first:
                last[tensor] = index
    last |= dict.fromkeys(outputs, len(steps))
    return {t: range(first[t], last[t] + 1) for t in first}
