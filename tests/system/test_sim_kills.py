"""Kills at the worst moment, with models on simulated devices: the truth is recovered, and every byte."""

import json
import os
import re
import signal
from collections.abc import Callable
from typing import Any

import pytest

from tests.system.sim_runtime import (
    ALL_BYTES,
    BESIDE_BYTES,
    LAYER_BYTES,
    LONG,
    SETTLED_S,
    A,
    Asked,
    B,
    SimRuntime,
    body,
    measured,
    simulated,
)

ONE_MODEL = BESIDE_BYTES + 10 * LAYER_BYTES


def test_a_stream_goes_on_when_its_runner_is_killed_and_the_device_has_only_the_new_one() -> None:
    with simulated({A: ALL_BYTES}) as sim:
        sim.add_model("m")
        undisturbed = sim.answer("m", **LONG)
        (killed,) = sim.machine.holders(A)
        last: dict[str, Any] = {}
        streamed = {**body("m", **LONG), "stream": True}
        with sim.runtime.http.stream("POST", "/api/generate", json=streamed) as response:
            for n, line in enumerate(response.iter_lines()):
                if n == 3:
                    os.kill(killed, signal.SIGKILL)
                last = json.loads(line)
        assert last.get("context") == undisturbed, last
        assert sim.runtime.stats("gateway").gauges["streams_resumed_total"] == 1
        (living,) = sim.machine.holders(A)
        assert living != killed
        assert measured(sim.loaded()["m"].report) == sim.used()
        sim.wait_until_nothing_is_left("m")


def test_a_killed_idle_runner_holds_nothing_and_the_next_request_loads_anew() -> None:
    with simulated({A: ALL_BYTES}) as sim:
        sim.add_model("m")
        answer = sim.answer("m")
        (killed,) = sim.machine.holders(A)
        os.kill(killed, signal.SIGKILL)
        sim.runtime.wait_until(lambda: sim.used() == {} and not sim.loaded(), SETTLED_S)
        assert sim.answer("m") == answer
        assert measured(sim.loaded()["m"].report) == sim.used()
        sim.wait_until_nothing_is_left("m")


def has_runner(sim: SimRuntime) -> bool:
    return bool(sim.runtime.runner_pids())


def has_memory(sim: SimRuntime) -> bool:
    return bool(sim.used())


@pytest.mark.parametrize("has_begun", [has_runner, has_memory])
def test_the_scheduler_is_killed_in_the_middle_of_a_load(has_begun: Callable[[SimRuntime], bool]) -> None:
    with simulated({A: ALL_BYTES, B: ALL_BYTES}) as sim:
        sim.add_model("m")
        first: list[Asked] = []
        given_up: set[int] = set()

        def is_loading() -> bool:
            first[:] = first or [Asked(sim, "m")]
            given_up.update(sim.runtime.runner_pids())
            return has_begun(sim)

        sim.kill_scheduler_once(is_loading)
        first[0].result()
        sim.answer("m")
        assert given_up.isdisjoint(sim.runtime.runner_pids())  # or else the kill came too late
        assert measured(sim.loaded()["m"].report) == sim.used()
        assert len(sim.runtime.runner_pids()) == 1
        sim.wait_until_nothing_is_left("m")


def test_the_scheduler_is_killed_while_an_eviction_waits_for_a_stream() -> None:
    with simulated({A: ONE_MODEL}) as sim:
        sim.add_model("m", 1)
        sim.add_model("n", 2)
        longer = {**LONG, "num_predict": 600}  # the context is shifted several times
        undisturbed = sim.answer("m", **longer)
        stream = Asked(sim, "m", **longer)
        sim.runtime.wait_until(lambda: sim.loaded()["m"].n_leases > 0, SETTLED_S)
        waiter = Asked(sim, "n")
        sim.kill_scheduler_once(lambda: "users of m" in sim.waits_for("n") or stream.is_done)
        assert not stream.is_done
        assert stream.result().json()["context"] == undisturbed
        waiter.result()
        sim.answer("n")
        assert measured(sim.loaded()["n"].report) == sim.used()
        sim.wait_until_nothing_is_left("m", "n")


def test_the_scheduler_is_killed_while_a_victim_is_being_stopped() -> None:
    with simulated({A: ONE_MODEL}) as sim:
        sim.add_model("m", 1)
        sim.add_model("n", 2)
        sim.answer("m")
        (victim,) = sim.runtime.runner_pids()
        os.kill(victim, signal.SIGSTOP)  # so that it does not heed SIGTERM: stopping it takes seconds
        waiter = Asked(sim, "n")
        sim.kill_scheduler_once(lambda: "evicting m" in sim.waits_for("n"))
        waiter.result()
        sim.answer("n")
        assert victim not in sim.runtime.runner_pids()
        assert measured(sim.loaded()["n"].report) == sim.used()
        sim.wait_until_nothing_is_left("m", "n")


def test_a_load_that_stalls_is_ended_with_its_phase_and_the_next_request_loads_anew() -> None:
    with simulated({A: ALL_BYTES}, OLLAMA_LOAD_TIMEOUT="2s") as sim:
        sim.add_model("m")
        asked = Asked(sim, "m")
        sim.wait_closely(lambda: has_memory(sim))
        (stopped,) = sim.machine.holders(A)
        os.kill(stopped, signal.SIGSTOP)
        refused = asked.result()
        assert refused.status_code >= 500
        assert re.search(r"stalled.*(allocating|reading|finalising)", refused.text), refused.text
        sim.runtime.wait_until(lambda: sim.used() == {}, SETTLED_S)
        sim.answer("m")
        sim.wait_until_nothing_is_left("m")
