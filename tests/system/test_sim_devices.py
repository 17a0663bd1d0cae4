"""Models on simulated devices, through the whole runtime: placement, other programs, faults, eviction."""

import pytest

from tests.system.sim_runtime import (
    ALL_BYTES,
    BESIDE_BYTES,
    CPU,
    LAYER_BYTES,
    MIB,
    N_LAYER,
    SETTLED_S,
    A,
    Asked,
    B,
    measured,
    offloaded,
    simulated,
)

FOUR_LAYERS = BESIDE_BYTES + 4 * LAYER_BYTES
TWO_LAYERS = BESIDE_BYTES + 2 * LAYER_BYTES


@pytest.fixture(scope="module")
def expected() -> list[int]:
    """What the model of seed 1 answers without any device."""
    with simulated({}) as alone:
        alone.add_model("m")
        answer = alone.answer("m")
        assert len(answer) > 8
        return answer


def test_a_model_lies_on_two_small_devices_and_the_host_as_planned_and_answers_as_there(
    expected: list[int],
) -> None:
    with simulated({A: FOUR_LAYERS, B: TWO_LAYERS}) as sim:
        sim.add_model("m")
        assert sim.answer("m") == expected
        report = sim.loaded()["m"].report
        counts = offloaded(report)
        assert counts[A] >= 3, counts
        assert counts[B] >= 1, counts
        assert sum(counts.values()) == N_LAYER + 1
        assert measured(report) == sim.used()
        for device in report.devices:
            items = (*device.weights, *device.cache, device.graph)
            assert [i.measured_bytes for i in items] == [i.planned_bytes for i in items], device.id
        shown = sim.command("ps", "--layers")
        assert {"m:latest:", A, B} <= {*shown.split()}, shown
        # the runner's names are those that discovery found
        assert {d.id: d.name for d in report.devices} == sim.device_names(), shown
        assert f"{A} (Simulated accelerator)\n" in shown
        sim.wait_until_nothing_is_left("m")


def test_layers_of_the_host_are_streamed_through_memory_that_was_planned(expected: list[int]) -> None:
    room = TWO_LAYERS + 2 * LAYER_BYTES  # and two slots
    with simulated({A: room}, RUNTIME_STREAM_FROM="2") as sim:
        sim.add_model("m")
        assert sim.answer("m") == expected
        report = sim.loaded()["m"].report
        assert 1 <= offloaded(report)[A] <= 2
        assert measured(report) == sim.used()
        device = next(one for one in report.devices if one.id == A)
        assert device.overhead.planned_bytes == device.overhead.measured_bytes > 2 * 4 * MIB
        sim.wait_until_nothing_is_left("m")


def test_another_program_takes_memory_between_fit_and_alloc_and_fewer_layers_are_loaded(
    expected: list[int],
) -> None:
    with simulated({A: ALL_BYTES}) as sim:
        sim.add_model("m")
        taken = sim.machine.free(A) - BESIDE_BYTES - 4 * LAYER_BYTES
        sim.machine.take_before_allocation("game", A, taken)
        assert sim.answer("m") == expected
        counts = offloaded(sim.loaded()["m"].report)
        assert 1 <= counts[A] <= 4, counts
        assert measured(sim.loaded()["m"].report)[A] + taken == sim.machine.used(A)
        shown = sim.command("why", "m")
        assert f"{A} could not allocate" in shown, shown
        sim.unload("m")
        sim.machine.give_back("game", A)
        sim.wait_until_nothing_is_left("m")


@pytest.mark.parametrize("truth", [0.4, 0.9])
def test_a_device_that_says_it_has_more_than_it_has_ends_with_a_layout_that_fits(
    expected: list[int], truth: float
) -> None:
    with simulated({A: ALL_BYTES}) as sim:
        sim.add_model("m")
        sim.machine.take("game", A, int(sim.machine.free(A) - truth * 10 * LAYER_BYTES))
        sim.machine.lie(A, 1e9)  # all of it, it says
        assert sim.answer("m") == expected
        report = sim.loaded()["m"].report
        held = measured(report).get(A, 0)
        assert held <= truth * 10 * LAYER_BYTES
        assert offloaded(report)[A] >= truth * 10 - 2, sim.command("why", "m")


