"""What dies, stalls or comes back: with real processes."""

import os
import signal
import subprocess
import sys
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio

from actors.errors import CapacityError, ModelError, PeerGone, RuntimeFault
from actors.link import connect
from actors.protocol import LoadOptions, LoadPlan, PlanLoad, Register
from actors.runner.host import child
from actors.scheduler import adoption, health, room, runners
from actors.scheduler.service import Scheduler
from tests.actors.fake_runner import Script
from tests.actors.inside import InsideHost
from tests.actors.rig import MIB, Rig, rig


@pytest.fixture
async def runtime(run_dir: Path) -> AsyncGenerator[Rig, None]:
    async with rig(run_dir) as made:
        yield made


async def test_a_killed_runner_ends_its_leases_at_once_and_is_loaded_again(runtime: Rig) -> None:
    model = runtime.model("a")
    async with runtime.acquiring(model) as asking:
        lease = await asking.lease()
        os.kill((await runtime.loaded())["a"].runner_pid, signal.SIGKILL)
        with pytest.raises(PeerGone, match="a: the runner was killed by SIGKILL"):
            await asking.items.receive()
    async with runtime.leased(model) as again:
        assert again.runner_id != lease.runner_id


async def test_a_crash_while_loading_gives_every_waiter_the_last_words(runtime: Rig) -> None:
    words = "reading tensors\nCUDA error: the moon is full\n"
    model = runtime.model("a", Script(crash_at=0.5, last_words=words))
    async with runtime.acquiring(model) as first, runtime.acquiring(model) as second:
        for asking in (first, second):
            with pytest.raises(PeerGone, match=r"exited with status 3 while loading .*the moon is full"):
                await asking.lease()
    await runtime.until_runners(0)


async def test_a_load_that_goes_silent_is_given_up_naming_where(run_dir: Path) -> None:
    async with rig(run_dir, load_timeout_s=1.0) as runtime:
        with pytest.raises(RuntimeFault, match=r"stalled: no progress for 1 s \(reading 37 %\)"):
            async with runtime.leased(runtime.model("a", Script(stall_at=0.37))):
                pass
        await runtime.until_runners(0)


async def test_a_slow_load_that_keeps_talking_is_not_given_up(run_dir: Path) -> None:
    gate = run_dir / "gate"
    async with rig(run_dir, load_timeout_s=1.0) as runtime:
        model = runtime.model("a", Script(gate=str(gate)))
        async with runtime.acquiring(model) as asking:
            await asking.until_phase("finalising")
            began_s = trio.current_time()
            while trio.current_time() < began_s + 1.5:  # longer than the time-out, and news all the while
                await runtime.pause()
            gate.touch()
            await asking.lease()


async def test_what_the_runner_refuses_reaches_the_caller_as_it_was_said(runtime: Rig) -> None:
    with pytest.raises(ModelError, match="no such family: mamba"):
        async with runtime.leased(runtime.model("a", Script(refuse="no such family: mamba"))):
            pass


async def test_a_failed_load_does_not_stop_the_next(runtime: Rig) -> None:
    with pytest.raises(ModelError):
        async with runtime.leased(runtime.model("a", Script(refuse="no"))):
            pass
    async with runtime.leased(runtime.model("b")):
        await runtime.until_loaded("b")


