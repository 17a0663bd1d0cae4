"""Room for models: refusals with numbers, eviction, limits, and plans.  Sizes are of fake runners."""

from collections.abc import AsyncGenerator
from pathlib import Path

import pytest

from actors.errors import CapacityError
from actors.protocol import LoadOptions, LoadPlan, ModelSpec, PlanLoad
from tests.actors.fake_runner import Script
from tests.actors.rig import MIB, Rig, rig


@pytest.fixture
async def runtime(run_dir: Path) -> AsyncGenerator[Rig, None]:
    """100 MiB of free memory."""
    async with rig(run_dir) as made:
        yield made


def sized(runtime: Rig, name: str, n_mib: int, cache_kib: int = 0) -> ModelSpec:
    """A model with `n_mib` of weights in three layers; `cache_kib` for each position and repeating layer."""
    script = Script(weight_bytes=n_mib * MIB // 3, cache_bytes_per_ctx=cache_kib << 10)
    return runtime.model(name, script)


async def test_a_model_that_cannot_fit_is_refused_with_the_numbers(runtime: Rig) -> None:
    with pytest.raises(CapacityError) as caught:
        async with runtime.leased(sized(runtime, "big", 300)):
            pass
    assert caught.value.message == "big at n_ctx 4096 needs 300 MiB, cpu has 100 MiB free"
    assert "smaller quantisation" in caught.value.mend


async def test_a_context_that_does_not_fit_is_refused_naming_one_that_does(runtime: Rig) -> None:
    model = sized(runtime, "long", 30, cache_kib=16)
    with pytest.raises(CapacityError) as caught:
        async with runtime.leased(model):
            pass
    assert "ask for n_ctx 2048" in caught.value.mend
    async with runtime.leased(model, LoadOptions(n_ctx=2048)) as lease:
        assert lease.n_ctx == 2048


async def test_after_a_refusal_no_runner_is_left(runtime: Rig) -> None:
    with pytest.raises(CapacityError):
        async with runtime.leased(sized(runtime, "big", 300)):
            pass
    await runtime.until_runners(0)
    await runtime.until_loaded()


async def test_models_that_fit_together_stay_together(runtime: Rig) -> None:
    for name in ("a", "b", "c"):
        async with runtime.leased(sized(runtime, name, 30)):
            pass
    await runtime.until_loaded("a", "b", "c")


async def test_the_least_recently_used_makes_room(runtime: Rig) -> None:
    models = [sized(runtime, name, 45) for name in ("a", "b", "c")]
    async with runtime.leased(models[0]), runtime.leased(models[1]):
        pass
    async with runtime.leased(models[0]):
        pass
    async with runtime.leased(models[2]):
        await runtime.until_loaded("a", "c")


async def test_mapped_weights_count_although_the_kernel_calls_their_pages_free(runtime: Rig) -> None:
    """Discovery goes on saying 100 MiB, as a kernel would while the weights are page cache."""
    async with runtime.leased(sized(runtime, "a", 60)):
        pass
    runtime.discovery.set_free(100 * MIB)
    async with runtime.leased(sized(runtime, "b", 60)):
        await runtime.until_loaded("b")


async def test_a_busy_model_is_not_evicted_but_awaited(runtime: Rig) -> None:
    async with runtime.acquiring(sized(runtime, "a", 60)) as busy:
        await busy.lease()
        async with runtime.acquiring(sized(runtime, "b", 60)) as waiting:
            await runtime.until_gauge("queued", 1)
            assert "waits for users of a" in await until_said(runtime, "waits for users of a")
            assert set(await runtime.loaded()) == {"a", "b"}  # b: sized, not allocated
            await busy.release()
            await waiting.lease()
        await runtime.until_loaded("b")


async def test_who_waits_for_a_busy_model_to_leave_is_not_overtaken(runtime: Rig) -> None:
    a, b = sized(runtime, "a", 60), sized(runtime, "b", 60)
    async with runtime.acquiring(a) as busy:
        await busy.lease()
        async with runtime.acquiring(b) as waiting:
            await until_said(runtime, "waits for users of a")
            async with runtime.acquiring(a) as late:
                await runtime.until_gauge("queued", 2)
                await busy.release()
                await waiting.lease()
                await waiting.release()
                await late.lease()


async def test_a_cancelled_wait_for_room_evicts_nobody(runtime: Rig) -> None:
    a, b = sized(runtime, "a", 60), sized(runtime, "b", 60)
    async with runtime.acquiring(a) as busy:
        first = await busy.lease()
        async with runtime.acquiring(b):
            await until_said(runtime, "waits for users of a")
        await runtime.until_gauge("queued", 0)
        await runtime.until_loaded("a")
        async with runtime.leased(a) as again:
            assert again.runner_id == first.runner_id


async def test_max_loaded_evicts_the_least_recently_used(run_dir: Path) -> None:
    async with rig(run_dir, max_loaded=2) as runtime:
        for name in ("a", "b", "c"):
            async with runtime.leased(runtime.model(name)):
                pass
        await runtime.until_loaded("b", "c")


async def test_as_many_models_as_the_devices_there_are_now_allow(runtime: Rig) -> None:
    models = [runtime.model(name) for name in "abcde"]
    for model in models[:4]:
        async with runtime.leased(model):
            pass
    await runtime.until_loaded("b", "c", "d")  # three for the host
    for device in ("gpu:0", "gpu:1"):
        runtime.discovery.add(device, 4000 * MIB, 4000 * MIB)
    for model in (models[4], models[0]):
        async with runtime.leased(model):
            pass
    await runtime.until_loaded("a", "b", "c", "d", "e")


async def test_an_allocation_that_fails_is_reported_by_name(runtime: Rig) -> None:
    with pytest.raises(CapacityError, match="graph: 64 MiB could not be allocated"):
        async with runtime.leased(runtime.model("a", Script(n_alloc_failures=9))):
            pass


@pytest.mark.parametrize(("n_failures", "left"), [(1, ("a", "other")), (2, ("a",))])
async def test_an_allocation_that_fails_is_tried_again_and_evicts_when_it_fails_again(
    runtime: Rig, n_failures: int, left: tuple[str, ...]
) -> None:
    async with runtime.leased(runtime.model("other")):
        pass
    model = runtime.model("a", Script(n_alloc_failures=n_failures, n_ctx_train=4096))
    async with runtime.leased(model):
        await runtime.until_loaded(*left)


async def test_without_a_context_named_the_longest_is_taken_that_memory_holds_with_ease(
    runtime: Rig,
) -> None:
    async with runtime.leased(growing(runtime)) as lease:
        assert lease.n_ctx == 4352  # a quarter of 70 MiB at 4 KiB for each position, in steps of 256


async def test_a_context_in_the_configuration_is_before_the_longest(run_dir: Path) -> None:
    async with rig(run_dir, n_ctx=1024) as runtime, runtime.leased(growing(runtime)) as lease:
        assert lease.n_ctx == 1024


async def test_a_long_context_that_cannot_be_allocated_makes_way_for_a_shorter_one(runtime: Rig) -> None:
    async with runtime.leased(runtime.model("other")):
        pass
    model = runtime.model("a", Script(n_ctx_train=65536, n_alloc_failures=2))
    async with runtime.leased(model) as lease:
        assert lease.n_ctx == 4096 + (65536 - 4096) // 2
        await runtime.until_loaded("a", "other")


async def test_a_plan_shows_what_each_context_takes(runtime: Rig) -> None:
    plan = await runtime.link.ask(PlanLoad(growing(runtime), LoadOptions()), LoadPlan)
    rows = [(row.n_ctx, row.cache_bytes, row.is_full_speed, row.is_chosen) for row in plan.contexts]
    assert rows == [
        (2048, 8 * MIB, True, False),
        (4096, 16 * MIB, True, False),
        (4352, 17 * MIB, True, True),
        (8192, 32 * MIB, True, False),
        (16384, 64 * MIB, True, False),
        (32768, 128 * MIB, False, False),
        (65536, 256 * MIB, False, False),
    ]
    assert [row.total_bytes for row in plan.contexts[:2]] == [38 * MIB, 46 * MIB]


async def test_memory_that_discovery_finds_anew_is_used(runtime: Rig) -> None:
    model = sized(runtime, "big", 300)
    with pytest.raises(CapacityError):
        async with runtime.leased(model):
            pass
    runtime.discovery.set_free(400 * MIB)
    await until_plan(runtime, model, fits=True)
    async with runtime.leased(model):
        pass


async def test_a_plan_has_the_exact_report_and_loads_nothing(runtime: Rig) -> None:
    async with runtime.leased(runtime.model("a")) as lease:
        plan = await runtime.link.ask(PlanLoad(sized(runtime, "b", 30), LoadOptions(n_ctx=1024)), LoadPlan)
        assert plan.fits
        assert plan.report.n_ctx == 8192  # the longest: 1024 is a limit of that request
        assert plan.verdict == "fits: b at n_ctx 8192 needs 30.0 MiB, cpu has 97.0 MiB free"
        assert [(part.device, part.layers) for part in plan.placement] == [("cpu", (0, 1, 2))]
        assert {model.runner_id for model in (await runtime.loaded()).values()} == {lease.runner_id}
    await runtime.until_runners(1)


async def test_a_plan_that_does_not_fit_says_so_without_an_error(runtime: Rig) -> None:
    plan = await runtime.link.ask(PlanLoad(sized(runtime, "big", 300), LoadOptions()), LoadPlan)
    assert not plan.fits
    assert plan.verdict.startswith("does not fit: big at n_ctx 4096 needs 300 MiB, cpu has 100 MiB free")


async def test_a_plan_names_room_that_eviction_would_make(runtime: Rig) -> None:
    async with runtime.leased(sized(runtime, "a", 60)):
        pass
    plan = await runtime.link.ask(PlanLoad(sized(runtime, "b", 60), LoadOptions()), LoadPlan)
    assert not plan.fits
    assert plan.verdict.startswith("fits once others are unloaded")
    await runtime.until_loaded("a")


async def test_decisions_are_explained_with_their_numbers(runtime: Rig) -> None:
    async with runtime.leased(sized(runtime, "a", 30)):
        assert "a at n_ctx 4096 needs 30.0 MiB, cpu has 100 MiB free" in await runtime.why()


def growing(runtime: Rig) -> ModelSpec:
    """30 MiB of weights, 4 KiB of cache for each position."""
    return runtime.model(
        "growing", Script(weight_bytes=10 * MIB, cache_bytes_per_ctx=2 << 10, n_ctx_train=65536)
    )


async def until_said(runtime: Rig, words: str) -> str:
    """The decisions, once these words are among them."""
    while words not in (said := await runtime.why()):
        await runtime.pause()
    return said


async def until_plan(runtime: Rig, model: ModelSpec, *, fits: bool) -> None:
    """Wait for discovery's news to have arrived."""
    while (await runtime.link.ask(PlanLoad(model, LoadOptions()), LoadPlan)).fits is not fits:
        await runtime.pause()
