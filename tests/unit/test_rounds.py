"""What follows a runner's answers: single decisions, and whole loads against a simulated runner."""

from collections.abc import Mapping, Sequence

import msgspec
import pytest

from actors.protocol import Device, MemoryItem
from actors.scheduler.attempts import Round, attempt_of
from actors.scheduler.layout import GPU_RESERVE_BYTES, Placement, Policy, all_on_cpu, layout, n_offloaded
from actors.scheduler.rounds import next_step
from actors.scheduler.sizes import GIB, MIB, size_text
from actors.scheduler.steps import Accept, Evict, History, Refuse, Step, Try
from tests.unit.simulated_runner import (
    SimulatedRunner,
    Tells,
    attempt,
    device,
    on_gpus,
    repeats,
    roomy,
    run_load,
)

CPU = device("cpu", 1 << 45)


def runner(
    n_layer: int = 4,
    size: int = 100,
    *,
    cache: int = 0,
    graph_base: int = 0,
    graph_output: int = 0,
    overhead: int = 0,
) -> SimulatedRunner:
    """Equal layers; sizes in MiB."""
    return SimulatedRunner(
        [size * MIB] * (n_layer + 1),
        cache=cache * MIB,
        graph_base=graph_base * MIB,
        graph_output=graph_output * MIB,
        overhead=overhead * MIB,
    )


def judge(
    simulated: SimulatedRunner,
    devices: Sequence[Device],
    *placements: Placement,
    others: Mapping[str, int] | None = None,
    policy: Policy | None = None,
) -> Step:
    """What follows fits of these placements."""
    attempts = tuple(attempt(simulated, Round.FIT, each, devices) for each in placements or ((),))
    names = (("other:1b", sum(others.values())),) if others else ()
    return next_step(History("m", attempts, tuple(devices), policy or Policy(), others or {}, names))


# --- the host ----------------------------------------------------------------------------------------------


def test_on_a_cpu_the_first_fit_is_accepted_with_all_layers_named() -> None:
    step = judge(runner(), [device("cpu", GIB)])
    assert isinstance(step, Accept)
    assert step.placement == all_on_cpu(4)
    assert step.reason == "m at n_ctx 4096 needs 500 MiB, cpu has 1.0 GiB free"


def test_what_cannot_fit_is_refused_with_the_numbers() -> None:
    step = judge(runner(), [device("cpu", 400 * MIB)])
    assert step == Refuse("m at n_ctx 4096 needs 500 MiB, cpu has 400 MiB free", "use a smaller quantisation")


def test_swap_counts_when_nobody_else_could_make_room() -> None:
    step = judge(runner(), [device("cpu", 400 * MIB, swap=100 * MIB)])
    assert isinstance(step, Accept)
    assert step.reason == "m at n_ctx 4096 needs 500 MiB, cpu has 400 MiB free and 100 MiB of swap"
    assert isinstance(judge(runner(), [device("cpu", 400 * MIB, swap=99 * MIB)]), Refuse)


def test_other_models_leave_before_swap_is_used() -> None:
    step = judge(runner(), [device("cpu", 400 * MIB, swap=GIB)], others={"cpu": GIB})
    assert isinstance(step, Evict)
    assert step.shortages == {"cpu": 100 * MIB}
    assert not step.is_preferred


def test_a_refusal_names_the_context_that_would_fit() -> None:
    # 4 layers of 100 MiB cache each at 4096: 500 + 400 wanted, 700 there, so half the cache
    step = judge(runner(cache=100), [device("cpu", 700 * MIB)])
    assert isinstance(step, Refuse)
    assert step.mend.startswith("ask for n_ctx 2048, or ")


def test_a_refusal_names_what_could_be_unloaded() -> None:
    step = judge(runner(), [device("cpu", 100 * MIB)], others={"cpu": 50 * MIB})
    assert isinstance(step, Refuse)
    assert "unload other:1b (50.0 MiB)" in step.mend


def test_two_small_models_stay_side_by_side_where_there_are_no_gpus() -> None:
    step = judge(runner(), [device("cpu", 600 * MIB)], others={"cpu": 500 * MIB})
    assert isinstance(step, Accept)


