"""Where layers go, and what follows a runner's report: pure, with a simulated runner for whole loads."""

from collections.abc import Mapping, Sequence

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from actors.protocol import Device, DeviceMemory, LayerPlacement, MemoryItem, MemoryReport
from actors.scheduler.layout import (
    GPU_RESERVE_BYTES,
    Accept,
    Costs,
    Evict,
    History,
    Placement,
    Policy,
    Refuse,
    Round,
    Step,
    Try,
    layout,
    n_offloaded,
    next_step,
)
from actors.scheduler.sizes import GIB, MIB, size_text

N_STEPS_MAX = 40


def device(device_id: str, free: int, library: str = "cuda", *, is_integrated: bool = False) -> Device:
    kind = "cpu" if device_id == "cpu" else library
    return Device(
        id=device_id,
        library=kind,
        name=device_id,
        total_bytes=1 << 50,
        free_bytes=free,
        is_integrated=is_integrated,
    )


def gpu_for(n_layers: int, layer_bytes: int = 100 * MIB) -> int:
    """Free bytes of a GPU that takes exactly so many layers."""
    return GPU_RESERVE_BYTES + n_layers * layer_bytes


def costs(n_layer: int, layer_bytes: int = 100 * MIB) -> Costs:
    return Costs(layers=(layer_bytes,) * (n_layer + 1), input_bytes=0, graph={}, overhead={})


def by_device(placement: Placement) -> dict[str, tuple[int, ...]]:
    return {part.device: part.layers for part in placement}


def report(
    placement: Placement,
    n_layer: int = 4,
    weight: int = 100 * MIB,
    cache: int = 0,
    graph: Mapping[str, int] | None = None,
    failure: str = "",
) -> MemoryReport:
    """A runner's answer: equal layers, all but the placed ones on the CPU."""
    layers_of = {part.device: set(part.layers) for part in placement if part.device != "cpu"}
    layers_of["cpu"] = set(range(n_layer + 1)) - set().union(*layers_of.values())

    def items(size: int, layers: set[int], n: int) -> tuple[MemoryItem, ...]:
        return tuple(MemoryItem(size if i in layers and i < n else 0) for i in range(n_layer + 1))

    return MemoryReport(
        devices=tuple(
            DeviceMemory(
                id=name,
                name=name,
                weights=items(weight, layers, n_layer + 1),
                cache=items(cache, layers, n_layer),
                graph=MemoryItem((graph or {}).get(name, 0) if layers else 0),
                overhead=MemoryItem(0),
            )
            for name, layers in layers_of.items()
        ),
        input_weights=MemoryItem(0),
        n_layer=n_layer,
        n_ctx=4096,
        n_ctx_train=8192,
        n_batch=512,
        n_parallel=1,
        failure=failure,
    )


def history(
    devices: Sequence[Device],
    *tried: Placement,
    round_: Round = Round.FIT,
    others: Mapping[str, int] | None = None,
    policy: Policy | None = None,
) -> History:
    return History(
        name="m",
        round=round_,
        tried=tried or ((),),
        devices=tuple(devices),
        policy=policy or Policy(),
        others=others or {},
        other_names=(("other:1b", sum(others.values())),) if others else (),
    )


# --- layout ------------------------------------------------------------------------------------------------


def test_without_gpus_every_layer_is_on_the_cpu() -> None:
    assert by_device(layout(costs(2), [device("cpu", GIB)], Policy())) == {"cpu": (0, 1, 2)}


def test_with_room_every_layer_is_on_the_gpu() -> None:
    devices = [device("cpu", GIB), device("g", gpu_for(3))]
    assert by_device(layout(costs(2), devices, Policy())) == {"g": (0, 1, 2)}


def test_a_model_that_fits_one_gpu_uses_one() -> None:
    devices = [device("cpu", GIB), device("small", gpu_for(9)), device("large", gpu_for(10))]
    assert by_device(layout(costs(4), devices, Policy())) == {"large": (0, 1, 2, 3, 4)}


def test_without_room_for_all_the_output_layer_stays_on_the_cpu() -> None:
    devices = [device("cpu", GIB), device("g", gpu_for(3))]
    assert by_device(layout(costs(4), devices, Policy())) == {"g": (1, 2, 3), "cpu": (0, 4)}


def test_two_gpus_share_what_one_cannot_take() -> None:
    devices = [device("cpu", GIB), device("a", gpu_for(3)), device("b", gpu_for(2))]
    assert by_device(layout(costs(4), devices, Policy())) == {"b": (3, 4), "a": (0, 1, 2)}


def test_discrete_gpus_come_before_integrated_ones() -> None:
    devices = [device("igpu", gpu_for(9), is_integrated=True), device("dgpu", gpu_for(5))]
    assert by_device(layout(costs(4), devices, Policy())) == {"dgpu": (0, 1, 2, 3, 4)}


def test_libraries_are_not_mixed() -> None:
    devices = [device("a", gpu_for(3), "cuda"), device("b", gpu_for(2), "rocm")]
    assert by_device(layout(costs(4), devices, Policy())) == {"a": (1, 2, 3), "cpu": (0, 4)}


