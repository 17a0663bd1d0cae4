"""Plans: values that live together share no bytes, splits over devices change nothing, fit is arithmetic."""

import itertools
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings

from kernels.backend import Backend
from kernels.dtype import DType
from kernels.memory import Bytes, HostMemory, Memory, host_array
from kernels.ops.attention import Attention, StoreKV
from kernels.ops.copy import Copy
from kernels.ops.experts import Route
from kernels.ops.op import F32, Array
from kernels.ops.rope import Rotation
from kernels.plan import NOT_STREAMED, Placement, Plan, PlanError, plan, plans, streamable
from kernels.program import Program, ProgramBuilder, ShapeError
from kernels.reference import ReferenceBackend
from kernels.sim.backend import SimBackend
from kernels.sim.machine import SimMachine
from kernels.tensor import N_OUTPUTS, N_TOKENS, Bounds, Role, Sym, Tensor, shape_of

FAR = ("far:0", "far:1")  # what the host cannot reach
BOUNDS = {"n_tokens": 7, "n_outputs": 2, "n_seqs": 1, "n_pages": 2}
N_EMBD, N_VOCAB, PAGE = 8, 12, 4


def tiny_program(n_layer: int, n_expert: int = 0) -> Program:
    """n_expert: of which each row of each layer goes through two, where there are any."""
    g = ProgramBuilder(n_layer)
    tokens, positions, cells, rows, seen = (
        g.input(n, (N_TOKENS,)) for n in ("tokens", "positions", "cells", "rows", "seen")
    )
    tables = g.input("tables", (Sym("n_seqs"), Sym("n_pages")))
    outputs = g.input("outputs", (N_OUTPUTS,))
    table = g.weight("embed", (N_VOCAB, N_EMBD), DType.F32)
    x = g.rows(table, tokens)
    rotation = Rotation("norm", (1.0, 0.1))
    for layer in range(n_layer):
        with g.in_layer(layer):
            k_state, v_state = (g.state(f"{n}.{layer}", (2 * PAGE, 4), DType.F32) for n in "kv")
            h = g.rms_norm(x, g.weight(f"norm.{layer}", (N_EMBD,), DType.F32), 1e-5)
            q, k, v = (
                g.matmul(h, g.weight(f"{n}.{layer}", (w, N_EMBD), DType.F32))
                for n, w in (("q", 8), ("wk", 4), ("wv", 4))
            )
            g.store_kv(
                k, v, positions, cells, k_state, v_state, head_dim=4, page_size=PAGE, rotation=rotation
            )
            q = g.rope(q, positions, 4, rotation)
            mixed = g.attention(
                q, k_state, v_state, tables, rows, seen, head_dim=4, page_size=PAGE, scale=0.5
            )
            x = g.matmul(mixed, g.weight(f"o.{layer}", (N_EMBD, 8), DType.F32), residual=x)
            x = g.gate(x, h, "silu")
            if n_expert:
                route = g.route(
                    g.matmul(x, g.weight(f"router.{layer}", (n_expert, N_EMBD), DType.F32)), 2, "softmax"
                )
                weight = g.weight(f"experts.{layer}", (n_expert, N_EMBD, N_EMBD), DType.F32)
                x = g.slot_sum(g.expert_matmul(x, weight, route, is_scaled=True), 2, residual=x)
    with g.in_layer(n_layer):
        g.output("logits", g.matmul(g.rows(x, outputs), table))
    return g.build()


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> SimMachine:
    """Two accelerators."""
    machine = SimMachine(tmp_path_factory.mktemp("machine"))
    for device in FAR:
        machine.add_device(device, 1 << 40)
    return machine


def opened(devices: Iterable[str], machine: SimMachine | None) -> dict[str, Backend]:
    """Reference backends, those named in FAR simulated; with open contexts."""
    backends: dict[str, Backend] = {}
    for device in dict.fromkeys(devices):
        host = ReferenceBackend(device)
        backends[device] = SimBackend(machine, device, host) if machine and device in FAR else host
        backends[device].open()
    return backends


class Noted:
    """A segment that notes what is there when it runs."""

    def __init__(self, note: Callable[[Bounds], None]) -> None:
        self._note = note

    def run(self, values: Bounds) -> None:
        self._note(values)


class Notes:
    """Supplies nothing, and notes when it was asked to: layers, and experts that their routes chose."""

    def __init__(self) -> None:
        self.layers: list[int] = []
        self.chosen: list[tuple[int, list[list[int]]]] = []  # by layer, of each row

    def before(self, layer: int) -> Noted:
        return Noted(lambda _: self.layers.append(layer))

    def after(self, route: Route, ids: Memory) -> Noted:
        def note(values: Bounds) -> None:
            found = np.empty(shape_of(route.ids.shape, values), np.int32)
            ids.download(found.reshape(-1).view(np.uint8))
            assert self.layers[-1] == route.layer
            self.chosen.append((route.layer, found.tolist()))

        return Noted(note)


