"""Who waits for a model to be loaded.  Bounded; waiters for the same load share it."""

import copy
from collections.abc import Callable

import trio

from actors.errors import QueueFull, RuntimeFault
from actors.protocol import Acquire, LoadOptions, LoadProgress, ModelSpec, Queued, WaitingModel
from actors.scheduler.life import Resident
from actors.scheduler.reuse import serves

News = Queued | LoadProgress


class Waiter:
    """One Acquire that waits.  Holds the latest news only: a slow reader skips, nothing grows."""

    def __init__(self, request: Acquire) -> None:
        self.request = request
        self.resident: Resident | None = None  # leased to it, once granted
        self._fault: RuntimeFault | None = None
        self._news: News | None = None
        self._told: News | None = None
        self._changed = trio.Event()

    def tell(self, news: News) -> None:
        """Why it still waits."""
        self._news = news
        self._changed.set()

    def grant(self, resident: Resident) -> None:
        """End the wait with a lease, counted from now on even if the waiter's task has not run yet."""
        resident.lease(self.request.keep_alive_s)
        self.resident = resident
        self._changed.set()

    def fail(self, fault: RuntimeFault) -> None:
        """End the wait with an error; copied, as an exception object belongs to one task."""
        self._fault = copy.copy(fault)
        self._changed.set()

    async def next(self) -> News | Resident:
        """The next news, or the resident that was granted.  Raises the fault that ended the wait."""
        while True:
            if self.resident is not None:
                return self.resident
            if self._fault is not None:
                raise self._fault
            if self._news is not None and self._news != self._told:
                self._told = self._news
                return self._news
            self._changed = trio.Event()
            await self._changed.wait()


class Group:
    """Waiters whom one load serves."""

    def __init__(self, model: ModelSpec, options: LoadOptions, since_s: float) -> None:
        self.model = model
        self.options = options
        self.since_s = since_s
        self.waiters: list[Waiter] = []
        self.scope: trio.CancelScope | None = None  # of the task that serves it; cancelled when nobody waits
        self._news: News = Queued(position=0, reason="about to load")

    def join(self, waiter: Waiter) -> None:
        """One more; it hears at once what the others heard last."""
        self.waiters.append(waiter)
        waiter.tell(self._news)

    def tell(self, news: News) -> None:
        """The same news to all."""
        self._news = news
        for waiter in self.waiters:
            waiter.tell(news)

    def listing(self, position: int, now_s: float) -> WaitingModel:
        """As it stands in Loaded."""
        news = self._news
        return WaitingModel(
            model=self.model,
            options=self.options,
            n_waiting=len(self.waiters),
            waited_s=now_s - self.since_s,
            position=position,
            reason=news.reason if isinstance(news, Queued) else str(news),
            progress=news if isinstance(news, LoadProgress) else None,
        )


class PendingQueue:
    """Groups in the order of their first waiter; at most `max_pending` waiters in all."""

    def __init__(self, max_pending: int, defaults: LoadOptions) -> None:
        self.max_pending = max_pending
        self.n_refused = 0  # for want of room
        self._defaults = defaults
        self._groups: list[Group] = []

    def __len__(self) -> int:
        return sum(len(group.waiters) for group in self._groups)

    def add(self, waiter: Waiter, now_s: float) -> Group:
        """Join the group that loads what this waiter wants, or open one.  Raises QueueFull."""
        if len(self) >= self.max_pending:
            self.n_refused += 1
            raise QueueFull(
                "server busy, please try again.  maximum pending requests exceeded",
                where="scheduler.queue",
                mend=f"try again later, or raise OLLAMA_MAX_QUEUE (now {self.max_pending})",
            )
        group = self._joinable(waiter.request, now_s)
        group.join(waiter)
        return group

    def _joinable(self, request: Acquire, now_s: float) -> Group:
        for group in self._groups:
            same_model = group.model.digest == request.model.digest
            if same_model and serves(group.options, None, request.options, self._defaults):
                return group
        group = Group(request.model, request.options, now_s)
        self._groups.append(group)
        return group

    def remove(self, waiter: Waiter) -> None:
        """A waiter left.  A group without waiters goes, and whoever serves it is cancelled."""
        for group in self._groups:
            if waiter in group.waiters:
                group.waiters.remove(waiter)
                if not group.waiters:
                    self._drop(group)
                return

    def _drop(self, group: Group) -> None:
        self._groups.remove(group)
        if group.scope is not None:
            group.scope.cancel()

    def first(self, can_start: Callable[[Group], bool]) -> Group | None:
        """The first group that nobody serves and that can be served now."""
        return next((group for group in self._groups if group.scope is None and can_start(group)), None)

    def is_served(self, digest: str) -> bool:
        """Whether somebody serves a group that waits for this model, with whatever options."""
        return any(group.scope is not None and group.model.digest == digest for group in self._groups)

    def position(self, group: Group) -> int:
        """How many wait in the groups before this one."""
        position = 0
        for other in self._groups:
            if other is group:
                break
            position += len(other.waiters)
        return position

    def listing(self, now_s: float) -> tuple[WaitingModel, ...]:
        """Who waits, in order."""
        return tuple(group.listing(self.position(group), now_s) for group in self._groups)

    def grant(self, group: Group, resident: Resident) -> None:
        """Lease the resident to all of a group; the group is done."""
        self._settle(group, lambda waiter: waiter.grant(resident))

    def fail(self, group: Group, fault: RuntimeFault) -> None:
        """Fail all of a group; the group is done."""
        self._settle(group, lambda waiter: waiter.fail(fault))

    def _settle(self, group: Group, settle: Callable[[Waiter], None]) -> None:
        for waiter in group.waiters:
            settle(waiter)
        group.waiters = []
        if group in self._groups:
            self._groups.remove(group)

    def tell_positions(self, reason: Callable[[Group], str]) -> None:
        """Tell all who wait behind others where they stand; who is being served hears of the load instead."""
        position = 0
        for group in self._groups:
            if group.scope is None:
                group.tell(Queued(position=position, reason=reason(group)))
            position += len(group.waiters)