def test_an_unusable_gpu_gets_nothing() -> None:
    broken = Device(
        id="g", library="cuda", name="g", total_bytes=GIB, free_bytes=GIB, is_usable=False, reason="old"
    )
    assert by_device(layout(costs(2), [device("cpu", GIB), broken], Policy())) == {"cpu": (0, 1, 2)}


@pytest.mark.parametrize(
    ("n_gpu", "on_gpu"), [(0, ()), (1, (3,)), (4, (0, 1, 2, 3)), (5, (0, 1, 2, 3, 4)), (99, (0, 1, 2, 3, 4))]
)
def test_n_gpu_counts_repeating_layers_from_the_end_and_the_output_last(
    n_gpu: int, on_gpu: tuple[int, ...]
) -> None:
    devices = [device("cpu", GIB), device("g", gpu_for(50))]
    assert by_device(layout(costs(4), devices, Policy(n_gpu=n_gpu))).get("g", ()) == on_gpu


sizes = st.integers(1, 64).map(lambda n: n * 16 * MIB)
gpus = st.lists(st.integers(0, 200).map(lambda n: n * 16 * MIB), min_size=0, max_size=4).map(
    lambda frees: [device(f"g{i}", free) for i, free in enumerate(frees)]
)


@given(layers=st.lists(sizes, min_size=1, max_size=40), devices=gpus, n_gpu=st.integers(-1, 45))
def test_every_layer_is_placed_once_and_no_gpu_is_overfilled(
    layers: list[int], devices: list[Device], n_gpu: int
) -> None:
    placement = layout(Costs(tuple(layers), 0, {}, {}), devices, Policy(n_gpu=n_gpu))
    placed = [layer for part in placement for layer in part.layers]
    assert sorted(placed) == list(range(len(layers)))
    free = {each.id: each.free_bytes for each in devices}
    for part in placement:
        if part.device != "cpu":
            assert sum(layers[i] for i in part.layers) <= free[part.device] - GPU_RESERVE_BYTES


@given(layers=st.lists(sizes, min_size=1, max_size=40), free=st.integers(0, 4096), more=st.integers(0, 4096))
def test_more_free_memory_never_places_fewer_repeating_layers(
    layers: list[int], free: int, more: int
) -> None:
    def n_repeating(free_mib: int) -> int:
        placement = layout(Costs(tuple(layers), 0, {}, {}), [device("g", free_mib * MIB)], Policy())
        return len(set(by_device(placement).get("g", ())) - {len(layers) - 1})

    assert n_repeating(free + more) >= n_repeating(free)


# --- next_step ---------------------------------------------------------------------------------------------


def test_on_a_cpu_the_first_fit_is_accepted_with_all_layers_named() -> None:
    step = next_step(history([device("cpu", GIB)]), report(()))
    assert step == Accept(
        (LayerPlacement("cpu", (0, 1, 2, 3, 4)),), "m at n_ctx 4096 needs 500 MiB, cpu has 1.0 GiB free"
    )


def test_what_cannot_fit_is_refused_with_the_numbers() -> None:
    step = next_step(history([device("cpu", 400 * MIB)]), report(()))
    assert step == Refuse("m at n_ctx 4096 needs 500 MiB, cpu has 400 MiB free", "use a smaller quantisation")


def test_a_refusal_names_the_context_that_would_fit() -> None:
    # 4 layers of 100 MiB cache each at 4096: 500 + 400 wanted, 700 there, so half the cache
    step = next_step(history([device("cpu", 700 * MIB)]), report((), cache=100 * MIB))
    assert isinstance(step, Refuse)
    assert step.mend.startswith("ask for n_ctx 2048, or ")


def test_a_refusal_names_what_could_be_unloaded() -> None:
    step = next_step(history([device("cpu", 100 * MIB)], others={"cpu": 50 * MIB}), report(()))
    assert isinstance(step, Refuse)
    assert "unload other:1b (50.0 MiB)" in step.mend


def test_what_would_fit_without_others_evicts_by_the_shortage() -> None:
    step = next_step(history([device("cpu", 400 * MIB)], others={"cpu": GIB}), report(()))
    assert isinstance(step, Evict)
    assert (step.device, step.shortage_bytes) == ("cpu", 100 * MIB)


def test_measured_sizes_above_the_planned_ones_count() -> None:
    planned = report(())
    measured = [MemoryItem(100 * MIB, 200 * MIB, "allocated")] * 5
    cpu = planned.devices[0]
    grown = MemoryReport(
        devices=(DeviceMemory(cpu.id, cpu.name, tuple(measured), cpu.cache, cpu.graph, cpu.overhead),),
        input_weights=planned.input_weights,
        n_layer=4,
        n_ctx=4096,
        n_ctx_train=8192,
        n_batch=512,
        n_parallel=1,
    )
    assert isinstance(next_step(history([device("cpu", 600 * MIB)], round_=Round.ALLOC), grown), Refuse)


