"""Leases, sharing, keep-alive and the queue, with real runner processes that only pretend to load."""

from collections.abc import AsyncGenerator
from pathlib import Path

import pytest

from actors.errors import QueueFull
from actors.protocol import LoadOptions
from tests.actors.fake_runner import Script
from tests.actors.rig import MIB, Rig, rig


@pytest.fixture
async def runtime(run_dir: Path) -> AsyncGenerator[Rig, None]:
    async with rig(run_dir) as made:
        yield made


async def test_the_same_model_twice_shares_one_runner(runtime: Rig) -> None:
    model = runtime.model("a")
    async with runtime.leased(model) as first, runtime.leased(model) as second:
        assert first.runner_id == second.runner_id
        assert (await runtime.loaded())["a"].n_leases == 2
    assert second.load_s == 0 < first.load_s


async def test_waiters_for_the_same_model_share_one_load(runtime: Rig, run_dir: Path) -> None:
    count, gate = run_dir / "count", run_dir / "gate"
    model = runtime.model("a", Script(count=str(count), gate=str(gate)))
    async with runtime.acquiring(model) as first, runtime.acquiring(model) as second:
        await runtime.until_gauge("queued", 2)
        gate.touch()
        assert await first.lease()
        assert await second.lease()
    assert count.read_text().splitlines() == ["a"]


async def test_progress_of_a_load_reaches_every_waiter(runtime: Rig, run_dir: Path) -> None:
    gate = run_dir / "gate"
    model = runtime.model("a", Script(gate=str(gate)))
    async with runtime.acquiring(model) as first, runtime.acquiring(model) as second:
        for asking in (first, second):
            assert (await asking.until_phase("finalising")).done_bytes == 100
        gate.touch()
        await first.lease()


async def test_a_model_without_keep_alive_leaves_with_its_last_lease(runtime: Rig) -> None:
    model = runtime.model("a")
    async with runtime.leased(model, keep_alive_s=0), runtime.leased(model):
        assert set(await runtime.loaded()) == {"a"}
    await runtime.until_loaded()


async def test_the_last_keep_alive_asked_for_wins(runtime: Rig) -> None:
    model = runtime.model("a")
    async with runtime.leased(model, keep_alive_s=0), runtime.leased(model, keep_alive_s=-1):
        pass
    assert (await runtime.loaded())["a"].expires_in_s is None


async def test_a_request_without_keep_alive_leaves_the_runners_as_it_was(runtime: Rig) -> None:
    model = runtime.model("a")
    async with runtime.leased(model, keep_alive_s=1000):
        pass
    async with runtime.leased(model):
        pass
    expires_in_s = (await runtime.loaded())["a"].expires_in_s
    assert expires_in_s is not None
    assert 900 < expires_in_s <= 1000


async def test_a_keep_alive_that_ends_unloads(runtime: Rig) -> None:
    async with runtime.leased(runtime.model("a"), keep_alive_s=0.05):
        pass
    await runtime.until_loaded()


async def test_unload_waits_for_the_last_lease(runtime: Rig) -> None:
    model = runtime.model("a")
    async with runtime.leased(model):
        await runtime.unload(model)
        assert (await runtime.loaded())["a"].expires_in_s == 0
    await runtime.until_loaded()


async def test_a_request_while_a_model_unloads_loads_it_anew(runtime: Rig) -> None:
    """An eviction that has begun is not undone by a new request with a keep-alive of its own."""
    model = runtime.model("a")
    async with runtime.acquiring(model) as old:
        first = await old.lease()
        await runtime.unload(model)
        async with runtime.acquiring(model, keep_alive_s=-1) as waiting:
            await runtime.until_gauge("queued", 1)
            await old.release()
            assert (await waiting.lease()).runner_id != first.runner_id


async def test_other_options_reload_once_the_model_is_idle(runtime: Rig) -> None:
    model = runtime.model("a")
    async with runtime.leased(model, LoadOptions(n_batch=64)) as first:
        pass
    async with runtime.leased(model, LoadOptions(n_batch=128)) as second:
        assert second.runner_id != first.runner_id


async def test_a_longer_context_than_the_first_request_named_is_no_reason_to_reload(runtime: Rig) -> None:
    model = runtime.model("a", Script(n_ctx_train=16384))
    leases: list[tuple[str, int]] = []
    for n_ctx in (1024, 16384, 2048, 0):
        async with runtime.leased(model, LoadOptions(n_ctx=n_ctx)) as lease:
            leases.append((lease.runner_id, lease.n_ctx))
    assert [n_ctx for _, n_ctx in leases] == [1024, 16384, 2048, 16384]
    assert len({runner_id for runner_id, _ in leases}) == 1


async def test_a_context_beyond_what_fits_at_full_speed_is_loaded_for_who_asks_for_it(run_dir: Path) -> None:
    async with rig(run_dir) as runtime:
        runtime.discovery.set_free(100 * MIB)
        model = runtime.model(
            "a", Script(weight_bytes=10 * MIB, cache_bytes_per_ctx=2 << 10, n_ctx_train=65536)
        )
        async with runtime.leased(model, LoadOptions(n_ctx=1024)) as first:
            assert first.n_ctx == 1024
        async with runtime.leased(model, LoadOptions(n_ctx=10000)) as second:
            assert (second.n_ctx, second.runner_id != first.runner_id) == (10000, True)