def test_a_device_that_says_it_has_less_than_it_has_is_used_as_it_says(expected: list[int]) -> None:
    with simulated({A: ALL_BYTES}) as sim:
        sim.add_model("m")
        believed = (sim.machine.free(A) - ALL_BYTES + FOUR_LAYERS) / sim.machine.free(A)
        sim.machine.lie(A, believed)
        sim.wait_until_the_scheduler_sees("m")
        assert sim.answer("m") == expected
        assert 3 <= offloaded(sim.loaded()["m"].report)[A] <= 4


@pytest.mark.parametrize("n", [1, 2, 5])
def test_the_load_goes_on_where_an_allocation_fails(expected: list[int], n: int) -> None:
    with simulated({A: ALL_BYTES, B: ALL_BYTES}) as sim:
        sim.add_model("m")
        sim.machine.fail_allocation(A, n)
        sim.machine.fail_allocation(B, n)
        assert sim.answer("m") == expected
        report = sim.loaded()["m"].report
        assert measured(report) == sim.used()
        assert CPU not in offloaded(report), sim.command("why", "m")  # one failure costs no layer
        assert "could not allocate" in sim.command("why", "m")
        sim.wait_until_nothing_is_left("m")


def test_two_models_have_a_device_each_and_a_third_evicts_one() -> None:
    one = BESIDE_BYTES + 10 * LAYER_BYTES
    with simulated({A: one, B: one}) as sim:
        for seed, name in enumerate(("m", "n", "o"), 1):
            sim.add_model(name, seed)
        both = [asked.result() for asked in (Asked(sim, "m"), Asked(sim, "n"))]
        assert [response.status_code for response in both] == [200, 200], [r.text for r in both]
        (one_from, one_to), (two_from, two_to) = sorted(sim.load_times())
        assert max(one_from, two_from) < min(one_to, two_to)
        first = {name: measured(model.report) for name, model in sim.loaded().items()}
        assert sorted(map(sorted, first.values())) == [[A], [B]], first
        sim.answer("o")
        after = sim.loaded()
        (left,) = first.keys() - after.keys()
        found = sim.decision("o").evictions[-1].candidates
        candidates = {each.name.partition(":")[0]: each for each in found}
        assert candidates[left].cost == min(each.cost for each in candidates.values())
        assert after.keys() == first.keys() - {left} | {"o"}, sim.command("why", "o")
        assert offloaded(after["o"].report) == dict.fromkeys(first[left], N_LAYER + 1)
        assert f"evicting {left}" in sim.command("why", "o")
        for name, model in after.items():
            assert measured(model.report).items() <= sim.used().items(), name
        sim.wait_until_nothing_is_left("m", "n", "o")


def test_requests_while_memory_comes_and_goes_are_answered_or_refused_in_words(expected: list[int]) -> None:
    with simulated({A: ALL_BYTES, B: TWO_LAYERS}) as sim:
        sim.add_model("m")
        for n in range(6):
            sim.machine.take_before_allocation("game", A, (n + 1) * 10 * MIB)
            sim.machine.fail_allocation(B, n)
            for asked in [Asked(sim, "m") for _ in range(3)]:
                assert asked.result().json().get("context", expected) == expected
            sim.unload("m")
            sim.runtime.wait_until(lambda: not sim.loaded(), SETTLED_S)
            sim.machine.give_back("game", A)
        sim.wait_until_nothing_is_left("m")


def test_any_amount_of_memory_ends_in_few_rounds_with_as_many_layers_as_it_holds() -> None:
    """The predecessor went to and fro between 39 and 41 layers where 40 fitted."""
    with simulated({A: BESIDE_BYTES + 9 * LAYER_BYTES}) as sim:
        sim.add_model("m")
        loaded: list[int] = []
        for n_quarters in range(13):  # from the whole model to three layers less
            sim.machine.take("game", A, n_quarters * LAYER_BYTES // 4)
            sim.answer("m")
            loaded.append(offloaded(sim.loaded()["m"].report)[A])
            asked = [each for each in sim.decision("m").rounds if each.question == "fit"]
            assert len(asked) < 10, sim.command("why", "m")
            placements = [each.placement for each in asked]
            assert len(placements) == len(set(placements)), sim.command("why", "m")
            sim.machine.give_back("game", A)
            sim.unload("m")
            sim.runtime.wait_until(lambda: not sim.loaded(), SETTLED_S)
        assert loaded == sorted(loaded, reverse=True)
        assert loaded[0] == N_LAYER + 1
        assert len(set(loaded)) > 2, loaded
        sim.wait_until_nothing_is_left("m")
