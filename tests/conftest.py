"""What all tests share: nobody may hold the event loop for long."""

import gc
import shutil
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any, Final

import pytest
import trio
from hypothesis import settings
from trio.abc import Clock, Instrument

settings.register_profile("steady", deadline=None)  # how long an example takes is the machine's affair
settings.load_profile("steady")

MAX_STEP_S: Final = 0.25
WATCHED: Final = ("tests/unit/", "tests/actors/")


class StepWatch(Instrument):
    """Notes task steps that hold the loop for more than MAX_STEP_S of this thread's processor time.

    The rule is 50 ms; the longest step of ours takes a third of it. The limit here leaves a slow and busy
    machine five times the rule, so that what it fails are blocking calls, never the machine.

    Processor time, not the clock on the wall: a busy machine stops us where we would not have stopped.  The
    garbage collector's time is taken off: how long it takes says how much other tests have left behind.
    """

    def __init__(self) -> None:
        self._began_s = 0.0
        self._gc_began_s = 0.0
        self._gc_s = 0.0
        self.long_steps: list[str] = []

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        """Start the watch."""
        self._gc_s = 0.0
        self._began_s = time.thread_time()

    def after_task_step(self, task: trio.lowlevel.Task) -> None:
        """Stop it."""
        took_s = time.thread_time() - self._began_s - self._gc_s
        if took_s > MAX_STEP_S:
            self.long_steps.append(f"{task.name} held the loop for {1000 * took_s:.0f} ms")

    def on_gc(self, phase: str, _info: dict[str, int]) -> None:
        """For gc.callbacks."""
        if phase == "start":
            self._gc_began_s = time.thread_time()
        else:
            self._gc_s += time.thread_time() - self._gc_began_s


def run_watched(
    main: Callable[..., Awaitable[object]], *args: object, clock: Clock | None, instruments: list[Instrument]
) -> object:
    """trio.run, and AssertionError when a task step held the loop for too long."""
    watch = StepWatch()
    gc.callbacks.append(watch.on_gc)
    try:
        result = trio.run(main, *args, clock=clock, instruments=[*instruments, watch])
    finally:
        gc.callbacks.remove(watch.on_gc)
    assert not watch.long_steps, f"more than {MAX_STEP_S} s: {'; '.join(watch.long_steps[:5])}"
    return result


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Async tests of the watched folders run under a StepWatch."""
    for item in items:
        place = item.path.relative_to(config.rootpath).as_posix()
        if place.startswith(WATCHED) and item.get_closest_marker("trio") is not None:
            mark: Any = pytest.mark.trio(run=run_watched)
            item.add_marker(mark, append=False)


@pytest.fixture
def run_dir() -> Iterator[Path]:
    """A directory of ours alone, its path short enough for sockets; removed afterwards."""
    path = Path(tempfile.mkdtemp(prefix="rt-"))
    yield path
    shutil.rmtree(path, ignore_errors=True)
