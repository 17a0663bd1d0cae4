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

    n_suspects: int = 0  # on trial, and waiting for it; newcomers beside them not
    turn: trio.Semaphore = field(default_factory=lambda: trio.Semaphore(1))


class Trial:
    """One request at one runner; on trial until `passed`, or not at all."""

    def __init__(
        self, blamed: WeakSet[Link], court: _Court | None = None, *, is_suspect: bool = False
    ) -> None:
        self._blamed = blamed
        self._court = court
        self._is_suspect = is_suspect
        self._link: Link | None = None

    @property
    def is_of_suspect(self) -> bool:
        """Whether a runner may have died of the request before, and it has not gone on since."""
        return self._court is not None and self._is_suspect

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
            court.n_suspects -= self._is_suspect
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
        if not is_suspect and court.n_suspects == 0:
            yield Trial(self._blamed)
            return
        court.n_suspects += is_suspect
        try:
            await court.turn.acquire()
        except trio.Cancelled:
            court.n_suspects -= is_suspect
            raise
        trial = Trial(self._blamed, court, is_suspect=is_suspect)
        if court.n_suspects == 0:
            trial.passed()  # the last suspect has left: newcomers wait for each other no longer
        try:
            yield trial
        finally:
            trial.passed()
