"""Makes room for one load, in its turn: waits, evicts, and says what it waits for.

Nothing is evicted before all who must leave can leave: a load that is cancelled while it waits for users of a
busy model has cost nobody anything.
"""

import math
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

import trio

from actors.errors import Busy, CapacityError
from actors.protocol import Queued
from actors.scheduler.changes import Changes
from actors.scheduler.eviction import Candidate, Victims, make_place, make_room
from actors.scheduler.journal import Journal
from actors.scheduler.ledger import Ledger
from actors.scheduler.life import Resident
from actors.scheduler.queue import Group, PendingQueue
from actors.scheduler.residents import Residents
from actors.scheduler.sizes import size_text
from actors.scheduler.steps import Evict
from actors.scheduler.story import Story
from actors.scheduler.turns import Turn, Turns

ROOM_WAIT_S = 600.0  # a load waits for others to leave no longer than this in all; long answers take minutes
DEVICES_WAIT_S = 30.0  # discovery probes the devices when it starts
# Room for more layers on GPUs is not waited for longer: most answers are over by then, and a model that takes
# minutes to say something would be faster on the CPU at once.
PREFERRED_WAIT_S = 10.0
MEASURE_EVERY_S = 0.2  # while memory is coming back


async def devices_known(ledger: Ledger, changes: Changes) -> None:
    """Until discovery has spoken; CapacityError if it does not."""
    with trio.move_on_after(DEVICES_WAIT_S):
        while not ledger.is_known:
            await changes.wait()
        return
    raise CapacityError(
        f"discovery named no devices within {DEVICES_WAIT_S:.0f} s",
        where="scheduler",
        mend="see the log of discovery",
    )


