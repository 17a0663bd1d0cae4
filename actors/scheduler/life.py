"""The life of a model in memory.  `docs/model-life.md` draws it; MOVES is that chart.

READY serves; with leases it is busy, without it is idle and its keep-alive runs.  EXPIRING lets nobody new in
and waits for the last lease; it never goes back, so a request that arrives meanwhile cannot undo an eviction
that others wait for.  STOPPING waits for the process to end; GONE has ended.
"""

import copy
import enum
import math

import trio

from actors.errors import RuntimeFault
from actors.protocol import Keep, LoadedModel, LoadOptions, LoadProgress, MemoryReport, ModelSpec


class Life(enum.Enum):
    """Where a model in memory is in its life."""

    LOADING = "loading"
    READY = "ready"
    EXPIRING = "expiring"
    STOPPING = "stopping"
    GONE = "gone"


MOVES = {
    Life.LOADING: frozenset({Life.READY, Life.STOPPING, Life.GONE}),
    Life.READY: frozenset({Life.EXPIRING, Life.GONE}),
    Life.EXPIRING: frozenset({Life.STOPPING, Life.GONE}),
    Life.STOPPING: frozenset({Life.GONE}),
    Life.GONE: frozenset[Life](),
}


class Resident:
    """A model in memory: its runner, its leases, its keep-alive.  Times are of one clock, in seconds."""

    def __init__(self, model: ModelSpec, options: LoadOptions, runner_id: str, keep_alive_s: float) -> None:
        self.model = model
        self.options = options
        self.runner_id = runner_id
        self.keep_alive_s = keep_alive_s  # negative: for ever
        self.told = Keep(keep_alive_s)  # what its runner knows, or needs no telling: the default
        self.pid = 0
        self.address = ""
        self.report: MemoryReport | None = None  # None until it is ready
        self.progress = LoadProgress(phase="starting")
        self.is_unwanted = False  # asked to unload while it loaded: expires as soon as it is ready
        self.is_pinned = False  # somebody asked to keep it for ever: no load of another model evicts it
        self.reload_s = 0.0  # from its memory being promised to being ready, when it was loaded
        self.n_leases = 0
        self.idle_since_s = 0.0
        self.fault: RuntimeFault | None = None  # why it is gone, if it died
        self.over = trio.Event()  # for its users: the leases end
        self.gone = trio.Event()  # for those who want its memory
        self._life = Life.LOADING

    @property
    def life(self) -> Life:
        """Where it is in its life."""
        return self._life

    def move(self, to: Life) -> None:
        """Take a step of MOVES; any other is a bug of the scheduler and raises RuntimeError."""
        if to not in MOVES[self._life]:
            raise RuntimeError(f"{self.model.name}: no move from {self._life.name} to {to.name}")
        self._life = to
        if to is Life.GONE:
            self.over.set()
            self.gone.set()

    def become_ready(self, report: MemoryReport, now_s: float) -> None:
        """Loaded: `report` is what it holds."""
        self.report = report
        self.idle_since_s = now_s
        self.move(Life.READY)

    def lease(self, keep_alive_s: float | None) -> None:
        """Let one user in; a keep-alive it brings replaces the one before, and a negative one pins the model.

        A negative default does not pin: it says that nothing expires, not that nothing may make room.
        """
        if self._life is not Life.READY:
            raise RuntimeError(f"{self.model.name}: a lease while {self._life.name}")
        self.n_leases += 1
        if keep_alive_s is not None:
            self.keep_alive_s = keep_alive_s
            self.is_pinned = keep_alive_s < 0

    def release(self, now_s: float) -> None:
        """One user leaves; the keep-alive starts when the last one does."""
        self.n_leases -= 1
        self.idle_since_s = now_s

    @property
    def keep(self) -> Keep:
        """How long it stays, as its runner remembers it."""
        return Keep(self.keep_alive_s, self.is_pinned)

    @property
    def is_idle(self) -> bool:
        """Ready, and nobody uses it."""
        return self._life is Life.READY and self.n_leases == 0

    def expires_at_s(self) -> float:
        """When an idle model's keep-alive ends; infinity while it is used, or kept for ever."""
        if not self.is_idle or self.keep_alive_s < 0:
            return math.inf
        return self.idle_since_s + self.keep_alive_s

    def expires_in_s(self, now_s: float) -> float | None:
        """For listings: None never, 0 stopping.  While it is used, the keep-alive that will follow."""
        if self._life in (Life.EXPIRING, Life.STOPPING, Life.GONE):
            return 0.0
        if self.keep_alive_s < 0:
            return None
        if self.n_leases or self._life is Life.LOADING:
            return self.keep_alive_s
        return max(0.0, self.idle_since_s + self.keep_alive_s - now_s)

    def parting(self) -> RuntimeFault:
        """A fresh copy of why it is gone: one exception object must not be raised in several tasks."""
        if self.fault is None:
            return RuntimeFault(
                f"{self.model.name} was unloaded",
                where="scheduler",
                mend="send the request again: it loads anew",
            )
        return copy.copy(self.fault)

    def listing(self, now_s: float) -> LoadedModel | None:
        """As it stands in ListLoaded; None before its memory is known."""
        if self.report is None or self._life is Life.GONE:
            return None
        return LoadedModel(
            model=self.model,
            options=self.options,
            runner_id=self.runner_id,
            runner_pid=self.pid,
            report=self.report,
            expires_in_s=self.expires_in_s(now_s),
            n_leases=self.n_leases,
            progress=self.progress if self._life is Life.LOADING else None,
        )