def test_measured_sizes_above_the_planned_ones_count() -> None:
    devices = (device("cpu", 600 * MIB),)
    planned = runner().answer(Round.ALLOC, all_on_cpu(4), devices)
    cpu = planned.devices[0]
    weights = (MemoryItem(100 * MIB, 200 * MIB, "allocated"),) * 5
    grown = msgspec.structs.replace(planned, devices=(msgspec.structs.replace(cpu, weights=weights),))
    history = History("m", (attempt_of(Round.ALLOC, all_on_cpu(4), grown),), devices, Policy(), {})
    assert isinstance(next_step(history), Refuse)


# --- other models on GPUs ----------------------------------------------------------------------------------


def partly(devices: Sequence[Device], policy: Policy | None = None) -> Placement:
    return layout(attempt(runner(), Round.FIT, (), devices).costs, devices, policy or Policy())


def test_other_models_on_a_gpu_make_way_for_a_full_offload() -> None:
    devices = [CPU, roomy("g", 200)]
    step = judge(runner(), devices, (), partly(devices), others={"g": 400 * MIB})
    assert isinstance(step, Evict)
    assert step.shortages == {"g": 300 * MIB}


def test_each_gpu_that_would_do_without_other_models_is_named() -> None:
    devices = [CPU, roomy("g0", 100), roomy("g1", 100), roomy("g2", 100)]
    held = {"g0": 400 * MIB, "g1": 400 * MIB, "g2": 100 * MIB}
    step = judge(runner(), devices, (), partly(devices), others=held)
    assert isinstance(step, Evict)
    assert set(step.shortages) == {"g0", "g1"}


def test_where_no_gpu_alone_would_do_the_one_with_most_of_others_comes_first() -> None:
    devices = [CPU, roomy("g0", 100), roomy("g1", 100)]
    held = {"g0": 200 * MIB, "g1": 150 * MIB}
    step = judge(runner(), devices, (), partly(devices), others=held)
    assert isinstance(step, Evict)
    assert set(step.shortages) == {"g0"}


def test_room_for_more_layers_on_gpus_is_preferred_where_the_host_could_hold_them() -> None:
    devices = [CPU, roomy("g", 200)]
    step = judge(runner(), devices, (), partly(devices), others={"g": 400 * MIB})
    assert isinstance(step, Evict)
    assert step.is_preferred
    small = [device("cpu", 50 * MIB), roomy("g", 200)]
    step = judge(runner(), small, (), partly(small), others={"g": 400 * MIB})
    assert isinstance(step, Evict)
    assert not step.is_preferred


def test_who_is_content_takes_what_there_is() -> None:
    devices = (CPU, roomy("g", 200))
    attempts = tuple(attempt(runner(), Round.FIT, each, devices) for each in ((), partly(devices)))
    history = History("m", attempts, devices, Policy(), {"g": 400 * MIB}, is_content=True)
    step = next_step(history)
    assert isinstance(step, Accept)
    assert n_offloaded(step.placement) == 2


def test_a_full_fit_needs_eviction_when_n_gpu_is_set_too() -> None:
    """The predecessor's "requireFull n=4"; it once evicted nobody when num_gpu was set."""
    devices = [CPU, roomy("g0", 256)]
    policy = Policy(n_gpu=4)
    simulated = runner(n_layer=3)
    step = judge(simulated, devices, (), others={"g0": 400 * MIB}, policy=policy)
    assert isinstance(step, Try)
    step = judge(simulated, devices, (), step.placement, others={"g0": 400 * MIB}, policy=policy)
    assert isinstance(step, Evict)


def test_others_that_hold_nothing_of_the_gpus_are_left_alone() -> None:
    devices = [CPU, roomy("g", 200)]
    load = run_load(runner(), devices, others={"cpu": 400 * MIB})
    assert load.counts == {"g": 2}


