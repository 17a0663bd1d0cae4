"""A library's life without processes: probes that answer as they are told, on a clock that leaps."""

from collections.abc import Awaitable, Callable, Iterator
from itertools import chain, pairwise, repeat

import trio
import trio.testing

from actors.discovery.library import Library
from actors.discovery.probes import ProbeFailed, Probes, Watch
from actors.protocol import Device, FreeMemory, LibraryReport

FAILED = LibraryReport("sim", "failed", reason="crashed")
NONE = LibraryReport("sim", "none")
FOUND = LibraryReport("sim", "found", (Device("a", "sim", "d", 100, 50, memory_from="sim"),))
KERNELS = LibraryReport("cpu", "found")
READING = (FreeMemory("a", 100, 7),)
OTHER = (FreeMemory("b", 100, 7),)

Answer = tuple[FreeMemory, ...] | ProbeFailed


class Told(Probes):
    """Answers from two lists, and notes when it was asked to look."""

    def __init__(self, reports: Iterator[LibraryReport], readings: Iterator[Answer]) -> None:
        self._reports, self._readings = reports, readings
        self.looked_at_s: list[float] = []
        self.n_read = 0

    async def look(self, library: str) -> LibraryReport:
        await trio.lowlevel.checkpoint()
        self.looked_at_s.append(trio.current_time())
        return next(self._reports)

    async def watch(self, library: str, use: Callable[[Watch], Awaitable[None]]) -> None:
        await use(Readings(self))

    def read(self) -> tuple[FreeMemory, ...]:
        self.n_read += 1
        answer = next(self._readings)
        if isinstance(answer, ProbeFailed):
            raise answer
        return answer


class Readings(Watch):
    def __init__(self, told: Told) -> None:
        self._told = told

    async def measure(self) -> tuple[FreeMemory, ...]:
        await trio.lowlevel.checkpoint()
        return self._told.read()


async def live(told: Told, for_s: float) -> list[float]:
    """The pauses between looks in that time."""
    library = Library("sim", told, lambda: None, measure_every_s=2.0)
    with trio.move_on_after(for_s):
        await library.run()
    return [round(later - earlier, 3) for earlier, later in pairwise(told.looked_at_s)]


async def test_a_library_that_fails_is_looked_at_ever_more_rarely(
    autojump_clock: trio.testing.MockClock,
) -> None:
    assert (await live(Told(repeat(FAILED), iter(())), 1500))[:10] == [1, 2, 4, 8, 16, 32, 64, 128, 256, 300]


async def test_success_ends_the_growing_of_pauses(autojump_clock: trio.testing.MockClock) -> None:
    reports = chain((FAILED, FAILED, FAILED, NONE), repeat(FAILED))
    assert await live(Told(reports, iter(())), 40) == [1, 2, 4, 30, 1]


async def test_what_works_is_left_alone(autojump_clock: trio.testing.MockClock) -> None:
    assert await live(Told(repeat(KERNELS), iter(())), 10**6) == []
    assert await live(Told(repeat(FOUND), repeat(READING)), 1000) == []


async def test_a_watch_that_fails_at_once_again_and_again_is_tried_ever_more_rarely(
    autojump_clock: trio.testing.MockClock,
) -> None:
    readings = repeat(ProbeFailed("crashed"))
    assert (await live(Told(repeat(FOUND), readings), 60))[:5] == [1, 2, 4, 8, 16]


async def test_a_watch_that_fails_after_long_is_replaced_soon(autojump_clock: trio.testing.MockClock) -> None:
    steady = [*repeat(READING, 20), ProbeFailed("crashed")]
    readings = chain(steady, steady, repeat(READING))
    assert await live(Told(repeat(FOUND), readings), 1000) == [41, 41]


async def test_a_device_that_comes_late_is_looked_at_soon_and_one_that_nobody_lists_ever_more_rarely(
    autojump_clock: trio.testing.MockClock,
) -> None:
    late = chain((READING, READING, OTHER), repeat(READING))
    assert await live(Told(repeat(FOUND), late), 1000) == [5]
    assert (await live(Told(repeat(FOUND), repeat(OTHER)), 40))[:5] == [1, 2, 4, 8, 16]


async def test_asking_for_a_look_is_answered_now_and_is_no_failure(
    autojump_clock: trio.testing.MockClock,
) -> None:
    told = Told(repeat(FOUND), repeat(READING))
    library = Library("sim", told, lambda: None, measure_every_s=2.0)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(library.run)
        for n_looks in (1, 2, 3):
            await library.look_again()
            assert len(told.looked_at_s) == n_looks
        assert told.looked_at_s == [0, 0, 0]
        nursery.cancel_scope.cancel()


async def test_a_look_that_may_wait_comes_when_it_is_asked_for(
    autojump_clock: trio.testing.MockClock,
) -> None:
    told = Told(repeat(KERNELS), iter(()))
    library = Library("cpu", told, lambda: None, measure_every_s=2.0, first_after_s=5.0)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(library.run)
        await library.look_again()
        assert told.looked_at_s == [0]
        nursery.cancel_scope.cancel()


async def test_a_measurement_that_is_asked_for_began_after_the_question(
    autojump_clock: trio.testing.MockClock,
) -> None:
    told = Told(repeat(FOUND), repeat(READING))
    library = Library("sim", told, lambda: None, measure_every_s=1000.0)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(library.run)
        await trio.testing.wait_all_tasks_blocked()
        for n_read in (2, 3):
            await library.measure()
            assert told.n_read == n_read
        nursery.cancel_scope.cancel()
    assert trio.current_time() < 1000
