"""Plans: what a load would take, sized in a runner of its own; nothing that is loaded is touched."""

import time
from collections.abc import Callable

import trio

from actors.errors import QueueFull
from actors.protocol import LoadPlan, PlanLoad
from actors.scheduler.changes import Changes
from actors.scheduler.loading import Loading, Means, Others
from actors.scheduler.residents import Residents
from actors.scheduler.room import devices_known
from actors.scheduler.runners import new_runner_id
from actors.scheduler.story import Story

N_PLANS_MAX = 8  # plans that wait or run; each is a process for a second


class Plans:
    """One at a time."""

    def __init__(
        self, means: Means, residents: Residents, changes: Changes, others: Callable[[], Others]
    ) -> None:
        self._means = means
        self._residents = residents
        self._changes = changes
        self._others = others
        self._planning = trio.CapacityLimiter(1)
        self.runner_ids: set[str] = set()  # of the runners that only size a load

    async def plan(self, request: PlanLoad) -> LoadPlan:
        """Size a load.  Raises QueueFull, and what a load raises."""
        if self._planning.statistics().tasks_waiting >= N_PLANS_MAX:
            raise QueueFull(
                f"{N_PLANS_MAX} plans wait already", where="scheduler.plan", mend="try again in a moment"
            )
        async with self._planning:
            await devices_known(self._means.ledger, self._changes)
            runner_id = new_runner_id(request.model)
            self.runner_ids.add(runner_id)
            try:
                loading = Loading(
                    means=self._means,
                    model=request.model,
                    options=request.options,
                    runner_id=runner_id,
                    others=self._others,
                    story=Story(request.model, request.options, time.time()),
                )
                return await loading.plan()
            finally:
                self.runner_ids.discard(runner_id)
                self._residents.dismiss(runner_id, "its plan is made")