def test_nobody_is_evicted_for_a_load_that_the_host_cannot_hold_anyway() -> None:
    devices = [device("cpu", 100 * MIB), roomy("g", 200)]
    step = judge(runner(9), devices, (), partly(devices), others={"g": 200 * MIB})
    assert isinstance(step, Refuse | Try)
    assert isinstance(run_load(runner(9), devices, others={"g": 200 * MIB}).step, Refuse)


def test_a_number_of_gpu_layers_that_fits_evicts_nobody() -> None:
    load = run_load(runner(), [CPU, roomy("g", 200)], Policy(n_gpu=2), others={"g": 400 * MIB})
    assert load.counts == {"g": 2}


# --- num_gpu -----------------------------------------------------------------------------------------------


def test_a_number_of_gpu_layers_beyond_the_room_is_tried_and_allocated_where_the_device_gives_it() -> None:
    gpu = roomy("g", 300)  # and 457 MiB of reserve, which the driver gives to whoever insists
    load = run_load(runner(), [CPU, gpu], Policy(n_gpu=99))
    assert load.counts == {"g": 5}


def test_a_number_of_gpu_layers_that_cannot_be_allocated_is_refused_by_name() -> None:
    load = run_load(runner(20), [CPU, roomy("g", 300)], Policy(n_gpu=99))
    assert isinstance(load.step, Refuse)
    assert "cannot be allocated with num_gpu 99: g: " in load.step.message


def test_without_gpus_a_number_of_gpu_layers_means_nothing() -> None:
    assert run_load(runner(), [CPU], Policy(n_gpu=3)).counts == {}


# --- fit ---------------------------------------------------------------------------------------------------


def test_39_and_41_layers_end_at_40() -> None:
    """With 41 layers on the GPU its buffer leaves room for 39, with 39 it leaves room for 41."""
    simulated = SimulatedRunner([100 * MIB] * 42, graph_by_count={41: 150 * MIB, 40: 100 * MIB, 39: 0})
    load = run_load(simulated, [CPU, roomy("g", 4100)])
    assert load.counts == {"g": 40}
    fits = [n_offloaded(each.placement) for each in load.attempts if each.round is Round.FIT]
    assert fits == [0, 41, 39, 40]
    assert repeats(load) == []


def test_a_compute_buffer_that_only_a_second_gpu_makes_room_for_uses_two() -> None:
    load = run_load(runner(graph_output=200), [CPU, roomy("a", 600), roomy("b", 600)])
    assert sum(load.counts.values()) == 5
    assert len(load.counts) == 2


def test_a_context_that_every_gpu_in_use_pays_for_is_paid_on_no_other() -> None:
    load = run_load(runner(overhead=300), [CPU, roomy("a", 800), roomy("b", 800), roomy("c", 800)])
    assert load.counts == {"a": 5}
    assert isinstance(load.step, Accept)
    assert {memory.id for memory in load.step.report.devices} == {"cpu", "a"}


def test_devices_are_known_by_id_in_whatever_order_the_runner_names_them() -> None:
    devices = (CPU, roomy("a", 500), roomy("b", 200))
    simulated = runner(6, graph_base=20)
    fitted = run_load(simulated, devices).step
    assert isinstance(fitted, Accept)
    turned = msgspec.structs.replace(fitted.report, devices=fitted.report.devices[::-1])
    history = History("m", (attempt_of(Round.ALLOC, fitted.placement, turned),), devices, Policy(), {})
    assert isinstance(next_step(history), Accept)


def test_a_report_without_devices_is_judged_and_not_a_crash() -> None:
    empty = msgspec.structs.replace(runner().answer(Round.FIT, (), ()), devices=())
    step = next_step(History("m", (attempt_of(Round.FIT, (), empty),), (CPU,), Policy(), {}))
    assert isinstance(step, Accept)


def test_a_failure_of_the_fit_itself_is_never_taken_for_success() -> None:
    failed = msgspec.structs.replace(runner().answer(Round.FIT, (), ()), failure="cpu: no such thing")
    step = next_step(History("m", (attempt_of(Round.FIT, (), failed),), (CPU,), Policy(), {}))
    assert isinstance(step, Refuse)
    assert "cpu: no such thing" in step.message


