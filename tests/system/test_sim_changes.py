"""Devices and drivers that come, go and fail while the runtime is up."""

import pytest

from kernels.sim.state import ProbeScript
from tests.system.sim_runtime import (
    ALL_BYTES,
    N_LAYER,
    SETTLED_S,
    A,
    Asked,
    B,
    offloaded,
    room_for,
    simulated,
)

SOON_S = 40.0  # a library that failed is looked at again after 1, 2, 4... s, one that had nothing after 30 s


def test_a_device_that_comes_is_used_and_one_that_goes_is_not() -> None:
    with simulated({A: ALL_BYTES}) as sim:
        sim.add_model("m")
        answer = sim.answer("m")
        sim.wait_until_nothing_is_left("m")
        sim.machine.add_device(B, room_for(ALL_BYTES))
        sim.runtime.wait_until(lambda: {A, B} <= {*sim.devices()}, SETTLED_S)
        sim.machine.remove_device(A)
        sim.runtime.wait_until(lambda: A not in sim.devices(), SETTLED_S)
        assert sim.answer("m") == answer
        assert offloaded(sim.loaded()["m"].report) == {B: N_LAYER + 1}
        sim.wait_until_nothing_is_left("m")


@pytest.mark.parametrize(
    ("script", "said"),
    [
        (ProbeScript(is_crashing=True), "SIGSEGV"),
        (ProbeScript(is_hanging=True), "did not answer"),
    ],
)
def test_a_broken_driver_leaves_the_host_and_is_used_once_it_works(script: ProbeScript, said: str) -> None:
    with simulated({A: ALL_BYTES}, script, RUNTIME_PROBE_TIMEOUT="2") as sim:
        sim.add_model("m")
        answer = sim.answer("m")
        assert sim.used() == {}
        assert said in sim.command("doctor")
        sim.machine.script_probe(ProbeScript())
        sim.runtime.wait_until(lambda: A in sim.devices(), SOON_S)
        sim.wait_until_nothing_is_left("m")
        assert sim.answer("m") == answer
        assert offloaded(sim.loaded()["m"].report) == {A: N_LAYER + 1}


def test_a_device_that_goes_from_under_a_model_takes_nobody_along() -> None:
    with simulated({A: ALL_BYTES, B: ALL_BYTES}) as sim:
        sim.add_model("m")
        answer = sim.answer("m")
        (device,) = sim.used()
        sim.machine.remove_device(device)
        sim.runtime.wait_until(lambda: device not in sim.devices(), SETTLED_S)
        asked = Asked(sim, "m").result()
        assert asked.json().get("context", answer) == answer
        sim.wait_until_nothing_is_left("m")
        assert sim.answer("m") == answer
        assert sim.used().keys() == {A, B} - {device}
        sim.wait_until_nothing_is_left("m")


def test_a_device_without_room_leaves_the_host_and_is_used_when_the_other_program_is_gone() -> None:
    with simulated({A: ALL_BYTES}) as sim:
        sim.add_model("m")
        sim.machine.take("game", A, sim.machine.free(A))
        sim.wait_until_the_scheduler_sees("m")
        answer = sim.answer("m")
        assert sim.machine.holders(A) == ()
        sim.machine.give_back("game", A)
        sim.wait_until_nothing_is_left("m")
        sim.wait_until_the_scheduler_sees("m")
        assert sim.answer("m") == answer
        assert offloaded(sim.loaded()["m"].report) == {A: N_LAYER + 1}
