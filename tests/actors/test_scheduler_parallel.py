"""Several loads at once: side by side where they can, in order where they want the same memory."""

from collections.abc import AsyncGenerator
from pathlib import Path

import pytest
import trio

from actors.errors import Busy, CapacityError
from actors.protocol import LoadOptions, LoadProgress, MemoryReport, ModelSpec
from actors.scheduler import dispatch, room
from tests.actors.fake_runner import Script
from tests.actors.inside import InsideHost
from tests.actors.rig import MIB, Asking, Rig, rig

GPU_MIB = 1000
RESERVE_MIB = 457  # what the layout keeps free of each GPU


@pytest.fixture
async def runtime(run_dir: Path) -> AsyncGenerator[Rig, None]:
    """100 MiB of free host memory; two GPUs with room for 1000 MiB of layers each."""
    async with rig(run_dir, make_host=InsideHost) as made:
        for gpu in ("gpu:0", "gpu:1"):
            made.discovery.add(gpu, 2000 * MIB, (GPU_MIB + RESERVE_MIB) * MIB)
        await made.until_gauge("held_bytes:gpu:1", 0)
        yield made


def sized(runtime: Rig, name: str, n_mib: int, gate: Path | None = None) -> ModelSpec:
    """A model of three equal layers."""
    return runtime.model(name, Script(weight_bytes=n_mib * MIB // 3, gate=str(gate or "")))


async def test_loads_on_different_devices_run_side_by_side(runtime: Rig, run_dir: Path) -> None:
    gate = run_dir / "gate"
    a, b = sized(runtime, "a", 900, gate), sized(runtime, "b", 900, gate)
    async with runtime.acquiring(a) as first, runtime.acquiring(b) as second:
        await first.until_phase("finalising")
        await second.until_phase("finalising")
        assert (await runtime.gauges())["models_loading"] == 2
        gate.touch()
        await first.lease()
        await second.lease()
    where = {name: _gpus(model.report) for name, model in (await runtime.loaded()).items()}
    assert sorted(where.values()) == [["gpu:0"], ["gpu:1"]]


async def test_memory_promised_to_one_load_is_not_counted_by_another(runtime: Rig, run_dir: Path) -> None:
    """Discovery goes on saying that both GPUs are empty, as it does until a driver has allocated."""
    gate = run_dir / "gate"
    models = [sized(runtime, name, 450, gate) for name in "abcd"]
    async with trio.open_nursery() as nursery:
        for model in models:
            nursery.start_soon(_use, runtime, model)
        await runtime.until_gauge("models_loading", 4)
        for model in models:
            await runtime.until_waiting(model, "finalising")
        gauges = await runtime.gauges()
        assert [gauges[f"held_bytes:gpu:{i}"] // MIB for i in (0, 1)] == [900, 900]
        gate.touch()


async def test_no_more_loads_than_the_bound_run_at_once(
    runtime: Rig, run_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dispatch, "LOADS_MAX", 2)
    gate = run_dir / "gate"
    models = [sized(runtime, name, 9, gate) for name in "abc"]
    async with runtime.acquiring(models[0]), runtime.acquiring(models[1]):
        await runtime.until_gauge("models_loading", 2)
        async with runtime.acquiring(models[2]) as third:
            await runtime.until_waiting(models[2], "waiting for other loads: ")
            assert (await runtime.waiting())["c"].position == 2
            gate.touch()
            await third.lease()


async def test_a_load_that_waits_for_room_does_not_hold_up_one_that_fits_elsewhere(runtime: Rig) -> None:
    host = [sized(runtime, name, 60) for name in ("a", "b")]
    options = LoadOptions(n_gpu=0)
    async with runtime.leased(host[0], options), runtime.acquiring(host[1], options) as waiting:
        await runtime.until_waiting(host[1], "waiting for users of a to finish")
        async with runtime.leased(sized(runtime, "c", 600)):
            assert set(await runtime.waiting()) == {"b"}
        await waiting.release()


async def test_who_comes_later_does_not_take_the_room_that_another_waits_for(runtime: Rig) -> None:
    """a holds 60 of 100 MiB, b waits for 60; c would fit into the 40 that are left, d on a GPU."""
    a, b, c = sized(runtime, "a", 60), sized(runtime, "b", 60), sized(runtime, "c", 30)
    options = LoadOptions(n_gpu=0)
    async with runtime.acquiring(a, options) as busy:
        await busy.lease()
        async with runtime.acquiring(b, options) as second:
            await runtime.until_waiting(b, "waiting for users of a to finish")
            async with runtime.acquiring(c, options) as third:
                await runtime.until_waiting(c, "waiting for b, which may need the same memory and came first")
                await busy.release()
                await second.lease()
                await third.lease()
    assert set(await runtime.loaded()) == {"b", "c"}


async def test_two_loads_that_need_the_same_memory_follow_each_other(runtime: Rig, run_dir: Path) -> None:
    gate = run_dir / "gate"
    a, b = sized(runtime, "a", 60, gate), sized(runtime, "b", 60)
    options = LoadOptions(n_gpu=0)
    async with runtime.acquiring(a, options) as first:
        await first.until_phase("finalising")
        async with runtime.acquiring(b, options) as second:
            await runtime.until_waiting(b, "waiting for users of a to finish")
            gate.touch()
            await first.lease()
            await first.release()
            await second.lease()
            await runtime.until_loaded("b")


async def test_an_idle_victim_stays_while_a_busy_one_is_awaited(runtime: Rig) -> None:
    """Whoever gives up waiting has evicted nobody."""
    a, b, c = (sized(runtime, name, n) for name, n in (("a", 40), ("b", 40), ("c", 90)))
    options = LoadOptions(n_gpu=0)
    async with runtime.leased(b, options):
        pass
    async with runtime.leased(a, options):
        async with runtime.acquiring(c, options):
            await runtime.until_waiting(c, "waiting for users of a to finish")
            async with runtime.leased(b, options) as lease:  # idle and chosen, but still of use
                assert lease.load_s == 0
        await runtime.until_gauge("queued", 0)
    await runtime.until_loaded("a", "b")
    assert (await runtime.gauges())["evictions_total"] == 0
    assert (await runtime.decision(c)).outcome == "cancelled"


@pytest.mark.parametrize("last_used", ["a", "b"])
async def test_of_two_devices_the_one_whose_model_costs_less_is_cleared(runtime: Rig, last_used: str) -> None:
    gpus = {"a": "gpu:0", "b": "gpu:1"}
    models = {name: sized(runtime, name, 900) for name in "abc"}
    for name, gpu in gpus.items():
        await _use(runtime, models[name])
        runtime.discovery.set_free((GPU_MIB + RESERVE_MIB - 900) * MIB, gpu)
    await _use(runtime, models[last_used])
    (left,) = gpus.keys() - {last_used}
    async with runtime.acquiring(models["c"]) as waiting:
        await runtime.until_waiting(models["c"], f"900 MiB of {left} on {gpus[left]} to come back (0 B did)")
        runtime.discovery.set_free((GPU_MIB + RESERVE_MIB) * MIB, gpus[left])
        await waiting.lease()
    await runtime.until_loaded(last_used, "c")


async def test_more_layers_on_a_gpu_are_not_waited_for_for_long(
    runtime: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(room, "PREFERRED_WAIT_S", 0.2)
    a, b = sized(runtime, "a", 990), sized(runtime, "b", 90)
    runtime.discovery.set_free(0, "gpu:1")
    async with runtime.leased(a):
        runtime.discovery.set_free((GPU_MIB + RESERVE_MIB - 990) * MIB, "gpu:0")
        async with runtime.leased(b):  # while a is in use
            assert _gpus((await runtime.loaded())["b"].report) == []
        await runtime.until_loaded("a", "b")
    assert "goes on without" in await runtime.why()


async def test_a_load_goes_by_figures_of_the_moment(runtime: Rig) -> None:
    a = sized(runtime, "a", 900)
    runtime.discovery.set_free_in_silence(0, "gpu:0")
    runtime.discovery.set_free_in_silence(0, "gpu:1")
    runtime.discovery.set_free(2000 * MIB)
    async with runtime.leased(a):
        assert _gpus((await runtime.loaded())["a"].report) == []


async def test_a_wait_for_room_is_bounded_and_says_what_for(
    runtime: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(room, "ROOM_WAIT_S", 0.3)
    a, b = sized(runtime, "a", 60), sized(runtime, "b", 60)
    options = LoadOptions(n_gpu=0)
    async with runtime.leased(a, options):
        with pytest.raises(Busy, match="b was not loaded: it waited 0 s for users of a to finish"):
            async with runtime.leased(b, options):
                pass


async def test_a_wait_for_users_of_other_options_is_bounded(
    runtime: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dispatch, "ROOM_WAIT_S", 0.3)
    model = sized(runtime, "a", 9)
    async with runtime.leased(model, LoadOptions(n_batch=64)):
        with pytest.raises(Busy, match="it waited 0 s for 1 users of a to finish"):
            async with runtime.leased(model, LoadOptions(n_batch=128)):
                pass


async def test_a_model_that_somebody_keeps_for_ever_is_not_evicted_and_the_refusal_says_so(
    runtime: Rig,
) -> None:
    a, b = sized(runtime, "a", 60), sized(runtime, "b", 60)
    options = LoadOptions(n_gpu=0)
    async with runtime.leased(a, options, keep_alive_s=-1):
        pass
    with pytest.raises(CapacityError) as caught:
        async with runtime.leased(b, options):
            pass
    assert "unload a (kept for ever)" in caught.value.mend
    async with runtime.leased(a, options, keep_alive_s=60):  # the last wish counts
        pass
    async with runtime.leased(b, options):
        await runtime.until_loaded("b")


async def test_pinned_models_fill_max_loaded_until_one_is_unloaded(run_dir: Path) -> None:
    async with rig(run_dir, make_host=InsideHost, max_loaded=1) as runtime:
        async with runtime.leased(runtime.model("a"), keep_alive_s=-1):
            pass
        with pytest.raises(CapacityError, match="1 models are loaded, as many as may be, and a are kept"):
            async with runtime.leased(runtime.model("b")):
                pass


async def test_a_default_of_for_ever_pins_nothing(run_dir: Path) -> None:
    async with rig(run_dir, make_host=InsideHost, max_loaded=1, keep_alive_s=-1.0) as runtime:
        async with runtime.leased(runtime.model("a")):
            assert (await runtime.loaded())["a"].expires_in_s is None
        async with runtime.leased(runtime.model("b")):
            await runtime.until_loaded("b")


async def test_device_memory_of_an_evicted_model_is_awaited_by_measurement(runtime: Rig) -> None:
    a, b = sized(runtime, "a", 900), sized(runtime, "b", 900)
    runtime.discovery.set_free(2000 * MIB)
    runtime.discovery.set_free(0, "gpu:1")
    async with runtime.leased(a):
        runtime.discovery.set_free((GPU_MIB + RESERVE_MIB - 900) * MIB, "gpu:0")
    async with runtime.acquiring(b) as waiting:
        await runtime.until_waiting(b, "900 MiB of a on gpu:0 to come back (0 B did)")
        runtime.discovery.set_free((GPU_MIB + RESERVE_MIB - 901) * MIB, "gpu:0")  # somebody takes some
        await runtime.until_waiting(b, "900 MiB of a on gpu:0 to come back (-1.0 MiB did)")
        runtime.discovery.set_free((GPU_MIB + RESERVE_MIB) * MIB, "gpu:0")
        await waiting.lease()
    assert _gpus((await runtime.loaded())["b"].report) == ["gpu:0"]


async def test_memory_that_does_not_come_back_is_given_up_with_the_numbers(
    runtime: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("actors.scheduler.recovery.RECOVERY_S", 0.3)
    a, b = sized(runtime, "a", 900), sized(runtime, "b", 90)
    runtime.discovery.set_free(0, "gpu:1")
    async with runtime.leased(a):
        runtime.discovery.set_free((RESERVE_MIB + 100) * MIB, "gpu:0")
    await runtime.unload(a)
    await runtime.until_loaded()
    async with runtime.leased(b):
        assert _gpus((await runtime.loaded())["b"].report) == ["gpu:0"]
    assert "b waited in vain for 900 MiB of a on gpu:0 to come back (0 B did)" in await runtime.why()


async def test_waiters_hear_what_is_evicted_and_how_far_the_load_is(runtime: Rig, run_dir: Path) -> None:
    gate = run_dir / "gate"
    a, b = sized(runtime, "a", 60), sized(runtime, "b", 60, gate)
    options = LoadOptions(n_gpu=0)
    async with runtime.leased(a, options):
        pass
    async with runtime.acquiring(b, options) as waiting:
        news = await _news_until(waiting, "finalising")
        gate.touch()
        await waiting.lease()
    assert "evicting a" in [getattr(item, "reason", "") for item in news]
    assert {"fitting", "allocating", "reading", "finalising"} <= {getattr(item, "phase", "") for item in news}


async def test_the_latest_load_is_explained_with_candidates_rounds_and_evictions(runtime: Rig) -> None:
    a, b = sized(runtime, "a", 60), sized(runtime, "b", 60)
    options = LoadOptions(n_gpu=0, n_ctx=512)
    async with runtime.leased(a, options), runtime.leased(sized(runtime, "c", 600)):
        pass
    async with runtime.leased(b, options):
        decision = await runtime.decision(b)
    assert (decision.outcome, decision.message) == ("loaded", "loaded on cpu (3 layers)")
    assert [(each.question, each.outcome) for each in decision.rounds] == [
        ("fit", "evict"),
        ("fit", "accept"),
        ("fit", "accept"),  # at a longer context
        ("alloc", "accept"),
    ]
    assert [each.free_bytes["cpu"] // MIB for each in decision.rounds] == [40, 100, 100, 100]
    (eviction,) = decision.evictions
    assert (eviction.device, eviction.shortage_bytes // MIB, eviction.outcome) == ("cpu", 20, "evicting a")
    assert {each.name: each.is_chosen for each in eviction.candidates} == {"a": True, "c": False}
    about_a = await runtime.decision(a)
    assert about_a.evictions == ()


async def _use(runtime: Rig, model: ModelSpec) -> None:
    async with runtime.leased(model):
        pass


def _gpus(report: MemoryReport) -> list[str]:
    """The GPUs that hold layers."""
    return [
        device.id
        for device in report.devices
        if device.id != "cpu" and any(item.planned_bytes for item in device.weights)
    ]


async def _news_until(asking: Asking, phase: str) -> list[object]:
    """All that a waiter hears up to this phase."""
    news: list[object] = []
    async for item in asking.items:
        news.append(item)
        if isinstance(item, LoadProgress) and item.phase == phase:
            break
    return news