def run(
    program: Program,
    placement: Placement,
    n_tokens: int = 5,
    machine: SimMachine | None = None,
    streamed: Mapping[int, str] = NOT_STREAMED,
    notes: Notes | None = None,
) -> F32:
    backends = opened((placement.input, *placement.layers), machine)
    made = plans(program, placement, backends, [BOUNDS], streamed)[0]
    notes = notes or Notes()
    rng = np.random.default_rng(1)
    values = {
        name: rng.standard_normal(shape_of(t.shape, {})).astype(np.float32)
        for name, t in program.weights.items()
    }
    homes = {t.name: made.homes[t] for t in program.states.values()}
    with ExitStack() as stack:

        def filled(device: str, content: Bytes) -> Memory:
            buffer = backends[device].allocate(content.nbytes, "test")
            stack.callback(buffer.free)
            buffer.memory.upload(content)
            return buffer.memory

        weights = {(t.name, d): filled(d, values[t.name].view(np.uint8).reshape(-1)) for t, d in made.weights}
        states = {n: filled(homes[n], np.zeros(t.n_bytes({}), np.uint8)) for n, t in program.states.items()}
        # all bits set are NaNs
        graphs = {d: filled(d, np.full(n, 0xFF, np.uint8)) for d, n in made.graph_bytes.items()}
        executable = made.bind(backends, graphs, weights, states, notes)
        logits = executable.run(inputs_of(n_tokens))["logits"].astype(np.float32)
    assert notes.layers == sorted(streamed)
    return logits


def inputs_of(n_tokens: int) -> dict[str, Array]:
    """A prompt whose second page comes first."""
    line = np.arange(n_tokens, dtype=np.int32)
    return {
        "tokens": line % N_VOCAB,
        "positions": line,
        "cells": (line + np.where(line < PAGE, PAGE, -PAGE)).astype(np.int32),
        "rows": line * 0,
        "seen": line + 1,
        "tables": np.array([[1, 0]], np.int32),
        "outputs": np.array([n_tokens - 1], np.int32),
    }


@settings(deadline=None)
@given(st.lists(st.sampled_from("abc"), min_size=4, max_size=4), st.sampled_from("abc"))
def test_any_split_over_devices_gives_the_same_result(devices: list[str], home: str) -> None:
    program = tiny_program(3)
    alone = run(program, Placement(("a",) * 4, "a"))
    assert np.array_equal(run(program, Placement(tuple(devices), home)), alone)


@pytest.mark.parametrize("devices", list(itertools.product(("a", *FAR), repeat=3)))
def test_any_split_over_devices_that_the_host_cannot_reach_gives_the_same_result(
    devices: tuple[str, ...], machine: SimMachine
) -> None:
    program = tiny_program(2)
    for n_tokens in (5, 1):
        alone = run(program, Placement(("a",) * 3, "a"), n_tokens)
        assert np.array_equal(run(program, Placement(devices, "a"), n_tokens, machine), alone)


@pytest.mark.parametrize("on_host", [(0,), (1,), (0, 1), (0, 2), (1, 2)])
def test_layers_that_a_device_computes_for_the_host_give_the_same_result(
    on_host: tuple[int, ...], machine: SimMachine
) -> None:
    program = tiny_program(3)
    placement = Placement((*("a" if layer in on_host else FAR[0] for layer in range(3)), "a"), "a")
    backends = opened(("a", FAR[0]), machine)
    streamed = streamable(program, placement, backends)
    assert streamed == dict.fromkeys(on_host, FAR[0])
    for n_tokens in (7, 5, 1):
        alone = run(program, Placement(("a",) * 4, "a"), n_tokens)
        assert np.array_equal(run(program, placement, n_tokens, machine, streamed), alone)


