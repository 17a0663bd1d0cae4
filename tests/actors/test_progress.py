"""What a load tells while it works on a thread: news only, and where it is told that nobody wants it."""

import pytest
import trio

from actors.protocol import LoadProgress
from actors.runner.progress import EVERY_BYTES, Phase, Teller


async def told(*steps: tuple[Phase, int, int]) -> list[LoadProgress]:
    send, receive = trio.open_memory_channel[LoadProgress](len(steps))

    def work() -> None:
        tell = Teller(send)
        for step in steps:
            tell(*step)

    async with send, receive:
        await trio.to_thread.run_sync(work)
        await send.aclose()
        return [item async for item in receive]


async def test_a_change_of_phase_and_the_end_are_news() -> None:
    items = await told(("allocating", 0, 9), ("reading", 0, 9), ("reading", 9, 9), ("finalising", 9, 9))
    assert [(item.phase, item.done_bytes) for item in items] == [
        ("allocating", 0), ("reading", 0), ("reading", 9), ("finalising", 9)
    ]  # fmt: skip


async def test_a_load_that_does_not_move_says_nothing_more() -> None:
    still: tuple[Phase, int, int] = ("reading", 5, 9)
    assert len(await told(still, still, still)) == 1


async def test_large_steps_are_told_one_by_one() -> None:
    total_bytes = 3 * EVERY_BYTES
    steps: list[tuple[Phase, int, int]] = [
        ("reading", done, total_bytes) for done in range(0, total_bytes + 1, EVERY_BYTES)
    ]
    assert len(await told(*steps)) == 4


async def test_giving_up_arrives_where_it_is_told() -> None:
    send, receive = trio.open_memory_channel[LoadProgress](1)
    n_told = 0

    def work() -> None:
        nonlocal n_told
        tell = Teller(send)
        for done in range(10):
            if done == 3:
                trio.from_thread.run_sync(scope.cancel)
            tell("reading", done, 10)
            n_told += 1

    async with send, receive:
        with trio.CancelScope() as scope:
            await trio.to_thread.run_sync(work)
            pytest.fail("it worked on")
    assert n_told == 3
