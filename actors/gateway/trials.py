"""Which request a runner died of: after a death, requests are tried one at a time.

Every stream that a runner served when it died is a suspect.  Suspects, and whoever comes while there are any,
go to the next runner one after the other: the next one waits until the answer of the one before goes on.  A
runner that dies meanwhile died of the one on trial, and not of those that passed.  So a request that kills
whoever takes it is known at its second runner, and all others go on.
"""

from collections import defaultdict
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from weakref import WeakSet

import trio

from actors.link import Link


@dataclass(slots=True, eq=False)
class _Court:
    """Of one model."""

    n_present: int = 0  # on trial, and waiting for it
    turn: trio.Semaphore = field(default_factory=lambda: trio.Semaphore(1))


class Trial:
    """One request at one runner; on trial until `passed`, or not at all."""

    def __init__(self, court: _Court | None, blamed: WeakSet[Link]) -> None:
        self._court = court
        self._blamed = blamed
        self._link: Link | None = None

    def begin(self, link: Link) -> None:
        """The runner behind this link gets the request."""
        self._link = link
        if self._court is not None:
            self._blamed.add(link)

    def passed(self) -> None:
        """The runner lives, and the answer goes on or has ended; a second call does nothing."""
        if self._court is not None and self._link is not None:
            self._blamed.discard(self._link)
        self._leave()

    def died(self) -> bool:
        """The runner is dead: whether it may have died of this request."""
        is_on, is_others = self._court is not None, self._link in self._blamed
        self._leave()
        return is_on or not is_others

    def _leave(self) -> None:
        court, self._court = self._court, None
        if court is not None:
            court.n_present -= 1
            court.turn.release()


class Trials:
    """Of all models of a gateway."""

    def __init__(self) -> None:
        self._courts: dict[str, _Court] = defaultdict(_Court)  # by digest
        self._blamed: WeakSet[Link] = WeakSet()  # links to runners that have somebody on trial, or died of it

    @asynccontextmanager
    async def entry(self, digest: str, *, is_suspect: bool) -> AsyncGenerator[Trial]:
        """Enter in turn where there are suspects; leaving the block ends the trial."""
        court = self._courts[digest]
        if not is_suspect and court.n_present == 0:
            yield Trial(None, self._blamed)
            return
        court.n_present += 1
        try:
            await court.turn.acquire()
        except trio.Cancelled:
            court.n_present -= 1
            raise
        trial = Trial(court, self._blamed)
        try:
            yield trial
        finally:
            trial.passed()