def test_other_models_on_a_gpu_make_way_for_a_full_offload() -> None:
    devices = [device("cpu", 9 * GIB), device("g", gpu_for(2))]
    first = layout(costs(4), devices, Policy())
    step = next_step(history(devices, (), first, others={"g": 400 * MIB}), report(first))
    assert isinstance(step, Evict)
    assert (step.device, step.shortage_bytes) == ("g", 300 * MIB)


def test_a_fixed_number_of_gpu_layers_that_fits_evicts_nobody() -> None:
    devices = [device("cpu", 9 * GIB), device("g", gpu_for(2))]
    policy = Policy(n_gpu=2)
    first = layout(costs(4), devices, policy)
    step = next_step(history(devices, (), first, others={"g": 400 * MIB}, policy=policy), report(first))
    assert isinstance(step, Accept)


def test_a_failed_allocation_on_a_gpu_backs_off_to_fewer_layers() -> None:
    devices = [device("cpu", 9 * GIB), device("g", gpu_for(20))]
    first = layout(costs(4), devices, Policy())
    step = next_step(history(devices, first, round_=Round.ALLOC), report(first, failure="g: weights.4"))
    assert isinstance(step, Try)
    assert n_offloaded(step.placement) < 5


def test_a_failed_allocation_on_the_cpu_alone_is_refused_by_name() -> None:
    cpu = (LayerPlacement("cpu", (0, 1, 2, 3, 4)),)
    step = next_step(
        history([device("cpu", GIB)], cpu, round_=Round.ALLOC), report(cpu, failure="cpu: graph")
    )
    assert isinstance(step, Refuse)
    assert "cannot be allocated: cpu: graph" in step.message


def test_a_failed_allocation_evicts_while_there_are_others() -> None:
    cpu = (LayerPlacement("cpu", (0, 1, 2, 3, 4)),)
    given_history = history([device("cpu", GIB)], cpu, round_=Round.ALLOC, others={"cpu": MIB})
    assert isinstance(next_step(given_history, report(cpu, failure="cpu: graph")), Evict)


def run_load(
    devices: Sequence[Device], n_layer: int, weight: int, graph: int, lie: float, policy: Policy
) -> tuple[Step, int]:
    """A whole load against a runner whose GPUs really have `1 - lie` of the memory they say."""
    n_steps = 0
    placement: Placement = ()
    step: Step = Refuse("", "")
    for round_ in Round:
        tried: tuple[Placement, ...] = ()
        while True:
            n_steps += 1
            tried = (*tried, placement)
            used = {part.device: graph for part in placement}
            answer = report(placement, n_layer, weight, graph=used)
            if round_ is Round.ALLOC and not really_fits(answer, devices, lie):
                answer = report(placement, n_layer, weight, graph=used, failure="g: weights")
            given_history = history(devices, *tried, round_=round_, policy=policy)
            step = next_step(given_history, answer)
            if not isinstance(step, Try):
                break
            placement, policy = step.placement, step.policy
        if not isinstance(step, Accept):
            break
        placement = step.placement
    return step, n_steps


def really_fits(answer: MemoryReport, devices: Sequence[Device], lie: float) -> bool:
    free = {each.id: each.free_bytes * (1 - lie) for each in devices}
    return all(
        sum(item.planned_bytes for item in memory.weights) + memory.graph.planned_bytes <= free[memory.id]
        for memory in answer.devices
        if memory.id != "cpu"
    )


@example(  # two GPUs would do if neither needed a graph: the layout that the graphs leave is kept
    devices=[device("g0", 1088 * MIB), device("g1", 1104 * MIB)],
    n_layer=1,
    weight=624 * MIB,
    graph=8 * MIB,
    lie=0.0,
    n_gpu=-1,
)
@given(
    devices=gpus,
    n_layer=st.integers(1, 60),
    weight=sizes,
    graph=st.integers(0, 2000).map(lambda n: n * MIB),
    lie=st.floats(0, 0.9),
    n_gpu=st.integers(-1, 70),
)
def test_a_load_ends_soon_and_an_accepted_layout_really_allocates(
    devices: list[Device], n_layer: int, weight: int, graph: int, lie: float, n_gpu: int
) -> None:
    everything = [device("cpu", 1 << 45), *devices]
    step, n_steps = run_load(everything, n_layer, weight, graph, lie, Policy(n_gpu=n_gpu))
    assert n_steps < N_STEPS_MAX
    if n_gpu < 0:
        assert isinstance(step, Accept)


@pytest.mark.parametrize(
    ("n_bytes", "text"),
    [
        (0, "0 B"),
        (1 << 10, "1.0 KiB"),
        (300 * MIB, "300 MiB"),
        (-(2 * GIB), "-2.0 GiB"),
        (6 * GIB, "6.0 GiB"),
    ],
)
def test_sizes_read_as_people_say_them(n_bytes: int, text: str) -> None:
    assert size_text(n_bytes) == text
