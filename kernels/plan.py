"""A program bound to devices: which op runs where, which bytes each value occupies, what has to be copied.

`plan()` is a pure function of the program, the placement and the bounds; it allocates nothing, so its memory
figures are what `fit` answers.  `Plan.bind()` turns it into an `Executable` over memory that exists.

Offsets are found greedily, largest value first, each at the lowest place that is free during its lifetime
(the "greedy by size" strategy of arXiv:2001.03288).  Values that are never alive together share bytes.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from itertools import chain, groupby

from kernels.backend import Backend, Binding, Bytes
from kernels.executable import Executable
from kernels.ops.copy import Copy
from kernels.ops.op import Op
from kernels.program import Program
from kernels.tensor import Bounds, Role, Tensor


class PlanError(ValueError):
    """The program cannot run on the devices it was placed on; the message says which op and why."""


@dataclass(frozen=True, slots=True)
class Placement:
    """The device of each layer 0..n_layer (the output layer last), and of the input side."""

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
    differ.
    """

    program: Program
    bounds: Bounds
    steps: tuple[Step, ...]
    homes: Mapping[Tensor, str]  # device of every input, value and state
    offsets: Mapping[Tensor, int]  # of every input and value in its home's arena
    weights: tuple[tuple[Tensor, str], ...]
    arena_bytes: Mapping[str, int]
    workspace_bytes: Mapping[str, int]

    @property
    def graph_bytes(self) -> Mapping[str, int]:
        """Compute buffer per device: arena and workspace."""
        return {d: self.arena_bytes[d] + self.workspace_bytes[d] for d in self.arena_bytes}

    def bind(
        self,
        backends: Mapping[str, Backend],
        graphs: Mapping[str, Bytes],
        weights: Mapping[tuple[str, str], Bytes],
        states: Mapping[str, Bytes],
    ) -> Executable:
        """Compile for memory that exists.

        graphs: per device at least `graph_bytes` of it; weights by (name, device); states by name.
        """
        memory = {t: states[t.name] for t in self.program.states.values()}
        for tensor, offset in self.offsets.items():
            memory[tensor] = graphs[self.homes[tensor]][offset : offset + tensor.n_bytes(self.bounds)]
        segments = [
            backends[device].bind(
                self._binding(device, [s.op for s in steps], memory, graphs[device], weights)
            )
            for device, steps in groupby(self.steps, key=lambda step: step.device)
        ]
        inputs = {name: (t, memory[t]) for name, t in self.program.inputs.items() if t in memory}
        outputs = {name: (t, memory[t]) for name, t in self.program.outputs.items()}
        return Executable(segments, inputs, outputs, self.bounds)

    def _binding(
        self,
        device: str,
        ops: Sequence[Op],
        memory: Mapping[Tensor, Bytes],
        graph: Bytes,
        weights: Mapping[tuple[str, str], Bytes],
    ) -> Binding:
        used = {t: memory[t] for op in ops for t in (*op.reads, *op.writes) if t in memory}
        used |= {t: weights[t.name, device] for op in ops for t in op.reads if t.role is Role.WEIGHT}
        start = self.arena_bytes[device]
        return Binding(ops, used, self.bounds, graph[start : start + self.workspace_bytes[device]])


def plan(program: Program, placement: Placement, backends: Mapping[str, Backend], bounds: Bounds) -> Plan:
    """Place, copy, lay out.  PlanError when a device refuses an op."""
    placed = [Step(op, placement.device_of(op.layer)) for op in program.ops]
    for step in placed:
        refusal = backends[step.device].refuses(step.op)
        if refusal is not None:
            raise PlanError(
                f"{type(step.op).__name__} in layer {step.op.layer}: {step.device} says {refusal}"
            )
    homes = {t: placement.device_of(t.layer) for t in program.states.values()}
    homes |= dict.fromkeys(program.inputs.values(), placement.input)
    steps = _with_copies(placed, homes)
    weights = dict.fromkeys((t, s.device) for s in steps for t in s.op.reads if t.role is Role.WEIGHT)
    offsets, arena = _lay_out(program, steps, homes, backends, bounds)
    workspace = dict.fromkeys(backends, 0)
    for step in steps:
        needed = backends[step.device].workspace_bytes(step.op, bounds)
        workspace[step.device] = max(workspace[step.device], needed)
    return Plan(program, bounds, tuple(steps), homes, offsets, tuple(weights), arena, workspace)


def _with_copies(placed: Sequence[Step], homes: dict[Tensor, str]) -> list[Step]:
    """Insert a copy before the first reader on each other device; extends `homes`."""
    copies: dict[tuple[Tensor, str], Tensor] = {}
    steps: list[Step] = []
    for step in placed:
        moved: dict[Tensor, Tensor] = {}
        for tensor in step.op.reads:
            if tensor.role is Role.WEIGHT or homes[tensor] == step.device:
                continue
            if tensor.role is Role.STATE:
                raise PlanError(f"state {tensor.name} lives on {homes[tensor]}, its reader on {step.device}")
            key = (tensor, step.device)
            if key not in copies:
                copies[key] = replace(tensor, name=f"{tensor.name}@{step.device}", role=Role.VALUE)
                homes[copies[key]] = step.device
                steps.append(Step(Copy(step.op.layer, tensor, copies[key]), step.device))
            moved[tensor] = copies[key]
        op = _substitute(step.op, moved) if moved else step.op
        homes |= {t: step.device for t in op.writes if t.role is not Role.STATE}
        steps.append(Step(op, step.device))
    return steps


def _substitute(op: Op, moved: Mapping[Tensor, Tensor]) -> Op:
    changes: dict[str, Tensor] = {}
    for field in fields(op):
        value = getattr(op, field.name)
        if isinstance(value, Tensor) and value in moved:
            changes[field.name] = moved[value]
    return replace(op, **changes)


def _lay_out(
    program: Program,
    steps: Sequence[Step],
    homes: Mapping[Tensor, str],
    backends: Mapping[str, Backend],
    bounds: Bounds,
) -> tuple[dict[Tensor, int], dict[str, int]]:
    """Byte offset of every input and value in its device's arena, and the arenas' sizes."""
    lives = _lifetimes(program, steps)
    offsets: dict[Tensor, int] = {}
    arena = dict.fromkeys(backends, 0)
    # settled tensors by the steps at which they are alive: most values live for a few steps, so that looking
    # there for rivals stays near-linear in the number of values
    alive: dict[str, list[list[Tensor]]] = {
        device: [[] for _ in range(len(steps) + 2)] for device in backends
    }
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


def _lifetimes(program: Program, steps: Sequence[Step]) -> dict[Tensor, range]:
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
    last |= dict.fromkeys(program.outputs.values(), len(steps))
    return {t: range(first[t], last[t] + 1) for t in first}
