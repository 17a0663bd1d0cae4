"""Serves the queue: one load at a time, room made for it first.  Requests for loaded models pass by."""

import secrets
import time

import trio

from actors.config import Config
from actors.errors import CapacityError, QueueFull, RuntimeFault
from actors.protocol import (
    LoadOptions,
    LoadPlan,
    LoadProgress,
    MemoryReport,
    ModelSpec,
    PlanLoad,
    Queued,
)
from actors.scheduler.changes import Changes
from actors.scheduler.eviction import Victims, make_place, make_room
from actors.scheduler.life import Life, Resident, serves
from actors.scheduler.loading import Loading, Means, Others
from actors.scheduler.queue import Group, PendingQueue, Waiter
from actors.scheduler.residents import Residents
from actors.scheduler.sizes import size_text
from actors.scheduler.steps import Evict

MODELS_PER_DEVICE = 3  # when max_loaded is left open; B1 of the behaviour this runtime is a drop-in for
DEVICES_WAIT_S = 30.0  # discovery probes the devices when it starts
N_PLANS_MAX = 8  # plans that wait or run; each is a process for a second


class Dispatcher:
    """Grants leases: at once for what is loaded, through the queue for the rest."""

    def __init__(
        self, config: Config, means: Means, residents: Residents, defaults: LoadOptions, changes: Changes
    ) -> None:
        self._config = config
        self._means = means
        self._residents = residents
        self._defaults = defaults
        self._changes = changes
        self._closed: frozenset[str] = frozenset()  # busy victims of the load in progress, by digest
        self._planning = trio.CapacityLimiter(1)
        self.queue = PendingQueue(config.max_queue, defaults)
        self.planned: set[str] = set()  # ids of the runners that only size a load
        self.n_loads = 0
        self.n_failures = 0

    def admit(self, waiter: Waiter) -> None:
        """Grant at once if the model is loaded and open, else queue.  Raises QueueFull."""
        resident = self._residents.find(waiter.request.model.digest)
        if resident is not None and self._is_open(resident, waiter.request.options):
            waiter.grant(resident)
            return
        self.queue.add(waiter)
        self.queue.tell_positions(self._why_queued)
        self._changes.notify()

    def _is_open(self, resident: Resident, wanted: LoadOptions) -> bool:
        """A busy victim takes nobody new, or whoever waits for its memory would starve."""
        return resident.model.digest not in self._closed and self._serves(resident, wanted)

    def _serves(self, resident: Resident, wanted: LoadOptions) -> bool:
        if resident.life is not Life.READY or resident.is_unwanted:
            return False
        return serves(resident.options, resident.report, wanted, self._defaults)

    def _why_queued(self, group: Group) -> str:
        resident = self._residents.find(group.model.digest)
        if resident is not None and resident.life is Life.READY:
            return f"{group.model.name} waits behind a load that needs its memory"
        if resident is not None:
            return f"waiting for {resident.model.name} to unload"
        active = next((r for r in self._residents if r.life is Life.LOADING), None)
        return f"{active.model.name} is loading" if active else "about to load"

    async def run(self) -> None:
        """Serve groups one after the other, for ever."""
        while True:
            group = self.queue.first(self._can_start)
            self.queue.tell_positions(self._why_queued)
            if group is None:
                await self._changes.wait()
            else:
                await self._serve(group)

    def _can_start(self, group: Group) -> bool:
        """Behind a model that is on its way out others go first."""
        resident = self._residents.find(group.model.digest)
        return resident is None or resident.life is Life.READY

    async def _serve(self, group: Group) -> None:
        resident = self._residents.find(group.model.digest)
        if resident is not None and not self._serves(resident, group.options):
            # nobody new from here on: a reload cannot be starved by users of the old options
            self._residents.expire(resident, "the options differ from those of a new request")
            return
        with trio.CancelScope() as group.scope:
            try:
                resident = resident or await self._load(group)
            except RuntimeFault as fault:
                self.n_failures += 1
                self._means.journal.note(f"{group.model.name} is refused: {fault}")
                self.queue.fail(group, fault)
            else:
                self.queue.grant(group, resident)
        group.scope = None
        self._changes.notify()

    async def _load(self, group: Group) -> Resident:
        """Make a place, load; the ready resident.  Cancelled or failed, its runner is stopped."""
        began_s = time.monotonic()
        try:
            await self._devices_known()
            await self._place_for(group)
            resident = Resident(
                group.model, group.options, new_runner_id(group.model), self._config.keep_alive_s
            )
            self._residents.add(resident)
            loading = self._loading(resident, group)
            try:
                report = await loading.load()
                if loading.started is not None:
                    resident.pid, resident.address = loading.started.pid, loading.started.address
                resident.become_ready(report, trio.current_time())
            finally:
                self._residents.abandon(resident)
        finally:
            self._closed = frozenset()
        self.n_loads += 1
        self._means.journal.note(f"{group.model.name} took {time.monotonic() - began_s:.2f} s to load")
        return resident

    def _loading(self, resident: Resident, group: Group) -> Loading:
        async def room(step: Evict) -> None:
            await self._room_for(group, step)

        return Loading(
            means=self._means,
            model=resident.model,
            options=resident.options,
            runner_id=resident.runner_id,
            others=lambda: self._others(resident),
            on_progress=lambda progress: _forward(resident, group, progress),
            on_sized=lambda report: _size(resident, report),
            make_room=room,
        )

    def _others(self, resident: Resident | None) -> Others:
        return tuple(
            (other.model.name, other.runner_id) for other in self._residents if other is not resident
        )

    async def _devices_known(self) -> None:
        with trio.move_on_after(DEVICES_WAIT_S):
            while not self._means.ledger.is_known:
                await self._changes.wait()
            return
        raise CapacityError(
            f"discovery named no devices within {DEVICES_WAIT_S:.0f} s",
            where="scheduler",
            mend="see the log of discovery",
        )

    def max_loaded(self) -> int:
        """How many models may be in memory at once."""
        return self._config.max_loaded or MODELS_PER_DEVICE * max(1, self._means.ledger.n_gpus())

    async def _place_for(self, group: Group) -> None:
        """Keep to max_loaded: the least recently used leaves, a busy one when its users are done."""
        while (n_over := len(self._residents) + 1 - self.max_loaded()) > 0:
            n_wanted = n_over - len(self._residents.leaving())
            why = f"{self.max_loaded()} models are loaded, as many as may be"
            if n_wanted > 0:
                self._send_off(make_place(self._residents.candidates(), n_wanted), group, why)
            await self._changes.wait()

    async def _room_for(self, group: Group, step: Evict) -> None:
        """Until some memory of the device came back; the load then fits anew, with fresh figures."""
        leaving = self._residents.leaving()
        while not leaving:
            victims = make_room(self._residents.candidates(), step.device, step.shortage_bytes)
            if victims is None:
                mend = "unload other models first"
                raise CapacityError(step.reason, where="scheduler.eviction", mend=mend)
            self._send_off(victims, group, f"{group.model.name} lacks {size_text(step.shortage_bytes)}")
            leaving = self._residents.leaving()
            if not leaving:
                await self._changes.wait()
                leaving = self._residents.leaving()
        for resident in leaving:
            await resident.gone.wait()

    def _send_off(self, victims: Victims, group: Group, why: str) -> None:
        for candidate in victims.stop:
            self._residents.evict(candidate, why)
        closed = frozenset(candidate.digest for candidate in victims.drain)
        if closed - self._closed:
            names = ", ".join(candidate.name for candidate in victims.drain)
            self._means.journal.note(f"{group.model.name} waits for users of {names} to finish: {why}")
        self._closed = closed
        names = [candidate.name for candidate in (*victims.stop, *victims.drain)]
        if names:
            group.tell(Queued(position=0, reason=f"evicting {', '.join(names)}"))

    async def plan(self, request: PlanLoad) -> LoadPlan:
        """Size a load in a runner of its own; nothing that is loaded is touched.  Raises QueueFull."""
        if self._planning.statistics().tasks_waiting >= N_PLANS_MAX:
            raise QueueFull(
                f"{N_PLANS_MAX} plans wait already", where="scheduler.plan", mend="try again in a moment"
            )
        async with self._planning:
            await self._devices_known()
            runner_id = new_runner_id(request.model)
            self.planned.add(runner_id)
            try:
                loading = Loading(
                    means=self._means,
                    model=request.model,
                    options=request.options,
                    runner_id=runner_id,
                    others=lambda: self._others(None),
                )
                return await loading.plan()
            finally:
                self.planned.discard(runner_id)
                self._residents.dismiss(runner_id, "its plan is made")


def new_runner_id(model: ModelSpec) -> str:
    """Names the model for those who read process lists; never used twice, not even after a restart."""
    short = "".join(c for c in model.digest.rpartition(":")[2][:8] if c.isalnum()) or "model"
    return f"{short}-{secrets.token_hex(4)}"


def _forward(resident: Resident, group: Group, progress: LoadProgress) -> None:
    resident.progress = progress
    group.tell(progress)


def _size(resident: Resident, report: MemoryReport) -> None:
    resident.report = report