async def test_a_configured_context_is_what_is_loaded_and_longer_ones_are_loaded_anew(run_dir: Path) -> None:
    async with rig(run_dir, n_ctx=1024) as runtime:
        model = runtime.model("a", Script(n_ctx_train=16384))
        async with runtime.leased(model, LoadOptions(n_ctx=512)) as first:
            assert first.n_ctx == 512
        async with runtime.leased(model, LoadOptions(n_ctx=1024)) as second:
            assert (second.n_ctx, second.runner_id) == (1024, first.runner_id)
        async with runtime.leased(model, LoadOptions(n_ctx=2048)) as third:
            assert (third.n_ctx, third.runner_id != first.runner_id) == (2048, True)


async def test_an_open_context_is_content_with_a_longer_one_than_the_default(runtime: Rig) -> None:
    model = runtime.model("a", Script(n_ctx_train=16384))
    async with runtime.leased(model, LoadOptions(n_ctx=8192)) as first:
        pass
    async with runtime.leased(model, LoadOptions()) as second:
        assert second.runner_id == first.runner_id


async def test_a_short_context_that_one_client_asked_for_is_not_forced_on_the_next(runtime: Rig) -> None:
    model = runtime.model("a")
    async with runtime.leased(model, LoadOptions(n_ctx=16)) as first:
        pass
    async with runtime.leased(model, LoadOptions()) as second:
        assert (first.n_ctx, second.n_ctx > 16) == (16, True)


async def test_a_context_cut_to_the_trained_one_is_no_reason_to_reload(runtime: Rig) -> None:
    model = runtime.model("a", Script(n_ctx_train=2048))
    async with runtime.leased(model, LoadOptions(n_ctx=8192)) as first:
        assert first.n_ctx == 2048
    async with runtime.leased(model, LoadOptions(n_ctx=4096)) as second:
        assert second.runner_id == first.runner_id


async def test_a_reload_is_not_starved_by_users_of_the_old_options(runtime: Rig) -> None:
    model = runtime.model("a")
    async with runtime.acquiring(model, LoadOptions(n_batch=64)) as old:
        first = await old.lease()
        async with runtime.acquiring(model, LoadOptions(n_batch=128)) as new:
            await runtime.until_gauge("queued", 1)
            async with runtime.acquiring(model, LoadOptions(n_batch=64)) as late:
                await runtime.until_gauge("queued", 2)
                await old.release()
                second = await new.lease()
                await new.release()
                third = await late.lease()
    assert len({first.runner_id, second.runner_id, third.runner_id}) == 3


async def test_a_full_queue_refuses_in_the_words_clients_know(run_dir: Path) -> None:
    gate = run_dir / "gate"
    async with rig(run_dir, max_queue=1) as runtime:
        model = runtime.model("a", Script(gate=str(gate)))
        async with runtime.acquiring(model) as first:
            await runtime.until_gauge("queued", 1)
            with pytest.raises(QueueFull) as caught:
                async with runtime.leased(runtime.model("b")):
                    pass
            gate.touch()
            await first.lease()
    assert caught.value.message == "server busy, please try again.  maximum pending requests exceeded"


async def test_a_loaded_model_is_served_while_another_loads(runtime: Rig, run_dir: Path) -> None:
    gate = run_dir / "gate"
    loaded, slow = runtime.model("a"), runtime.model("b", Script(gate=str(gate)))
    async with runtime.leased(loaded):
        pass
    async with runtime.acquiring(slow) as waiting:
        await runtime.until_gauge("models_loading", 1)
        async with runtime.leased(loaded) as lease:
            assert lease.load_s == 0
        gate.touch()
        await waiting.lease()


async def test_a_request_cancelled_in_the_queue_loads_nothing(runtime: Rig, run_dir: Path) -> None:
    count, gate = run_dir / "count", run_dir / "gate"
    slow = runtime.model("a", Script(gate=str(gate), count=str(count)))
    async with runtime.acquiring(slow) as waiting:
        await runtime.until_gauge("models_loading", 1)
        async with runtime.acquiring(runtime.model("b", Script(count=str(count)))):
            await runtime.until_gauge("queued", 2)
        await runtime.until_gauge("queued", 1)
        gate.touch()
        await waiting.lease()
    assert count.read_text().splitlines() == ["a"]


async def test_a_load_that_nobody_waits_for_any_more_is_aborted(runtime: Rig, run_dir: Path) -> None:
    slow = runtime.model("a", Script(gate=str(run_dir / "never")))
    async with runtime.acquiring(slow):
        await runtime.until_gauge("models_loading", 1)
        await runtime.until_loaded("a")
    await runtime.until_loaded()
    await runtime.until_runners(0)


async def test_a_load_goes_on_while_one_waiter_stays(runtime: Rig, run_dir: Path) -> None:
    count, gate = run_dir / "count", run_dir / "gate"
    slow = runtime.model("a", Script(gate=str(gate), count=str(count)))
    async with runtime.acquiring(slow) as staying:
        async with runtime.acquiring(slow):
            await runtime.until_gauge("queued", 2)
        await runtime.until_gauge("queued", 1)
        gate.touch()
        await staying.lease()
    assert count.read_text().splitlines() == ["a"]


async def test_an_idle_lease_holds_and_a_lost_connection_releases_at_once(runtime: Rig) -> None:
    model = runtime.model("a")
    async with runtime.other_link() as link, runtime.leased(model, over=link):
        assert (await runtime.gauges())["leases"] == 1
        link.hang_up()
        await runtime.until_gauge("leases", 0)