@pytest.mark.parametrize("on_host", [(0,), (0, 2), (1, 2)])
def test_of_a_streamed_layer_it_is_told_which_experts_its_rows_use(
    on_host: tuple[int, ...], machine: SimMachine
) -> None:
    program, notes = tiny_program(3, n_expert=5), Notes()
    placement = Placement((*("a" if i in on_host else FAR[0] for i in range(3)), "a"), "a")
    streamed = dict.fromkeys(on_host, FAR[0])
    every = Notes()  # of all layers, on one device that the host cannot reach
    alone = run(program, Placement(("a",) * 4, "a"), 6)
    assert np.array_equal(run(program, placement, 6, machine, streamed, notes), alone)
    run(program, Placement(("a", "a", "a", FAR[0]), "a"), 6, machine, dict.fromkeys(range(3), FAR[0]), every)
    assert [layer for layer, _ in notes.chosen] == list(on_host)
    assert notes.chosen == [one for one in every.chosen if one[0] in on_host]
    assert all(len(rows) == 6 and len(set(row)) == 2 for _, rows in notes.chosen for row in rows)
    assert all(0 <= expert < 5 for _, rows in notes.chosen for row in rows for expert in row)


def test_to_be_timed_a_layer_is_cut_where_its_experts_can_be_put(machine: SimMachine) -> None:
    program = tiny_program(1, n_expert=5)
    backend = opened(("a",), machine)["a"]
    made = plan(program, Placement(("a", "a"), "a"), {"a": backend}, BOUNDS)
    with ExitStack() as stack:

        def zeros(n_bytes: int) -> Memory:
            buffer = backend.allocate(n_bytes, "test")
            stack.callback(buffer.free)
            return buffer.memory

        weights = {(t.name, "a"): zeros(t.n_bytes({})) for t, _ in made.weights}
        notes = Notes()
        notes.before(0).run({})
        segments = made.bind_layer(0, backend, zeros(made.graph_bytes["a"]), weights, notes.after)
        for segment in segments:
            segment.run(BOUNDS)
    assert len(segments) == 3
    assert notes.chosen == [(0, [[0, 1]] * 7)]  # rows of zeros choose the same


def test_of_a_streamed_layer_only_what_touches_its_states_stays_on_the_host(machine: SimMachine) -> None:
    program, placement = tiny_program(2), Placement(("a", FAR[0], "a"), "a")
    backends = opened(("a", FAR[0]), machine)
    made = plans(program, placement, backends, [BOUNDS], {0: FAR[0]})[0]
    steps = [s for s in made.steps if s.op.layer == 0 and not isinstance(s.op, Copy)]
    at_home = {type(step.op) for step in steps if step.device == "a"}
    assert at_home == {StoreKV, Attention}
    assert {made.homes[state] for state in program.states.values() if state.layer == 0} == {"a"}
    assert ("norm.0", FAR[0]) in {(tensor.name, device) for tensor, device in made.weights}


def test_without_a_device_or_without_a_layer_on_the_host_nothing_can_be_streamed(machine: SimMachine) -> None:
    program, backends = tiny_program(2), opened(("a", FAR[0]), machine)
    for layers in (("a", "a", "a"), (FAR[0], FAR[0], "a")):
        assert streamable(program, Placement(layers, "a"), backends) == {}


def test_a_value_is_copied_once_to_each_device_that_reads_it() -> None:
    program = tiny_program(2)
    made = plan(program, Placement(("a", "b", "b"), "a"), opened("ab", None), BOUNDS)
    copied = [(step.op.x, step.device) for step in made.steps if isinstance(step.op, Copy)]
    assert copied
    assert len(set(copied)) == len(copied)


def test_between_two_devices_that_the_host_cannot_reach_lies_a_copy_on_the_host(machine: SimMachine) -> None:
    program = tiny_program(2)
    backends = opened(("a", *FAR), machine)
    made = plan(program, Placement((*FAR, FAR[0]), "a"), backends, BOUNDS)
    moves = [(made.homes[s.op.x], s.device) for s in made.steps if isinstance(s.op, Copy)]
    assert all("a" in move for move in moves)
    assert {(FAR[0], "a"), ("a", FAR[1]), (FAR[1], "a"), ("a", FAR[0])} == set(moves)
    assert made.homes[made.outputs["logits"]] == "a"


def test_inputs_arrive_on_a_host(machine: SimMachine) -> None:
    with pytest.raises(PlanError, match="far:0 is not"):
        plan(tiny_program(1), Placement(("a", "a"), FAR[0]), opened(("a", *FAR), machine), BOUNDS)


def lives(made: Plan) -> dict[Tensor, tuple[int, int]]:
    """First and last step at which each value's bytes are taken; inputs are there before the first."""
    alive: dict[Tensor, tuple[int, int]] = {}
    for index, step in enumerate(made.steps):
        for tensor in (*step.op.reads, *step.op.writes):
            if tensor in made.offsets:
                first, _ = alive.get(tensor, (-1 if tensor.role is Role.INPUT else index, index))
                alive[tensor] = (first, index)
    for tensor in made.outputs.values():
        alive[tensor] = (alive[tensor][0], len(made.steps))
    return alive


