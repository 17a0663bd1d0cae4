"""The life of a model in memory, its keep-alive, and when other options mean another load."""

import itertools
import math

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from actors.errors import PeerGone
from actors.protocol import LoadOptions, MemoryItem, MemoryReport, ModelSpec
from actors.scheduler.life import MOVES, Life, Resident
from actors.scheduler.reuse import serves

DEFAULTS = LoadOptions(n_batch=512, n_parallel=4, kv_type="f16", n_thread=6)


def report(n_ctx: int = 4096, n_ctx_train: int = 8192) -> MemoryReport:
    return MemoryReport(
        devices=(),
        input_weights=MemoryItem(0),
        n_layer=1,
        n_ctx=n_ctx,
        n_ctx_train=n_ctx_train,
        n_batch=512,
        n_parallel=4,
    )


def resident(keep_alive_s: float = 300, *, is_ready: bool = True) -> Resident:
    model = ModelSpec(name="m:1b", digest="sha256:0", path="/m", size_bytes=1)
    made = Resident(model, LoadOptions(), "m-0", keep_alive_s)
    if is_ready:
        made.become_ready(report(), now_s=100.0)
    return made


@pytest.mark.parametrize(("start", "to"), tuple(itertools.product(Life, Life)))
def test_only_moves_of_the_table_are_made_and_others_name_both_states(start: Life, to: Life) -> None:
    paths = {
        Life.LOADING: (),
        Life.READY: (Life.READY,),
        Life.EXPIRING: (Life.READY, Life.EXPIRING),
        Life.STOPPING: (Life.STOPPING,),
        Life.GONE: (Life.GONE,),
    }
    model = resident(is_ready=False)
    for life in paths[start]:
        model.move(life)
    if to in MOVES[start]:
        model.move(to)
        assert model.life is to
    else:
        with pytest.raises(RuntimeError, match=f"{start.name} to {to.name}"):
            model.move(to)


def test_what_expires_never_becomes_ready_again() -> None:
    reachable, frontier = set[Life](), {Life.EXPIRING}
    while frontier:
        reachable |= frontier
        frontier = {to for life in frontier for to in MOVES[life]} - reachable
    assert Life.READY not in reachable


def test_what_expires_takes_no_lease() -> None:
    model = resident()
    model.move(Life.EXPIRING)
    with pytest.raises(RuntimeError, match="EXPIRING"):
        model.lease(3600.0)


def test_the_keep_alive_runs_from_the_last_release() -> None:
    model = resident(keep_alive_s=300)
    model.lease(None)
    model.lease(None)
    model.release(110.0)
    assert model.expires_at_s() == math.inf
    model.release(120.0)
    assert model.expires_at_s() == 420.0


@pytest.mark.parametrize(
    ("asked", "expires_at_s"), [(None, 400.0), (10.0, 110.0), (0.0, 100.0), (-1.0, math.inf)]
)
def test_a_lease_brings_its_keep_alive_or_leaves_the_one_before(
    asked: float | None, expires_at_s: float
) -> None:
    model = resident(keep_alive_s=300)
    model.lease(asked)
    model.release(100.0)
    assert model.expires_at_s() == expires_at_s


def test_a_request_pins_a_model_and_the_next_one_may_unpin_it() -> None:
    model = resident()
    model.lease(-1.0)
    assert model.is_pinned
    model.lease(None)
    assert model.is_pinned
    model.lease(60.0)
    assert not model.is_pinned


def test_a_default_of_for_ever_does_not_pin() -> None:
    model = resident(keep_alive_s=-1)
    model.lease(None)
    assert not model.is_pinned


def test_listings_say_never_stopping_or_the_seconds_left() -> None:
    model = resident(keep_alive_s=300)
    assert model.expires_in_s(150.0) == 250.0
    model.lease(-1.0)
    assert model.expires_in_s(150.0) is None
    model.move(Life.EXPIRING)
    assert model.expires_in_s(150.0) == 0.0


def test_each_user_gets_an_error_object_of_its_own() -> None:
    model = resident()
    model.fault = PeerGone("killed", where="runner", mend="again")
    first, second = model.parting(), model.parting()
    assert first is not second
    assert (first.message, first.mend) == (second.message, second.mend) == ("killed", "again")


@pytest.mark.parametrize(
    ("loaded", "wanted", "is_served"),
    [
        (LoadOptions(), LoadOptions(), True),
        (LoadOptions(n_ctx=1024), LoadOptions(), False),  # shorter than the default
        (LoadOptions(n_ctx=8192), LoadOptions(), True),
        (LoadOptions(n_ctx=1024), LoadOptions(n_ctx=2048), False),
        (LoadOptions(n_ctx=2048), LoadOptions(n_ctx=1024), True),  # a limit of the request
        (LoadOptions(), LoadOptions(n_ctx=4096), True),  # the report says 4096
        (LoadOptions(n_batch=512), LoadOptions(), True),
        (LoadOptions(n_batch=256), LoadOptions(), True),
        (LoadOptions(), LoadOptions(n_batch=256), False),
        (LoadOptions(n_gpu=3), LoadOptions(n_gpu=-1), True),
        (LoadOptions(n_gpu=-1), LoadOptions(n_gpu=99), False),
        (LoadOptions(), LoadOptions(kv_type="f16"), True),
        (LoadOptions(), LoadOptions(kv_type="f32"), False),
        (LoadOptions(n_thread=2), LoadOptions(n_thread=3), False),
        (LoadOptions(), LoadOptions(n_thread=6), True),  # as many as there are cores
        (LoadOptions(n_gpu=99), LoadOptions(n_gpu=98), True),  # of two layers, all
        (LoadOptions(n_gpu=1), LoadOptions(n_gpu=99), False),
        (LoadOptions(n_gpu=2), LoadOptions(n_gpu=99), True),
        (LoadOptions(n_ctx=128), LoadOptions(n_ctx=128, n_batch=2048), True),  # a batch is cut to the context
        (LoadOptions(n_ctx=128), LoadOptions(n_ctx=128, n_batch=64), False),
        (LoadOptions(n_parallel=8), LoadOptions(n_parallel=2), False),
        (LoadOptions(), LoadOptions(n_parallel=4), True),
    ],
)
def test_options_that_make_a_difference_mean_a_reload(
    loaded: LoadOptions, wanted: LoadOptions, is_served: bool
) -> None:
    n_ctx = loaded.n_ctx or 4096
    sized = msgspec.structs.replace(report(n_ctx=n_ctx), n_batch=min(loaded.n_batch or 512, n_ctx))
    assert serves(loaded, sized, wanted, DEFAULTS) is is_served


@given(n_ctx=st.integers(0, 1 << 20), n_batch=st.integers(0, 4096), n_gpu=st.integers(-1, 99))
def test_a_model_always_serves_the_options_it_was_loaded_with(n_ctx: int, n_batch: int, n_gpu: int) -> None:
    options = LoadOptions(n_ctx=n_ctx, n_batch=n_batch, n_gpu=n_gpu)
    assert serves(options, report(n_ctx=min(n_ctx or 4096, 8192)), options, DEFAULTS)