class Awaited:
    """What a load waits for, for the error if it does not come; and the same as news for those who wait."""

    def __init__(self, what: str, news: str = "") -> None:
        self.what = what if news else f"{what} to leave"
        self.news = news or f"evicting {what}"


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What every load finds around it."""

    turns: Turns
    queue: PendingQueue
    residents: Residents
    ledger: Ledger
    journal: Journal
    changes: Changes
    measure: Callable[[], Awaitable[None]]  # has the ledger read the devices now


class Room:
    """Satisfies `loading.Order`.  One for each load, from its turn's begin to its end."""

    def __init__(self, around: Surroundings, group: Group, turn: Turn, story: Story) -> None:
        self._around = around
        self._group = group
        self._name = group.model.name
        self._turn = turn
        self._story = story
        self._gives_up_s: float | None = None  # set when it first waits

    async def place(self, max_loaded: Callable[[], int]) -> None:
        """Keep to max_loaded: the cheapest to reload leave, a busy one when its users are done.

        No await after the last look, so that the caller can take the place.
        """
        while (n_over := self._n_over(max_loaded())) > 0:
            leaving = self._around.residents.leaving()
            awaited = Awaited(_names_of(leaving))
            if n_over > len(leaving):
                awaited = self._send_off_for_place(n_over - len(leaving), max_loaded())
            await self._wait(awaited)
        self._turn.has_place, self._turn.is_waiting = True, False

    def _n_over(self, max_loaded: int) -> int:
        return len(self._around.residents) + 1 + self._around.turns.n_without_place(self._turn) - max_loaded

    def _send_off_for_place(self, n_wanted: int, max_loaded: int) -> Awaited:
        candidates, now_s = self._around.residents.candidates(self._group.model.digest), trio.current_time()
        victims = make_place(candidates, n_wanted, now_s)
        why = f"{max_loaded} models are loaded, as many as may be"
        if not victims.stop and not victims.drain:
            pinned = _names([one for one in candidates if one.is_pinned])
            raise CapacityError(
                f"{why}, and {pinned or 'none of them'} {'are kept for ever' if pinned else 'can leave'}",
                where="scheduler.eviction",
                mend="unload one (runtime stop), or raise OLLAMA_MAX_LOADED_MODELS",
            )
        return self._send_off(victims, candidates, "", 0, why)

    async def ready(self) -> None:
        """Until the memory of runners that ended has come back, as readings show, or is late."""
        looks_s = trio.current_time() + MEASURE_EVERY_S
        while awaited := self._around.ledger.recovery.pending():
            text = "; ".join(map(str, awaited))
            until_s = min(looks_s, *(each.until_s for each in awaited))
            await self._wait(Awaited(text, f"waiting for {text}"), until_s=until_s, is_short=True)
            for late in self._around.ledger.recovery.give_up(trio.current_time()):
                self._around.journal.note(f"{self._name} waited in vain for {late}", self._group.model.digest)
            if trio.current_time() >= looks_s:  # what woke it may be the reading of another load
                await self._around.measure()
                looks_s = trio.current_time() + MEASURE_EVERY_S
        self._turn.is_waiting = False

    async def may_take(self, devices: frozenset[str]) -> bool:
        """Let those go first who began earlier and want the same memory; False if figures got old by it."""
        has_waited = await self._turn_comes(devices)
        self._turn.is_waiting = False
        if has_waited:
            return False
        self._turn.wants, self._turn.is_settled = devices, True
        self._turn.closed = frozenset()
        self._around.changes.notify()  # others may have waited for this load to know what it needs
        return True

    async def make_room(self, step: Evict) -> bool:
        """Have others leave one of the devices, in turn; the load then fits anew, with fresh figures.

        False when that is only preferred, and those who would have to leave are busy for too long.
        """
        wants = frozenset(step.shortages)
        gives_up_s = trio.current_time() + PREFERRED_WAIT_S if step.is_preferred else math.inf
        self._turn.is_settled = False
        if await self._turn_comes(wants):
            self._turn.is_waiting = False
            return True
        self._turn.wants = wants
        before = {device: self._free_bytes(device) for device in wants}
        while all(
            self._free_bytes(each) - before[each] < lacking for each, lacking in step.shortages.items()
        ):
            if leaving := [one for device in wants for one in self._around.residents.leaving(device)]:
                self._tell(f"evicting {_names_of(leaving)}")
                for resident in leaving:
                    await resident.gone.wait()  # bounded: the host's ladder ends in SIGKILL
                break
            if trio.current_time() >= gives_up_s:
                self._turn.closed, self._turn.is_waiting = frozenset(), False
                return False
            device, awaited = self._send_off_for_room(step)
            if not self._around.residents.leaving(device):
                await self._wait(awaited, until_s=gives_up_s)
        self._turn.is_waiting = False
        return True

    def _send_off_for_room(self, step: Evict) -> tuple[str, Awaited]:
        candidates, now_s = self._around.residents.candidates(self._group.model.digest), trio.current_time()
        found = make_room(candidates, step.shortages, now_s)
        if found is None:
            raise self._no_room(step, candidates)
        device, victims = found
        why = f"{self._name} lacks {size_text(step.shortages[device])} of {device}"
        return device, self._send_off(victims, candidates, device, step.shortages[device], why)

    def _no_room(self, step: Evict, candidates: Sequence[Candidate]) -> CapacityError:
        device = min(step.shortages)
        pinned = _names([one for one in candidates if one.is_pinned and one.held_bytes.get(device)])
        kept = f"; {pinned} stay, as somebody asked to keep them for ever" if pinned else ""
        mend = f"unload {pinned}" if pinned else "unload other models first"
        fault = CapacityError(f"{step.reason}{kept}", where="scheduler.eviction", mend=mend)
        shortage_bytes = step.shortages[device]
        self._story.eviction(device, shortage_bytes, candidates, (), fault.message, trio.current_time())
        return fault

    def _send_off(
        self,
        victims: Victims,
        candidates: Sequence[Candidate],
        device: str,
        shortage_bytes: int,
        why: str,
    ) -> Awaited:
        """Idle victims leave together, once those that are busy now have become idle."""
        closed = frozenset(one.digest for one in victims.drain)
        awaited = Awaited(_names(victims.stop))
        if victims.drain:
            users = f"users of {_names(victims.drain)} to finish"
            awaited = Awaited(users, f"waiting for {users}")
        if closed - self._turn.closed:
            self._around.journal.note(
                f"{self._name} waits for {awaited.what}: {why}", self._group.model.digest
            )
        chosen = {one.digest for one in (*victims.stop, *victims.drain)}
        self._story.eviction(device, shortage_bytes, candidates, chosen, awaited.news, trio.current_time())
        # one that was busy and became idle stays closed, or it would be busy again when the last one is idle
        self._turn.closed = closed | (self._turn.closed & chosen)
        for candidate in victims.stop if not victims.drain else ():
            self._around.residents.evict(candidate, why)
        return awaited

    async def _turn_comes(self, wants: frozenset[str]) -> bool:
        """Wait for those who go first; whether there were any."""
        has_waited = False
        while True:
            now_s = trio.current_time()
            ahead = self._around.turns.ahead(self._turn, wants, now_s)
            if ahead is None:
                return has_waited
            has_waited = True
            self._turn.wants = wants
            goes_first = f"{ahead.name}, which may need the same memory and came first"
            await self._wait(
                Awaited(goes_first, f"waiting for {goes_first}"),
                until_s=self._around.turns.patience_ends_s(self._turn, now_s),
                is_short=not ahead.wants,
            )

    async def _wait(self, awaited: Awaited, *, until_s: float = math.inf, is_short: bool = False) -> None:
        """Until something changed, or `until_s`; Busy when all the waiting took longer than ROOM_WAIT_S.

        While it waits another load may start in its stead, unless `is_short`.
        """
        if self._gives_up_s is None:
            self._gives_up_s = trio.current_time() + ROOM_WAIT_S
        self._tell(awaited.news)
        if not self._turn.is_waiting and not is_short:
            self._turn.is_waiting = True
            self._around.changes.notify()
        with trio.CancelScope(deadline=min(self._gives_up_s, until_s)):
            await self._around.changes.wait()
        if trio.current_time() >= self._gives_up_s:
            raise Busy(
                f"{self._name} was not loaded: it waited {ROOM_WAIT_S:.0f} s for {awaited.what}",
                where="scheduler.room",
                mend="try again later, or unload other models",
            )

    def _tell(self, reason: str) -> None:
        self._story.waits(reason)
        self._group.tell(Queued(position=self._around.queue.position(self._group), reason=reason))

    def _free_bytes(self, device_id: str) -> int:
        return next((each.free_bytes for each in self._around.ledger.free() if each.id == device_id), 0)


def _names_of(residents: Sequence[Resident]) -> str:
    return ", ".join(resident.model.name for resident in residents)


def _names(candidates: Sequence[Candidate]) -> str:
    return ", ".join(candidate.name for candidate in candidates)