async def test_a_runner_that_ignores_sigterm_is_killed(runtime: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(child, "TERM_S", 0.2)
    async with runtime.leased(runtime.model("a", Script(ignore_sigterm=True)), keep_alive_s=0):
        pid = (await runtime.loaded())["a"].runner_pid
    await runtime.until_runners(0)
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


async def test_a_runner_whose_host_died_is_noticed(run_dir: Path) -> None:
    """Its host takes it along; the host that comes next does not know it."""
    async with rig(run_dir) as runtime:
        async with runtime.acquiring(runtime.model("a")) as asking:
            await asking.lease()
            await runtime.restart_host()
            with pytest.raises(PeerGone, match="a: the runner"):
                await asking.items.receive()
        async with runtime.leased(runtime.model("a")):
            pass


@asynccontextmanager
async def scheduler_process(runtime: Rig) -> AsyncGenerator[trio.Process, None]:
    """`python -m actors.scheduler`, connected to by runtime.link; killed at the end of the block."""
    environ = os.environ | {"RUNTIME_RUN_DIR": runtime.config.run_dir}
    command = [sys.executable, "-m", "actors.scheduler"]
    process = await trio.lowlevel.open_process(command, stdin=subprocess.DEVNULL, env=environ)
    try:
        async with runtime.connected():
            yield process
    finally:
        process.kill()
        with trio.CancelScope(shield=True):
            await process.wait()


async def test_loaded_models_outlive_a_killed_scheduler(run_dir: Path) -> None:
    async with rig(run_dir, with_scheduler=False) as runtime:
        model = runtime.model("a")
        async with scheduler_process(runtime), runtime.leased(model) as before:
            pass
        async with scheduler_process(runtime):
            async with runtime.leased(model) as after:
                assert after.runner_id == before.runner_id
            adopted = (await runtime.loaded())["a"]
            assert adopted.expires_in_s is not None
            assert adopted.expires_in_s > 200
            assert "is adopted" in await runtime.why()


async def test_a_model_kept_for_ever_is_kept_by_the_next_scheduler_too(run_dir: Path) -> None:
    async with rig(run_dir, with_scheduler=False, make_host=InsideHost) as runtime:
        a, b = (runtime.model(name, Script(weight_bytes=20 * MIB)) for name in "ab")
        first = await runtime.start("scheduler", Scheduler(runtime.config))
        async with runtime.connected():
            async with runtime.leased(a, keep_alive_s=-1):
                pass
            host = runtime.host
            assert isinstance(host, InsideHost)
            while not all(runner.keep for runner in host.runners.values()):
                await runtime.pause()
        await first.stop()
        await runtime.start("scheduler", Scheduler(runtime.config))
        async with runtime.connected():
            await runtime.until_loaded("a")
            assert (await runtime.loaded())["a"].expires_in_s is None
            with pytest.raises(CapacityError, match="b at n_ctx"):
                async with runtime.leased(b):
                    pass
            await runtime.until_loaded("a")


async def test_a_runner_that_was_loading_when_its_scheduler_died_is_stopped(run_dir: Path) -> None:
    async with rig(run_dir, with_scheduler=False) as runtime:
        model = runtime.model("a", Script(gate=str(run_dir / "never")))
        async with scheduler_process(runtime) as scheduler, runtime.acquiring(model) as asking:
            await asking.until_phase("finalising")
            scheduler.kill()
            await scheduler.wait()
        await runtime.until_runners(1)
        async with scheduler_process(runtime):
            await runtime.until_runners(0)


async def test_a_scheduler_killed_in_the_middle_of_an_eviction_finds_what_is_left(
    run_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(child, "TERM_S", 1.0)
    async with rig(run_dir, with_scheduler=False) as runtime:
        a = runtime.model("a", Script(weight_bytes=20 * MIB, ignore_sigterm=True))
        b = runtime.model("b", Script(weight_bytes=20 * MIB))
        async with scheduler_process(runtime) as scheduler:
            async with runtime.leased(a):
                pass
            async with runtime.acquiring(b):
                await runtime.until_waiting(b, "evicting a")
                scheduler.kill()
                await scheduler.wait()
        async with scheduler_process(runtime):
            async with runtime.leased(b):
                await runtime.until_loaded("b")
            assert (await runtime.gauges())["held_bytes:cpu"] == 60 * MIB
        await runtime.until_runners(1)


async def test_a_scheduler_killed_while_a_load_waits_for_room_lets_everybody_in_again(run_dir: Path) -> None:
    async with rig(run_dir, with_scheduler=False) as runtime:
        a, b = (runtime.model(name, Script(weight_bytes=20 * MIB)) for name in "ab")
        async with scheduler_process(runtime) as scheduler, runtime.acquiring(a) as busy:
            before = await busy.lease()
            async with runtime.acquiring(b):
                await runtime.until_waiting(b, "waiting for users of a to finish")
                scheduler.kill()
                await scheduler.wait()
        async with scheduler_process(runtime):
            async with runtime.leased(a) as after:
                assert after.runner_id == before.runner_id
            await runtime.until_runners(1)  # the one that was fitted for b was stopped


async def test_a_runner_that_hangs_is_stopped_and_its_model_loaded_anew(
    runtime: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(health, "PERIOD_S", 0.05)
    monkeypatch.setattr(health, "ANSWER_S", 1.0)
    monkeypatch.setattr(child, "TERM_S", 0.2)
    model = runtime.model("a")
    async with runtime.acquiring(model) as asking:
        first = await asking.lease()
        os.kill((await runtime.loaded())["a"].runner_pid, signal.SIGSTOP)
        with pytest.raises(PeerGone, match="a: the runner did not answer within"):
            await asking.items.receive()
    async with runtime.leased(model) as second:
        assert second.runner_id != first.runner_id
    await runtime.until_runners(1)


async def test_a_plan_whose_asker_left_leaves_no_runner(runtime: Rig) -> None:
    with trio.move_on_after(0.05):
        await runtime.link.ask(PlanLoad(runtime.model("a"), LoadOptions()), LoadPlan)
    await runtime.until_runners(0)


async def test_a_stopped_scheduler_leaves_its_runners(run_dir: Path) -> None:
    async with rig(run_dir, with_scheduler=False) as runtime:
        running = await runtime.start("scheduler", Scheduler(runtime.config))
        async with runtime.connected(), runtime.leased(runtime.model("a")):
            pass
        await running.stop()
        await runtime.until_runners(1)


async def test_without_discovery_a_load_is_refused_in_time(
    run_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(room, "DEVICES_WAIT_S", 0.2)
    async with rig(run_dir) as runtime:
        await runtime.discovery_running.stop()
        fresh = await runtime.start("other", Scheduler(runtime.config))
        async with connect(runtime.config.socket_address("other"), name="test") as link:
            with pytest.raises(CapacityError, match="discovery named no devices"):
                async with runtime.leased(runtime.model("a"), over=link):
                    pass
        await fresh.stop()


async def test_without_a_host_a_load_is_refused_in_time(
    run_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runners, "HOST_WAIT_S", 0.2)
    monkeypatch.setattr(adoption, "HOST_WAIT_S", 0.2)
    async with rig(run_dir) as runtime:
        await runtime.host_running.stop()
        with pytest.raises(PeerGone, match="the runner host did not answer"):
            async with runtime.leased(runtime.model("a")):
                pass


async def test_a_second_runner_of_a_loaded_model_is_stopped(runtime: Rig) -> None:
    """As when a scheduler restarts twice and a load was repeated meanwhile."""
    model = runtime.model("a")
    async with runtime.leased(model) as lease:
        loaded = (await runtime.loaded())["a"]
        double = Register("double", 1, lease.address, loaded.model, loaded.options, loaded.report)
        async with runtime.link.request(double) as items:
            assert [item async for item in items] == []
        assert "runner double is stopped: a is in another runner" in await runtime.why()
        assert (await runtime.loaded())["a"].runner_id == lease.runner_id


async def test_a_killed_runner_host_is_survived_by_the_scheduler(runtime: Rig) -> None:
    async with runtime.leased(runtime.model("a")):
        pass
    await runtime.restart_host()
    async with runtime.leased(runtime.model("b")):
        await runtime.until_loaded("b")


async def test_a_runner_that_cannot_start_says_why_in_one_line(run_dir: Path) -> None:
    program = "import logging; logging.warning('hello'); raise ImportError('no kernels here')"
    async with rig(run_dir, command=(sys.executable, "-c", program)) as runtime:
        with pytest.raises(PeerGone) as caught:
            async with runtime.leased(runtime.model("a")):
                pass
    assert caught.value.message == (
        "a: the runner exited with status 1 while loading (starting): ImportError: no kernels here"
    )
