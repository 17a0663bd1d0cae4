"""One library's life: looked at, its free memory watched, looked at again when something is wrong."""

import logging
import math
from collections.abc import Callable

import msgspec
import trio

from actors.discovery.merge import is_watched, with_memory
from actors.discovery.probes import ProbeFailed, Probes, Watch
from actors.discovery.retry import STEADY_S, delay_s
from actors.protocol import LibraryReport

log = logging.getLogger(__name__)


class Library:
    """Keeps `report` true; `on_change` is called after each change of it."""

    def __init__(
        self,
        name: str,
        probes: Probes,
        on_change: Callable[[], None],
        *,
        measure_every_s: float,
        first_after_s: float = 0.0,
    ) -> None:
        self.name = name
        self.report: LibraryReport | None = None  # None until it was looked at for the first time
        self._probes = probes
        self._measure_every_s = measure_every_s
        self._first_after_s = first_after_s
        self._on_change = on_change
        self._n_failures = 0  # looks and watches in a row
        self._next_try_s = 0.0  # on trio's clock
        self.n_failures_total = 0  # for the gauges
        self._n_looks = 0
        self._n_asked = 0  # readings begun and done
        self._n_read = 0
        self._is_watching = False
        self._is_stale = False  # somebody wants it looked at again
        self._hurry = trio.Event()
        self._news = trio.Event()

    async def run(self) -> None:
        """Look, watch and look again, for ever."""
        await self._wait(self._first_after_s)
        while True:
            report = await self._look()
            if any(map(is_watched, report.devices)):
                await self._watch()
            if not self._is_stale:
                await self._pause(report)

    def told(self) -> LibraryReport | None:
        """The report, with when it will be looked at again."""
        wait_s = self._next_try_s - trio.current_time()
        if self.report is None or self._is_watching or not 0 <= wait_s < math.inf:
            return self.report
        return msgspec.structs.replace(self.report, next_try_s=round(wait_s, 1))

    async def look_again(self) -> None:
        """Look at the library anew; back when it was done.  The caller has a bound."""
        n_looks = self._n_looks
        self._is_stale = self.report is not None  # else the first look is on its way
        while self._n_looks == n_looks:
            self._hurry.set()  # out of any wait: for the first look, the next one, the next reading
            await self._news.wait()

    async def measure(self) -> None:
        """Free memory anew, where it is watched; back when it was read.  The caller has a bound."""
        wanted = self._n_asked + 1  # one that is under way began before we asked
        while self._is_watching and self._n_read < wanted:
            self._hurry.set()
            await self._news.wait()

    async def _look(self) -> LibraryReport:
        self._is_stale = False
        report = await self._probes.look(self.name)
        if report.state == "failed":
            self._n_failures += 1
            self.n_failures_total += 1
            log.warning("%s; trying again in %.0f s", report.reason, delay_s(report, self._n_failures))
        elif not any(map(is_watched, report.devices)):
            self._n_failures = 0
        if not self._is_stale:
            self._hurry = trio.Event()  # whoever hurried us has what was wanted
        self._n_looks += 1
        self._take(report)
        return report

    async def _watch(self) -> None:
        """Read free memory until it fails, or speaks of other devices than the report."""
        began_s, n_read = trio.current_time(), self._n_read
        self._is_watching = True
        try:
            await self._probes.watch(self.name, self._follow)
            is_good = self._n_read > n_read + 1  # it agreed at first, so a device came or went
        except ProbeFailed as fault:
            is_good = trio.current_time() - began_s >= STEADY_S
            self.n_failures_total += 1
            log.warning("%s", fault)
        finally:
            self._is_watching = False
        if not self._is_stale:  # else it ended because somebody asked
            self._n_failures = 1 if is_good else self._n_failures + 1
        self._tell()

    async def _follow(self, watch: Watch) -> None:
        while await self._read(watch):
            await self._wait(self._measure_every_s)
            if self._is_stale:
                return

    async def _read(self, watch: Watch) -> bool:
        assert self.report is not None
        self._n_asked += 1
        report, agrees = with_memory(self.report, await watch.measure())
        self._n_read = self._n_asked
        if not agrees:
            log.info("%s has other devices than before", self.name)
        self._take(report)
        return agrees

    async def _pause(self, report: LibraryReport) -> None:
        pause_s = delay_s(report, self._n_failures)
        self._next_try_s = trio.current_time() + pause_s
        await self._wait(pause_s)

    async def _wait(self, at_most_s: float) -> None:
        with trio.move_on_after(at_most_s):
            await self._hurry.wait()
        self._hurry = trio.Event()

    def _take(self, report: LibraryReport) -> None:
        self.report = report
        self._on_change()
        self._tell()

    def _tell(self) -> None:
        self._news.set()
        self._news = trio.Event()
