"""The scheduler actor: which models are in memory, where, for whom, and for how long."""

import trio

from actors.actor import not_understood
from actors.config import Config
from actors.link import Replies
from actors.protocol import (
    Acquire,
    Explain,
    Explanation,
    Lease,
    ListLoaded,
    Loaded,
    LoadOptions,
    PlanLoad,
    Register,
    Request,
    RunnerExited,
    Unload,
)
from actors.scheduler.adoption import Adoption
from actors.scheduler.changes import Changes
from actors.scheduler.dispatch import Dispatcher
from actors.scheduler.health import Health
from actors.scheduler.journal import Journal
from actors.scheduler.layout import Policy
from actors.scheduler.ledger import Ledger
from actors.scheduler.life import Life, Resident
from actors.scheduler.loading import Means
from actors.scheduler.plans import Plans
from actors.scheduler.queue import Waiter
from actors.scheduler.readings import Readings
from actors.scheduler.reminders import Reminders
from actors.scheduler.residents import Residents
from actors.scheduler.runners import Runners, stall_s


class Scheduler:
    """Satisfies `actors.actor.Service`."""

    def __init__(self, config: Config) -> None:
        self._config = config
        self._changes = Changes()
        self._journal = Journal()
        self._ledger = Ledger()
        self._readings = Readings(
            config.socket_address("discovery"), self._ledger, self._journal, self._changes
        )
        self._runners = Runners(
            config.socket_address("host"),
            on_exit=self._runner_exited,
            on_known=self._host_is_back,
        )
        self._residents = Residents(self._runners, self._ledger, self._journal, self._changes)
        means = Means(
            self._runners,
            self._ledger,
            self._journal,
            self._readings.measure,
            stall_s(config.load_timeout_s),
            config.n_thread,
            config.n_ctx,
            Policy(is_spread=config.sched_spread, gpu_overhead_bytes=config.gpu_overhead_bytes),
        )
        defaults = LoadOptions(
            n_ctx=config.n_ctx,
            n_batch=config.n_batch,
            n_thread=config.n_thread,
            n_parallel=config.n_parallel,
            kv_type=config.kv_type,
        )
        self._dispatcher = Dispatcher(config, means, self._residents, defaults, self._changes)
        self._plans = Plans(means, self._residents, self._changes, self._dispatcher.others)
        self._adoption = Adoption(
            config.keep_alive_s,
            self._runners,
            self._residents,
            self._plans,
            self._ledger,
            self._journal,
            self._changes,
        )

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Watch devices and runners, serve the queue, end what is due."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._readings.run)
            nursery.start_soon(self._runners.run)
            nursery.start_soon(self._residents.run)
            nursery.start_soon(Health(self._residents).run)
            nursery.start_soon(Reminders(self._residents, self._changes).run)
            task_status.started()
            await self._adoption.settle()
            await self._dispatcher.run()

    async def handle(self, request: Request, replies: Replies) -> None:
        """Answer one request."""
        match request:
            case Acquire():
                await self._acquire(request, replies)
            case Unload():
                if resident := self._residents.find(request.digest):
                    self._residents.expire(resident, "somebody asked to unload it")
            case ListLoaded():
                waiting = self._dispatcher.queue.listing(trio.current_time())
                await replies.send(Loaded(self._residents.listing(), waiting))
            case PlanLoad():
                await replies.send(await self._plans.plan(request))
            case Explain():
                decisions = self._journal.decisions(request.digest)
                await replies.send(Explanation(decisions, self._journal.loads(request.digest)))
            case Register():
                await self._adoption.register(request)
            case _:
                raise not_understood(request)

    def gauges(self) -> dict[str, float]:
        """Counters for GetStats."""
        lives = [resident.life for resident in self._residents]
        dispatcher = self._dispatcher
        return {
            "models_loaded": lives.count(Life.READY) + lives.count(Life.EXPIRING),
            "models_loading": lives.count(Life.LOADING),
            "leases": sum(resident.n_leases for resident in self._residents),
            "queued": len(dispatcher.queue),
            "queue_refusals_total": dispatcher.queue.n_refused,
            "loads_total": dispatcher.n_loads,
            "load_seconds_total": dispatcher.load_s,
            "load_failures_total": dispatcher.n_failures,
            "loads_cancelled_total": dispatcher.n_cancelled,
            "evictions_total": self._residents.n_evictions,
            **{f"held_bytes:{device}": n for device, n in self._ledger.all_held_bytes().items()},
        }

    async def _acquire(self, request: Acquire, replies: Replies) -> None:
        """Wait for a lease, tell why it takes time, hold the lease until the stream or the runner ends."""
        began_s = trio.current_time()
        waiter = Waiter(request)
        self._dispatcher.admit(waiter)
        was_loaded = waiter.resident is not None
        try:
            while not isinstance(news := await waiter.next(), Resident):
                await replies.send(news)
            lease = Lease(
                runner_id=news.runner_id,
                address=news.address,
                n_ctx=_limit(request.options.n_ctx, news.report.n_ctx if news.report else 0),
                load_s=0.0 if was_loaded else trio.current_time() - began_s,
            )
            await replies.send(lease)
            await news.over.wait()
            raise news.parting()
        finally:
            if waiter.resident is not None:
                waiter.resident.release(trio.current_time())
            else:
                self._dispatcher.queue.remove(waiter)
            self._changes.notify()

    def _runner_exited(self, exited: RunnerExited) -> None:
        self._residents.died(exited)

    def _host_is_back(self) -> None:
        self._residents.host_is_back()


def _limit(wanted_n_ctx: int, n_ctx: int) -> int:
    """Positions for a sequence of a request: what it wants, as far as the model has them."""
    return min(wanted_n_ctx or n_ctx, n_ctx)
