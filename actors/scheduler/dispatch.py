"""Serves the queue: several loads at once, each in a task of its own.  Requests for loaded models pass by.

Loads on different devices run side by side; `turns` says who goes first where two want the same memory.
"""

import time

import msgspec
import trio

from actors.config import Config
from actors.errors import Busy, RuntimeFault
from actors.protocol import LoadOptions, LoadProgress, MemoryReport, Queued
from actors.scheduler.changes import Changes
from actors.scheduler.life import Life, Resident
from actors.scheduler.loading import Loading, Means, Others
from actors.scheduler.queue import Group, PendingQueue, Waiter
from actors.scheduler.residents import Residents
from actors.scheduler.reuse import serves
from actors.scheduler.room import ROOM_WAIT_S, Room, Surroundings, devices_known
from actors.scheduler.runners import new_runner_id
from actors.scheduler.story import Story
from actors.scheduler.turns import Turn, Turns

MODELS_PER_DEVICE = 3  # when max_loaded is left open; B1 of the behaviour this runtime is a drop-in for
LOADS_MAX = 4  # that read at once: more only share the disk
IN_FLIGHT_MAX = 16  # loads, those included that wait for room: each has a process already


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
        self._turns = Turns()
        self.queue = PendingQueue(config.max_queue, defaults)
        self._around = Surroundings(
            self._turns, self.queue, residents, means.ledger, means.journal, changes, means.measure
        )
        self.n_loads = 0
        self.n_failures = 0
        self.n_cancelled = 0
        self.load_s = 0.0  # all loads together

    def admit(self, waiter: Waiter) -> None:
        """Grant at once if the model is loaded and open, else queue.  Raises QueueFull."""
        resident = self._residents.find(waiter.request.model.digest)
        if resident is not None and self._is_open(resident, waiter.request.options):
            waiter.grant(resident)
            return
        self.queue.add(waiter, trio.current_time())
        self.queue.tell_positions(self._why_queued)
        self._changes.notify()

    def _is_open(self, resident: Resident, wanted: LoadOptions) -> bool:
        """A busy victim takes nobody new, or whoever waits for its memory would starve."""
        return resident.model.digest not in self._turns.closed() and self._serves(resident, wanted)

    def _serves(self, resident: Resident, wanted: LoadOptions) -> bool:
        if resident.life is not Life.READY or resident.is_unwanted:
            return False
        n_thread = self._defaults.n_thread or self._means.ledger.n_cores
        defaults = msgspec.structs.replace(self._defaults, n_thread=n_thread)
        return serves(resident.options, resident.report, wanted, defaults)

    def _why_queued(self, group: Group) -> str:
        resident = self._residents.find(group.model.digest)
        if resident is not None and resident.model.digest in self._turns.closed():
            return f"{group.model.name} waits behind a load that needs its memory"
        if self.queue.is_served(group.model.digest):
            return f"{group.model.name} is loading with other options"
        loading = ", ".join(turn.name for turn in self._turns)
        return f"waiting for other loads: {loading}" if loading else "about to load"

    async def run(self) -> None:
        """Start what can start, for ever."""
        async with trio.open_nursery() as nursery:
            while True:
                group = self.queue.first(self._can_start)
                self.queue.tell_positions(self._why_queued)
                if group is None:
                    await self._changes.wait()
                    continue
                group.scope = trio.CancelScope()
                turn = None
                if self._residents.find(group.model.digest) is None:
                    turn = self._turns.open(group.model.name, trio.current_time())
                nursery.start_soon(self._serve, group, group.scope, turn)

    def _can_start(self, group: Group) -> bool:
        """One group of a model at a time; loads as many as there are places for."""
        if self.queue.is_served(group.model.digest) or group.model.digest in self._turns.closed():
            return False
        if self._residents.find(group.model.digest) is not None:
            return True
        n_moving = sum(not turn.is_waiting for turn in self._turns)
        return n_moving < LOADS_MAX and len(self._turns) < IN_FLIGHT_MAX

    async def _serve(self, group: Group, scope: trio.CancelScope, turn: Turn | None) -> None:
        resident = self._residents.find(group.model.digest)
        with scope:
            try:
                if turn is not None:
                    # to all who asked, even if somebody asked to unload it since: it expires after them
                    self.queue.grant(group, await self._load(group, turn))
                elif resident is not None and self._serves(resident, group.options):
                    self.queue.grant(group, resident)
                elif resident is not None:
                    await self._unloaded(resident, group)
            except RuntimeFault as fault:
                self.queue.fail(group, fault)
        group.scope = None  # a group that only waited for an old load to go is in line for its own
        self._changes.notify()

    async def _unloaded(self, resident: Resident, group: Group) -> None:
        """Nobody new from here on: a reload cannot be starved by users of the old options."""
        self._residents.expire(resident, "the options differ from those of a new request")
        users = f"{resident.n_leases} users of {resident.model.name}" if resident.n_leases else ""
        what = f"{users} to finish" if users else f"{resident.model.name} to unload"
        group.tell(Queued(position=self.queue.position(group), reason=f"waiting for {what}"))
        with trio.move_on_after(ROOM_WAIT_S):
            await resident.gone.wait()
            return
        raise Busy(
            f"{group.model.name} was not loaded with other options: it waited {ROOM_WAIT_S:.0f} s for {what}",
            where="scheduler.dispatch",
            mend="try again later, or ask with the options it has",
        )

    async def _load(self, group: Group, turn: Turn) -> Resident:
        """Make a place, load; the ready resident.  Cancelled or failed, its runner is stopped."""
        story = self._means.journal.begin(group.model, group.options)
        is_over = False
        try:
            resident = await self._loaded(group, turn, story)
            is_over = True
        except RuntimeFault as fault:
            is_over = True
            self.n_failures += 1
            self._means.journal.note(f"{group.model.name} is refused: {fault}", group.model.digest)
            story.end("refused", str(fault), time.time())
            raise
        finally:
            self._turns.close(turn)
            if not is_over:
                self.n_cancelled += 1
                story.end("cancelled", "nobody waits for it any more", time.time())
        return resident

    async def _loaded(self, group: Group, turn: Turn, story: Story) -> Resident:
        began_s = trio.current_time()
        room = Room(self._around, group, turn, story)
        await devices_known(self._means.ledger, self._changes)
        await room.place(self.max_loaded)
        resident = Resident(group.model, group.options, new_runner_id(group.model), self._config.keep_alive_s)
        self._residents.add(resident)
        loading = self._loading(resident, group, room, story)
        try:
            report = await loading.load()
            if loading.started is not None:
                resident.pid, resident.address = loading.started.pid, loading.started.address
            resident.reload_s = loading.reload_s
            resident.become_ready(report, trio.current_time())
        finally:
            self._residents.abandon(resident)
        self.n_loads += 1
        self.load_s += (took_s := trio.current_time() - began_s)
        self._means.journal.note(f"{group.model.name} took {took_s:.2f} s to load", group.model.digest)
        story.end("loaded", loading.outcome, time.time())
        return resident

    def _loading(self, resident: Resident, group: Group, room: Room, story: Story) -> Loading:
        return Loading(
            means=self._means,
            model=resident.model,
            options=resident.options,
            runner_id=resident.runner_id,
            others=lambda: self.others(resident),
            story=story,
            on_progress=lambda progress: _forward(resident, group, progress),
            on_sized=lambda report: _size(resident, report),
            order=room,
        )

    def others(self, resident: Resident | None = None) -> Others:
        """The models in memory but this one."""
        return tuple(
            (other.model.name, other.runner_id, other.is_pinned)
            for other in self._residents
            if other is not resident
        )

    def max_loaded(self) -> int:
        """How many models may be in memory at once."""
        return self._config.max_loaded or MODELS_PER_DEVICE * max(1, self._means.ledger.n_gpus())


def _forward(resident: Resident, group: Group, progress: LoadProgress) -> None:
    resident.progress = progress
    group.tell(progress)


def _size(resident: Resident, report: MemoryReport) -> None:
    resident.report = report