def assert_no_overlap(made: Plan) -> None:
    alive = lives(made)
    for a, b in itertools.combinations(made.offsets, 2):
        if made.homes[a] == made.homes[b] and alive[a][0] <= alive[b][1] and alive[b][0] <= alive[a][1]:
            start_a, start_b = made.offsets[a], made.offsets[b]
            ends = start_a + a.n_bytes(BOUNDS), start_b + b.n_bytes(BOUNDS)
            assert ends[0] <= start_b or ends[1] <= start_a, f"{a} and {b} share bytes"


@pytest.mark.parametrize("b", ["b", FAR[0]])
def test_values_that_live_together_share_no_byte_and_stay_inside_the_arena(
    b: str, machine: SimMachine
) -> None:
    backends = opened(("a", b), machine)
    made = plan(tiny_program(4), Placement(("a", b, "a", b, b), "a"), backends, BOUNDS)
    assert_no_overlap(made)
    for tensor, offset in made.offsets.items():
        assert offset % backends[made.homes[tensor]].alignment == 0
        assert offset + tensor.n_bytes(BOUNDS) <= made.arena_bytes[made.homes[tensor]]


@settings(deadline=None, max_examples=20)
@given(st.lists(st.sampled_from("ab"), min_size=4, max_size=4))
def test_each_value_lies_where_the_greedy_rule_puts_it(devices: list[str]) -> None:
    backends = {name: ReferenceBackend(name) for name in "ab"}
    made = plan(tiny_program(3), Placement(tuple(devices), "a"), backends, BOUNDS)
    alive, settled = lives(made), list[Tensor]()
    for tensor in sorted(made.offsets, key=lambda t: -t.n_bytes(BOUNDS)):  # stable, as the plan's own order
        first, last = alive[tensor]
        rivals = [
            (made.offsets[t], made.offsets[t] + t.n_bytes(BOUNDS))
            for t in settled
            if made.homes[t] == made.homes[tensor] and alive[t][0] <= last and first <= alive[t][1]
        ]
        places = sorted({0, *(-(-end // 64) * 64 for _, end in rivals)})
        n_bytes = tensor.n_bytes(BOUNDS)
        free = (at for at in places if all(at + n_bytes <= start or end <= at for start, end in rivals))
        assert made.offsets[tensor] == next(free)
        settled.append(tensor)


def test_more_layers_need_no_more_compute_buffer() -> None:
    def graph_bytes(n_layer: int) -> int:
        backends = {"a": ReferenceBackend("a")}
        return plan(
            tiny_program(n_layer), Placement(("a",) * (n_layer + 1), "a"), backends, BOUNDS
        ).graph_bytes["a"]

    assert graph_bytes(8) == graph_bytes(2)


def test_an_input_that_does_not_fit_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match="input tokens: n_tokens is 9"):
        run(tiny_program(1), Placement(("a", "a"), "a"), n_tokens=9)


def test_shapes_that_do_not_fit_are_refused_while_building() -> None:
    g = ProgramBuilder(1)
    x = g.rows(g.weight("embed", (4, 8), DType.F32), g.input("tokens", (N_TOKENS,)))
    with pytest.raises(ShapeError, match="matmul"):
        g.matmul(x, g.weight("w", (4, 9), DType.F32))


def test_a_constant_is_there_in_each_run_though_its_bytes_are_used_again() -> None:
    g = ProgramBuilder(0)
    ids = g.constant("ids", np.array([2, 0], np.int32))
    table = g.weight("embed", (3, 4), DType.F32)
    x = g.rows(g.rows(table, ids), g.input("outputs", (N_OUTPUTS,)))
    g.output("logits", x)
    host = ReferenceBackend("cpu")
    made = plan(g.build(), Placement(("cpu",), "cpu"), {"cpu": host}, {"n_outputs": 2})
    graph = host.allocate(made.graph_bytes["cpu"], "graph").memory
    rows = np.arange(12, dtype=np.float32).reshape(3, 4)
    executable = made.bind(
        {"cpu": host}, {"cpu": graph}, {("embed", "cpu"): HostMemory(rows.view(np.uint8).reshape(-1))}, {}
    )
    for _ in range(2):
        got = executable.run({"outputs": np.array([1, 0], np.int32)})["logits"]
        np.testing.assert_array_equal(got, rows[[0, 2]])
        host_array(graph)[:] = 255


def test_a_constant_is_of_whole_numbers() -> None:
    with pytest.raises(ShapeError, match="constant ids is of float32, not int32"):
        ProgramBuilder(0).constant("ids", np.zeros(2, np.float32))
