"""The watch over the event loop itself."""

import time

import pytest
import trio

from tests.conftest import MAX_STEP_S, run_watched


def hold_loop(cpu_s: float) -> None:
    end_s = time.thread_time() + cpu_s
    while time.thread_time() < end_s:
        pass


async def step(cpu_s: float) -> None:
    await trio.lowlevel.checkpoint()
    hold_loop(cpu_s)
    await trio.lowlevel.checkpoint()


def test_a_step_that_holds_the_loop_is_named() -> None:
    with pytest.raises(AssertionError, match="step held the loop"):
        run_watched(step, 1.2 * MAX_STEP_S, clock=None, instruments=[])


def test_short_steps_pass() -> None:
    run_watched(step, 0.001, clock=None, instruments=[])


async def test_async_tests_here_are_watched(request: pytest.FixtureRequest) -> None:
    mark = request.node.get_closest_marker("trio")
    assert mark.kwargs["run"] is run_watched