# --- alloc -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tells", list(Tells))
def test_memory_taken_between_fit_and_alloc_ends_in_fewer_layers(tells: Tells) -> None:
    simulated = runner(40)
    simulated.tells = tells
    gpu = roomy("g", 4200)
    simulated.really = {"g": gpu.free_bytes - GIB - GPU_RESERVE_BYTES}
    load = run_load(simulated, [CPU, gpu])
    assert load.counts == {"g": (4200 - 1024) // 100}
    assert load.n_rounds <= (6 if tells is Tells.ALL else 14)


@pytest.mark.parametrize("tells", list(Tells))
@pytest.mark.parametrize("nth", range(1, 11))
def test_an_allocation_that_fails_once_costs_one_more_try_and_no_layer(tells: Tells, nth: int) -> None:
    simulated = runner(8, graph_base=20, overhead=10)
    simulated.tells, simulated.fail_in = tells, nth
    load = run_load(simulated, [CPU, roomy("g", 1000)])
    assert load.counts == {"g": 9}
    assert [each.round for each in load.attempts].count(Round.ALLOC) == 2


def test_num_gpu_and_the_host_are_not_refused_for_an_allocation_that_fails_once() -> None:
    simulated = runner()
    simulated.fail_in = 1
    assert run_load(simulated, [CPU, roomy("g", 600)], Policy(n_gpu=3)).counts == {"g": 3}
    simulated.fail_in = 1
    assert run_load(simulated, [CPU], others={"cpu": MIB}).counts == {}


@pytest.mark.parametrize("nth", [0, 1, 2, 3])
def test_a_device_that_goes_on_failing_is_asked_once_more_and_no_more(nth: int) -> None:
    """What was given when it failed for good counts, not what was given when it failed for once."""
    simulated = runner()
    simulated.really, simulated.fail_in = {"g": 300 * MIB}, nth
    load = run_load(simulated, [CPU, roomy("g", 600)])
    assert load.counts == {"g": 3}
    asked = [n_offloaded(each.placement) for each in load.attempts if each.round is Round.ALLOC]
    assert asked == [5, 5, 3]


def test_a_gpu_that_gives_nothing_is_left_for_the_cpu() -> None:
    simulated = runner()
    simulated.really = {"g": 0}
    assert run_load(simulated, [CPU, roomy("g", 900)]).counts == {}


def test_a_gpu_that_lies_is_left_for_one_that_does_not() -> None:
    simulated = runner()
    simulated.really = {"a": 100 * MIB}
    assert run_load(simulated, [CPU, roomy("a", 700), roomy("b", 600)]).counts == {"b": 5}


def test_a_failed_allocation_on_the_cpu_is_refused_by_name() -> None:
    simulated = runner()
    simulated.really = {"cpu": 450 * MIB}
    load = run_load(simulated, [CPU])
    assert isinstance(load.step, Refuse)
    assert "cannot be allocated: cpu: " in load.step.message


def test_a_failed_allocation_on_the_cpu_evicts_while_there_are_others() -> None:
    simulated = runner()
    simulated.really = {"cpu": 450 * MIB}
    assert isinstance(run_load(simulated, [CPU], others={"cpu": MIB}).step, Evict)


def test_host_memory_that_fails_takes_no_layers_off_the_gpu() -> None:
    simulated = runner()
    simulated.really = {"cpu": 150 * MIB}
    load = run_load(simulated, [CPU, roomy("g", 300)])
    assert isinstance(load.step, Refuse)
    assert [each.round for each in load.attempts].count(Round.ALLOC) == 2


def test_what_the_user_keeps_free_is_kept_free_of_what_was_measured_too() -> None:
    """A context larger than planned may use the reserve, but not the user's part."""
    devices = (CPU, roomy("g", 600))
    fitted = runner().answer(Round.ALLOC, layout_all(), devices)
    parts = [
        part if part.id == "cpu" else msgspec.structs.replace(part, overhead=MemoryItem(0, 300 * MIB))
        for part in fitted.devices
    ]
    measured = msgspec.structs.replace(fitted, devices=tuple(parts))
    attempts = (attempt_of(Round.ALLOC, layout_all(), measured),)
    assert isinstance(next_step(History("m", attempts, devices, Policy(), {})), Accept)
    policy = Policy(gpu_overhead_bytes=300 * MIB)
    step = next_step(History("m", attempts, devices, policy, {}))
    assert isinstance(step, Try)
    assert n_offloaded(step.placement) < 5


def layout_all() -> Placement:
    devices = [CPU, roomy("g", 9000)]
    return layout(attempt(runner(), Round.FIT, (), devices).costs, devices, Policy())


def test_after_a_larger_placement_failed_the_one_that_did_fit_is_taken_again() -> None:
    simulated = runner(40)
    simulated.tells = Tells.NOTHING
    gpu = roomy("g", 4100)
    simulated.really = {"g": 3250 * MIB}
    load = run_load(simulated, [CPU, gpu])
    assert load.counts == {"g": 32}
    allocs = [each for each in load.attempts if each.round is Round.ALLOC]
    assert not allocs[-1].report.failure
    assert repeats(load) == []


# --- few layers --------------------------------------------------------------------------------------------


def measured(gpu: Device, host_gbs: float, gpu_gbs: float, copy_ms: float) -> tuple[Device, Device]:
    return (
        msgspec.structs.replace(CPU, bytes_per_s=host_gbs * 1e9),
        msgspec.structs.replace(gpu, bytes_per_s=gpu_gbs * 1e9, copy_s=copy_ms / 1000),
    )


def test_few_layers_that_would_slow_a_token_down_are_left_on_the_cpu() -> None:
    """15.6 tokens/s with 4 layers offloaded, 21.3 with none: a copy cost that machine 10 ms."""
    devices = measured(roomy("g", 400), host_gbs=40, gpu_gbs=300, copy_ms=10)
    load = run_load(runner(32), devices)
    assert load.counts == {}
    fits = tuple(each for each in load.attempts if each.round is Round.FIT)
    decided = next_step(History("m", fits, devices, Policy(), {}))
    assert isinstance(decided, Accept)
    assert "4 of 33 layers on GPUs would take 97.4 ms a token, none 86.5 ms" in decided.reason


def test_layers_that_gain_more_than_their_copies_cost_are_offloaded() -> None:
    devices = measured(roomy("g", 400), host_gbs=40, gpu_gbs=300, copy_ms=1)
    assert run_load(runner(32), devices).counts == {"g": 4}


def test_a_number_of_gpu_layers_overrides_the_rule() -> None:
    devices = measured(roomy("g", 400), host_gbs=40, gpu_gbs=300, copy_ms=10)
    assert run_load(runner(32), devices, Policy(n_gpu=4)).counts == {"g": 4}


def test_a_whole_model_is_offloaded_whatever_a_copy_costs() -> None:
    devices = measured(roomy("g", 4000), host_gbs=40, gpu_gbs=300, copy_ms=1000)
    assert run_load(runner(32), devices).counts == {"g": 33}


def test_nobody_is_evicted_for_layers_that_would_slow_a_token_down() -> None:
    devices = measured(roomy("g", 100), host_gbs=40, gpu_gbs=300, copy_ms=10)
    load = run_load(runner(32), devices, others={"g": 300 * MIB})
    assert load.counts == {}


def test_few_layers_are_offloaded_all_the_same_where_the_host_could_not_hold_them() -> None:
    devices = measured(roomy("g", 400), host_gbs=40, gpu_gbs=300, copy_ms=10)
    tight = (msgspec.structs.replace(devices[0], free_bytes=3000 * MIB), devices[1])
    assert run_load(runner(32), tight).counts == {"g": 4}


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


def test_a_gpu_layout_names_its_layers_once() -> None:
    load = run_load(runner(), [CPU, roomy("g", 300)])
    assert isinstance(load.step, Accept)
    assert on_gpus(load.step.placement) == {"g": (1, 2, 3)}
