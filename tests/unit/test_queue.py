"""Who waits for a load: bounded, shared, in order."""

import pytest
import trio

from actors.errors import CapacityError, QueueFull
from actors.protocol import Acquire, LoadOptions, LoadProgress, MemoryItem, MemoryReport, ModelSpec, Queued
from actors.scheduler.life import Resident
from actors.scheduler.queue import PendingQueue, Waiter

DEFAULTS = LoadOptions(n_batch=512, n_parallel=4, kv_type="f16")


def waiter(name: str, n_ctx: int = 0) -> Waiter:
    model = ModelSpec(name=name, digest=name, path="/", size_bytes=1)
    return Waiter(Acquire(model, LoadOptions(n_ctx=n_ctx)))


def ready(name: str) -> Resident:
    model = ModelSpec(name=name, digest=name, path="/", size_bytes=1)
    resident = Resident(model, LoadOptions(), f"{name}-0", 300)
    empty = MemoryReport(
        devices=(), input_weights=MemoryItem(0), n_layer=0, n_ctx=1, n_ctx_train=1, n_batch=1, n_parallel=1
    )
    resident.become_ready(empty, 0.0)
    return resident


def queue(max_pending: int = 9) -> PendingQueue:
    return PendingQueue(max_pending, DEFAULTS)


def test_waiters_for_the_same_load_share_a_group() -> None:
    pending = queue()
    assert pending.add(waiter("a"), 0.0) is pending.add(waiter("a"), 0.0)


def test_other_options_are_another_group() -> None:
    pending = queue()
    assert pending.add(waiter("a", 1024), 0.0) is not pending.add(waiter("a", 2048), 0.0)


def test_an_open_context_joins_a_group_with_a_long_one_only() -> None:
    pending = queue()
    short, long = pending.add(waiter("a", 1024), 0.0), pending.add(waiter("a", 8192), 0.0)
    assert pending.add(waiter("a"), 0.0) is long is not short


def test_groups_are_served_in_the_order_of_their_first_waiter() -> None:
    pending = queue()
    first = pending.add(waiter("a"), 0.0)
    pending.add(waiter("b"), 0.0)
    pending.add(waiter("a"), 0.0)
    assert pending.first(lambda group: True) is first


def test_a_group_that_cannot_start_is_passed_over() -> None:
    pending = queue()
    pending.add(waiter("a"), 0.0)
    second = pending.add(waiter("b"), 0.0)
    assert pending.first(lambda group: group.model.name != "a") is second


def test_one_more_than_the_bound_is_refused_in_the_words_clients_know() -> None:
    pending = queue(1)
    pending.add(waiter("a"), 0.0)
    with pytest.raises(
        QueueFull, match=r"server busy, please try again\.  maximum pending requests exceeded"
    ):
        pending.add(waiter("b"), 0.0)
    assert len(pending) == 1


def test_a_group_whose_last_waiter_left_is_gone() -> None:
    pending = queue()
    first, second = waiter("a"), waiter("a")
    pending.add(first, 0.0)
    pending.add(second, 0.0)
    pending.remove(first)
    assert len(pending) == 1
    pending.remove(second)
    assert pending.first(lambda group: True) is None


async def test_a_grant_leases_to_all_waiters_at_once() -> None:
    pending = queue()
    both = [waiter("a"), waiter("a")]
    group, _ = (pending.add(each, 0.0) for each in both)
    resident = ready("a")
    pending.grant(group, resident)
    assert resident.n_leases == 2  # before any of their tasks ran
    assert [await each.next() for each in both] == [resident, resident]
    assert len(pending) == 0


async def test_a_failure_reaches_each_waiter_as_an_object_of_its_own() -> None:
    pending = queue()
    both = [waiter("a"), waiter("a")]
    group, _ = (pending.add(each, 0.0) for each in both)
    pending.fail(group, CapacityError("no room", where="here", mend="less"))
    faults: list[CapacityError] = []
    for each in both:
        with pytest.raises(CapacityError, match="no room") as caught:
            await each.next()
        faults.append(caught.value)
    assert faults[0] is not faults[1]
    assert faults[0].mend == "less"


async def test_a_slow_reader_gets_the_latest_news_only() -> None:
    waiting = waiter("a")
    for done in range(1000):
        waiting.tell(LoadProgress(phase="reading", done_bytes=done, total_bytes=1000))
    assert await waiting.next() == LoadProgress(phase="reading", done_bytes=999, total_bytes=1000)


async def test_positions_count_those_ahead() -> None:
    pending = queue()
    waiters = [waiter("a"), waiter("a"), waiter("b")]
    for each in waiters:
        pending.add(each, 0.0)
    pending.tell_positions(lambda group: f"for {group.model.name}")
    assert [await each.next() for each in waiters] == [
        Queued(0, "for a"),
        Queued(0, "for a"),
        Queued(2, "for b"),
    ]


def test_a_group_that_somebody_serves_is_not_started_again() -> None:
    pending = queue()
    first, second = (pending.add(waiter(name), 0.0) for name in "ab")
    first.scope = trio.CancelScope()
    assert pending.first(lambda group: True) is second
    assert pending.is_served("a")
    assert not pending.is_served("b")


def test_a_listing_says_who_waits_for_how_long_and_why() -> None:
    pending = queue()
    pending.add(waiter("a"), 1.0)
    second = pending.add(waiter("b"), 2.0)
    second.tell(LoadProgress(phase="reading", done_bytes=37, total_bytes=100))
    pending.add(waiter("b"), 3.0)
    listing = pending.listing(5.0)
    told = [(each.model.name, each.n_waiting, each.waited_s, each.position, each.reason) for each in listing]
    assert told == [("a", 1, 4.0, 0, "about to load"), ("b", 2, 3.0, 1, "reading 37 %")]


def test_refusals_are_counted() -> None:
    pending = queue(1)
    pending.add(waiter("a"), 0.0)
    with pytest.raises(QueueFull):
        pending.add(waiter("b"), 0.0)
    assert pending.n_refused == 1
