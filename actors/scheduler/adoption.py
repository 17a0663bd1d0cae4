"""Runners that register: ours, those of a scheduler before us, and strays."""

import trio

from actors.protocol import Keep, Register
from actors.scheduler.changes import Changes
from actors.scheduler.journal import Journal
from actors.scheduler.ledger import Ledger
from actors.scheduler.life import Resident
from actors.scheduler.plans import Plans
from actors.scheduler.residents import Residents
from actors.scheduler.runners import HOST_WAIT_S, Runners

ADOPT_S = 5.0  # a living runner registers well within this; its link backs off by less
# an adopted model may be in the middle of an answer whose lease died with our predecessor
KEEP_LEAST_S = 30.0


class Adoption:
    """Decides who a registering runner is."""

    def __init__(
        self,
        keep_alive_s: float,
        runners: Runners,
        residents: Residents,
        plans: Plans,
        ledger: Ledger,
        journal: Journal,
        changes: Changes,
    ) -> None:
        self._keep_alive_s = keep_alive_s
        self._runners = runners
        self._residents = residents
        self._plans = plans
        self._ledger = ledger
        self._journal = journal
        self._changes = changes
        self._heard: set[str] = set()
        self._is_settled = False

    async def settle(self) -> None:
        """Until every runner that lived when we started has registered, or is dismissed for its silence.

        Loads wait for this, or a model that outlived our predecessor would be loaded a second time.
        """
        with trio.move_on_after(HOST_WAIT_S):
            await self._runners.known.wait()
        with trio.move_on_after(ADOPT_S):
            while not self._heard >= self._runners.living.keys():
                await self._changes.wait()
        for runner_id in self._runners.living.keys() - self._heard:
            self._residents.dismiss(runner_id, f"it did not register within {ADOPT_S:.0f} s")
        self._is_settled = True
        self._heard.clear()

    async def register(self, request: Register) -> None:
        """Hold a runner's registration for as long as it holds the stream."""
        if not self._is_settled:
            self._heard.add(request.runner_id)
            self._changes.notify()
        resident = self._residents.of_runner(request.runner_id)
        if resident is None and request.runner_id not in self._plans.runner_ids:
            resident = self._adopt(request)
            if resident is None:
                return
        if resident is not None:
            self._residents.registered(resident)
        try:
            await trio.sleep_forever()
        finally:
            # asked for anew: while it registered without a model it may have become a resident, or gone
            if resident := self._residents.of_runner(request.runner_id):
                self._residents.unregistered(resident)

    def _adopt(self, request: Register) -> Resident | None:
        if request.model is None or request.options is None or request.report is None:
            self._residents.dismiss(request.runner_id, "it holds no model and nobody waits for it")
            return None
        if self._residents.find(request.model.digest) is not None:
            self._residents.dismiss(request.runner_id, f"{request.model.name} is in another runner")
            return None
        keep = request.keep or Keep(self._keep_alive_s)
        keep_alive_s = keep.keep_alive_s
        if keep_alive_s >= 0:
            keep_alive_s = max(keep_alive_s, KEEP_LEAST_S)
        resident = Resident(request.model, request.options, request.runner_id, keep_alive_s)
        resident.is_pinned = keep.is_pinned
        resident.told = keep
        resident.pid, resident.address = request.pid, request.address
        resident.become_ready(request.report, trio.current_time())
        # not new: the figures that discovery gives since we started have it in them
        self._ledger.hold(request.runner_id, request.report, is_new=False)
        self._residents.add(resident)
        adopted = f"{request.model.name} [{request.runner_id}] is adopted from its runner"
        self._journal.note(adopted, request.model.digest)
        return resident
