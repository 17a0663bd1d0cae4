"""The models in memory, and the one task that ends them: by keep-alive, by eviction, or because they died."""

import math
from collections.abc import Iterator, Mapping

import trio

from actors.errors import RuntimeFault
from actors.protocol import LoadedModel, RunnerExited
from actors.scheduler.changes import Changes
from actors.scheduler.eviction import Candidate
from actors.scheduler.journal import Journal
from actors.scheduler.ledger import Ledger
from actors.scheduler.life import Life, Resident
from actors.scheduler.obituary import death_of
from actors.scheduler.runners import LAST_WORDS_S, Runners
from actors.scheduler.sizes import size_text

READ_BYTES_PER_S = 1 << 30  # a guess for models whose load nobody measured: they outlived a scheduler


class Residents:
    """At most one resident for each model file; what changes here wakes `changes`."""

    def __init__(self, runners: Runners, ledger: Ledger, journal: Journal, changes: Changes) -> None:
        self._runners = runners
        self._ledger = ledger
        self._journal = journal
        self._changes = changes
        self._by_digest: dict[str, Resident] = {}
        self._to_stop: list[str] = []  # runner ids that are nobody's
        self._lost_at_s: dict[
            str, float
        ] = {}  # by runner: its Register stream ended, no word of its death yet
        self.n_evictions = 0

    def __len__(self) -> int:
        return len(self._by_digest)

    def __iter__(self) -> Iterator[Resident]:
        return iter(tuple(self._by_digest.values()))

    def find(self, digest: str) -> Resident | None:
        """The resident of this model, in whatever state."""
        return self._by_digest.get(digest)

    def of_runner(self, runner_id: str) -> Resident | None:
        """The resident that this runner holds."""
        return next((resident for resident in self if resident.runner_id == runner_id), None)

    def add(self, resident: Resident) -> None:
        """A model on its way in.  Its digest must be new."""
        if resident.model.digest in self._by_digest:
            raise RuntimeError(f"{resident.model.name} is in memory already")
        self._by_digest[resident.model.digest] = resident
        self._changes.notify()

    def expire(self, resident: Resident, why: str) -> None:
        """Let nobody new in; it stops when the last lease leaves.  One that loads: once that is done."""
        if resident.life is Life.LOADING:
            resident.is_unwanted = True
        elif resident.life is Life.READY:
            self._note(resident, f"expires: {why}")
            resident.move(Life.EXPIRING)
        self._changes.notify()

    def abandon(self, resident: Resident) -> None:
        """A load that failed or that nobody waits for any more: end its runner."""
        if resident.life is Life.LOADING:
            self._stop_soon(resident)

    def dismiss(self, runner_id: str, why: str) -> None:
        """End a runner that is nobody's."""
        if runner_id not in self._to_stop:
            self._journal.note(f"runner {runner_id} is stopped: {why}")
            self._to_stop.append(runner_id)
            self._changes.notify()

    def died(self, exited: RunnerExited) -> None:
        """The host reports a death: leases end with the runner's last words.

        A runner that loads or is being stopped is watched by whoever does that.
        """
        resident = self.of_runner(exited.runner_id)
        if resident is not None and resident.life in (Life.READY, Life.EXPIRING):
            self._lose(resident, exited)

    def host_is_back(self) -> None:
        """The host names all its runners anew: those it does not name have ended with its predecessor."""
        for resident in self:
            is_up = resident.life in (Life.READY, Life.EXPIRING)
            if is_up and resident.runner_id not in self._runners.living:
                self._lose(resident, None)

    def registered(self, resident: Resident) -> None:
        """Its Register stream is open."""
        self._lost_at_s.pop(resident.runner_id, None)

    def unregistered(self, resident: Resident) -> None:
        """Its Register stream ended: dead, unless it comes back or the host says how it died first."""
        if resident.life in (Life.READY, Life.EXPIRING):
            self._lost_at_s[resident.runner_id] = trio.current_time() + LAST_WORDS_S
            self._changes.notify()

    def give_up(self, resident: Resident, fault: RuntimeFault) -> None:
        """A loaded runner is of no use any more: end its leases with this fault, then the runner."""
        self.expire(resident, fault.message)
        if resident.life is Life.EXPIRING:
            resident.fault = fault
            resident.over.set()
            self._stop_soon(resident)

    def _stop_soon(self, resident: Resident) -> None:
        resident.move(Life.STOPPING)
        self._to_stop.append(resident.runner_id)
        self._changes.notify()

    def _lose(self, resident: Resident, exited: RunnerExited | None) -> None:
        resident.fault = death_of(resident.model.name, exited, "while it was loaded")
        self._note(resident, f"is gone: {resident.fault.message}")
        self._remove(resident)

    def _note(self, resident: Resident, what: str) -> None:
        name = f"{resident.model.name} [{resident.runner_id}]"
        self._journal.note(f"{name} {what}", resident.model.digest)

    def _remove(self, resident: Resident) -> None:
        resident.move(Life.GONE)
        self._ledger.drop(resident.runner_id, resident.model.name, trio.current_time())
        self._lost_at_s.pop(resident.runner_id, None)
        if self._by_digest.get(resident.model.digest) is resident:
            del self._by_digest[resident.model.digest]
        self._changes.notify()

    def candidates(self, besides: str) -> tuple[Candidate, ...]:
        """Who could leave for the model of digest `besides`, now or in a while.

        The ready, the loading, and those that wait for their last lease.
        """
        return tuple(
            Candidate(
                digest=resident.model.digest,
                name=resident.model.name,
                last_used_s=resident.idle_since_s,
                is_idle=resident.is_idle,
                held_bytes=self._ledger.held_bytes(resident.runner_id),
                reload_s=resident.reload_s or _read_s(self._ledger.held_bytes(resident.runner_id)),
                is_pinned=resident.is_pinned,
            )
            for resident in self
            if resident.model.digest != besides
            and (
                resident.life in (Life.LOADING, Life.READY)
                or (resident.life is Life.EXPIRING and resident.n_leases)
            )
        )

    def evict(self, candidate: Candidate, why: str) -> None:
        """Expire an idle victim."""
        resident = self.find(candidate.digest)
        if resident is not None and resident.life is Life.READY:
            self.n_evictions += 1
            size = size_text(sum(candidate.held_bytes.values()))
            idle_s = trio.current_time() - candidate.last_used_s
            self.expire(resident, f"evicted ({size}, idle for {idle_s:.0f} s), {why}")

    def leaving(self, device: str = "") -> tuple[Resident, ...]:
        """Those whose memory, of this device or of any, comes back without anybody's doing."""
        return tuple(
            resident
            for resident in self
            if (resident.life is Life.STOPPING or (resident.life is Life.EXPIRING and not resident.n_leases))
            and (not device or self._ledger.held_bytes(resident.runner_id).get(device))
        )

    def listing(self) -> tuple[LoadedModel, ...]:
        """What ListLoaded answers."""
        now_s = trio.current_time()
        listings = (resident.listing(now_s) for resident in self)
        return tuple(listing for listing in listings if listing is not None)

    async def run(self) -> None:
        """End what is due, for ever."""
        async with trio.open_nursery() as nursery:
            while True:
                now_s = trio.current_time()
                next_s = min((self._end_if_due(resident, now_s) for resident in self), default=math.inf)
                while self._to_stop:
                    nursery.start_soon(self._stop, self._to_stop.pop())
                with trio.CancelScope(deadline=next_s):
                    await self._changes.wait()

    def _end_if_due(self, resident: Resident, now_s: float) -> float:
        """Take the steps that are due; when the next one will be."""
        lost_at_s = self._lost_at_s.get(resident.runner_id, math.inf)
        if lost_at_s <= now_s:
            self._to_stop.append(resident.runner_id)
            self._lose(resident, None)
            return math.inf
        if resident.life is Life.READY and (resident.expires_at_s() <= now_s or resident.is_unwanted):
            why = "unloaded" if resident.is_unwanted else f"idle for {resident.keep_alive_s:g} s"
            self.expire(resident, why)
        if resident.life is Life.EXPIRING and not resident.n_leases:
            self._stop_soon(resident)
        return min(resident.expires_at_s(), lost_at_s)

    async def _stop(self, runner_id: str) -> None:
        """Stop a runner, resident or nobody's; its memory counts as free when it has ended."""
        try:
            await self._runners.stop(runner_id)
        except RuntimeFault as fault:
            # the host is gone, and its runners with it, or it never heard of this one
            self._journal.note(f"stopping runner {runner_id}: {fault.message}")
        resident = self.of_runner(runner_id)
        if resident is not None and resident.life is Life.STOPPING:
            self._remove(resident)


def _read_s(held_bytes: Mapping[str, int]) -> float:
    return sum(held_bytes.values()) / READ_BYTES_PER_S
