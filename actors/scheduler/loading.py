"""Carries out a load: spawn a runner, ask it to fit, alloc and commit as `rounds.next_step` decides."""

from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, replace
from typing import Protocol, TypeVar

import msgspec
import trio

from actors.errors import CapacityError, PeerGone, RemoteProtocolError, RuntimeFault
from actors.link import Link, connect
from actors.protocol import (
    Alloc,
    Close,
    Commit,
    Device,
    Fit,
    LoadOptions,
    LoadPlan,
    LoadProgress,
    MemoryReport,
    ModelSpec,
    RunnerStarted,
)
from actors.scheduler.attempts import Attempt, Round, attempt_of
from actors.scheduler.context import (
    N_CTX_SHORT,
    choice_of,
    is_modest,
    longest_n_ctx,
    short_n_ctx,
    shorter_n_ctx,
    shown_n_ctx,
)
from actors.scheduler.journal import Journal
from actors.scheduler.layout import Placement, Policy, costs_of
from actors.scheduler.ledger import Ledger
from actors.scheduler.obituary import death_of
from actors.scheduler.rounds import next_step
from actors.scheduler.runners import Runners
from actors.scheduler.steps import Accept, Evict, History, Refuse, Try, step_text, verdict_text
from actors.scheduler.story import Story

N_STEPS_MAX = 64  # of one round; those of rounds.py end well before
N_CONTEXTS_MAX = 6  # sized in search of the longest: the first is right where cache grows evenly
CLOSE_S = 15.0  # unmapping a model takes milliseconds; a device may be slower

Others = tuple[tuple[str, str, bool], ...]  # (name, runner id, is pinned) of the models that hold memory

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Means:
    """What every load needs of the scheduler."""

    runners: Runners
    ledger: Ledger
    journal: Journal
    measure: Callable[[], Awaitable[None]]  # has the ledger read the devices now
    stall_s: float  # silence longer than this kills a load
    n_thread: int  # threads of a runner where the request names none; 0: one per core that discovery counts
    n_ctx: int = 0  # context where the request names none; 0: what fits
    policy: Policy = field(default_factory=Policy)  # of every load, but for its n_gpu


class Order(Protocol):
    """How a load gets along with the others."""

    async def ready(self) -> None:
        """Until memory that is coming back has come."""
        ...

    async def may_take(self, devices: frozenset[str]) -> bool:
        """Wait for its turn on these devices; False if the figures got old meanwhile."""
        ...

    async def make_room(self, step: Evict) -> bool:
        """Have others leave; afterwards it fits anew.  CapacityError if nobody can.

        False when the load has to be content without.
        """
        ...


@dataclass(slots=True)
class Loading:
    """One model on its way into one runner.  The caller stops the runner if this fails."""

    means: Means
    model: ModelSpec
    options: LoadOptions
    runner_id: str
    others: Callable[[], Others]
    story: Story
    on_progress: Callable[[LoadProgress], None] = lambda progress: None
    on_sized: Callable[[MemoryReport], None] = lambda report: None
    order: Order | None = None  # None: a plan, which waits for nobody
    started: RunnerStarted | None = None
    outcome: str = ""  # where it was loaded, in words
    reload_s: float = 0.0  # from the promise of its memory to being ready; 0 until it is
    _progress: LoadProgress = field(default_factory=lambda: LoadProgress(phase="starting"))
    _devices: tuple[Device, ...] = ()  # as they were before this load took anything
    _attempts: tuple[Attempt, ...] = ()  # of the latest fit round and what followed
    _is_content: bool = False  # asks nobody any more to make room for more layers on GPUs

    async def load(self) -> MemoryReport:
        """Load the model; its measured report.

        Raises CapacityError with the numbers, PeerGone with the runner's last words, whatever the runner
        answered, or RuntimeFault after silence, naming phase and percentage.
        """
        return await self._with_runner(self._load)

    async def plan(self) -> LoadPlan:
        """The exact memory the load would take; allocates nothing and makes no room."""
        return await self._with_runner(self._plan)

    async def _with_runner(self, use: Callable[[Link], Awaitable[T]]) -> T:
        self._advance(LoadProgress(phase="starting"))
        try:
            self.started = await self.means.runners.spawn(self.runner_id)
            async with connect(self.started.address, name="scheduler") as link:
                return await use(link)
        except PeerGone as gone:
            exited = await self.means.runners.exit_of(self.runner_id)
            if self.started is None and exited is None:
                raise  # it is the host that is gone
            raise death_of(self.model.name, exited, f"while loading ({self.where()})") from gone

    async def _load(self, link: Link) -> MemoryReport:
        placement, began_s = await self._place(link)
        self._advance(LoadProgress(phase="reading"))
        report = await self._ask(link, Commit())
        self.means.ledger.hold(self.runner_id, report, is_new=True)
        self.reload_s = trio.current_time() - began_s
        self.outcome = _loaded_text(placement)
        self._note(self.outcome)
        return report

    async def _place(self, link: Link) -> tuple[Placement, float]:
        """Fit, make room while that helps, alloc; the placement, and since when its memory is ours."""
        ledger, order = self.means.ledger, self.order
        assert order is not None, "a plan is not loaded"
        n_ctx_most = 0  # a computed context that could not be allocated is not tried again
        while True:
            if self.options.n_gpu != 0:
                await order.ready()
            n_promises = ledger.n_promises
            step = await self._fit(link, n_ctx_most)
            if isinstance(step, Accept):
                if not await order.may_take(_devices_of(step.placement)) or ledger.n_promises != n_promises:
                    continue  # others took memory since: what was accepted may not be there any more
                n_ctx, short = step.report.n_ctx, short_n_ctx(step.report.n_ctx_train, self.options.n_ctx)
                is_long = self._is_open and n_ctx > short
                # promised from here on, so that nobody else counts on the same bytes
                ledger.promise(self.runner_id, step.report)
                began_s = trio.current_time()
                step = await self._round(link, Round.ALLOC, step.placement, n_ctx, is_once=is_long)
                if isinstance(step, Accept):
                    ledger.hold(self.runner_id, step.report, is_new=True)
                    return step.placement, began_s
                await self._close(link)
                ledger.withdraw(self.runner_id)
                if is_long:
                    # rather a shorter context than fewer layers at full speed
                    n_ctx_most = shorter_n_ctx(n_ctx, short)
                    continue
            if isinstance(step, Refuse):
                raise CapacityError(step.message, where="scheduler.layout", mend=step.mend)
            if not await order.make_room(step):
                self._is_content = True
                self._note(f"goes on without: {step_text(step)}, and those who hold it stay busy")

    @property
    def _is_open(self) -> bool:
        """Whether the configuration names no context.

        One that a request names is a limit of that request: the next may name a longer one, and is not to
        wait for another load.  So it is only the least that is loaded.
        """
        return not self.means.n_ctx

    async def _fit(self, link: Link, n_ctx_most: int = 0) -> Accept | Evict | Refuse:
        """A fit round; where the context is left open, another at the longest that costs no speed."""
        n_ctx = max(self.options.n_ctx, self.means.n_ctx) or N_CTX_SHORT
        # nothing placed means all on the CPU: tells how many layers there are and what each takes
        step = await self._round(link, Round.FIT, (), n_ctx)
        if not isinstance(step, Accept) or not self._is_open:
            return step
        return await self._lengthen(link, step, n_ctx_most or step.report.n_ctx_train)

    async def _lengthen(self, link: Link, short: Accept, n_ctx_most: int) -> Accept:
        """The same load with the longest context up to `n_ctx_most`; `short` where none is longer."""
        low, devices, policy = short.report, self._devices, self._policy
        attempts = self._attempts
        if low.n_ctx >= n_ctx_most:
            return short
        high = await self._size(link, short.placement, n_ctx_most)
        for _ in range(N_CONTEXTS_MAX):
            n_ctx = longest_n_ctx(low, high, devices, policy)
            if n_ctx <= low.n_ctx:
                break
            step = await self._round(link, Round.FIT, short.placement, n_ctx)
            if isinstance(step, Accept) and is_modest(costs_of(step.report), devices, policy):
                self._note(f"n_ctx {n_ctx}: the longest at full speed")
                return step
            high = self._attempts[-1].report
        self._attempts = attempts
        return short

    async def _plan(self, link: Link) -> LoadPlan:
        devices = self.means.ledger.free()
        step = await self._fit(link)
        latest = self._attempts[-1]
        accepted = step if isinstance(step, Accept) else None
        placement = accepted.placement if accepted else latest.placement
        report = accepted.report if accepted else latest.report
        sized = [
            await self._size(link, placement, n_ctx)
            for n_ctx in shown_n_ctx(report.n_ctx_train, report.n_ctx)
        ]
        return LoadPlan(
            report=report,
            placement=placement,
            devices=devices,
            fits=accepted is not None,
            verdict=verdict_text(step),
            contexts=tuple(choice_of(each, devices, self._policy, report.n_ctx) for each in sized),
        )

    async def _size(self, link: Link, placement: Placement, n_ctx: int) -> MemoryReport:
        """The report of a context that nothing is decided about yet."""
        return await self._ask(link, Fit(self.model, self._with_threads(n_ctx), placement))

    async def _round(
        self, link: Link, round_: Round, placement: Placement, n_ctx: int, *, is_once: bool = False
    ) -> Accept | Evict | Refuse:
        """Ask until `next_step` is settled; the devices' figures are those from before the fit round.

        `is_once`: what does not work at the first attempt is refused.
        """
        if round_ is Round.FIT:
            await self.means.measure()
            self._attempts, self._devices = (), self.means.ledger.free()
        for _ in range(N_STEPS_MAX):
            self._advance(LoadProgress(phase="fitting" if round_ is Round.FIT else "allocating"))
            ask = Fit if round_ is Round.FIT else Alloc
            report = await self._ask(link, ask(self.model, self._with_threads(n_ctx), placement))
            self.on_sized(report)
            self._attempts += (attempt_of(round_, placement, report),)
            step = next_step(self._history())
            self.story.round(round_.value, placement, self._devices, report, step)
            self._note(f"{round_.value}: {type(step).__name__.lower()}: {step_text(step)}")
            if not isinstance(step, Try):
                return step
            if is_once and step.placement != placement:
                return Refuse(step.reason, mend=f"take a shorter context than {n_ctx}")
            if round_ is Round.ALLOC and not report.failure:
                await self._close(link)  # a runner allocates only when it holds nothing
            placement = step.placement
        raise AssertionError(f"{round_.value} of {self.model.name} did not settle in {N_STEPS_MAX} steps")

    @property
    def _policy(self) -> Policy:
        return replace(self.means.policy, n_gpu=self.options.n_gpu)

    def _history(self) -> History:
        held: list[tuple[str, dict[str, int]]] = []
        others = Counter[str]()  # what eviction could win: pinned models stay
        for name, runner_id, is_pinned in self.others():
            by_device = self.means.ledger.held_bytes(runner_id)
            held.append((f"{name} (kept for ever)" if is_pinned else name, by_device))
            if not is_pinned:
                others.update(by_device)
        return History(
            name=self.model.name,
            attempts=self._attempts,
            devices=self._devices,
            policy=self._policy,
            others=others,
            other_names=tuple((name, sum(by_device.values())) for name, by_device in held if by_device),
            is_content=self._is_content,
        )

    def _with_threads(self, n_ctx: int) -> LoadOptions:
        """Discovery owns the number of cores that do work; inside a container a runner cannot know it."""
        n_thread = self.options.n_thread or self.means.n_thread or self.means.ledger.n_cores
        return msgspec.structs.replace(self.options, n_thread=n_thread, n_ctx=n_ctx)

    async def _ask(self, link: Link, request: Fit | Alloc | Commit) -> MemoryReport:
        """The runner's report; every item it sends on the way puts the stall time-out off."""
        with trio.CancelScope(deadline=trio.current_time() + self.means.stall_s) as silence:
            async with link.request(request) as items:
                async for item in items:
                    silence.deadline = trio.current_time() + self.means.stall_s
                    match item:
                        case LoadProgress():
                            self._advance(item)
                        case MemoryReport():
                            return item
                        case _:
                            break
            raise RemoteProtocolError(
                f"runner {self.runner_id} answered {type(request).__name__} without a MemoryReport",
                where="scheduler.loading",
            )
        raise RuntimeFault(
            f"loading {self.model.name} stalled: no progress for {self.means.stall_s:g} s ({self.where()})",
            where="scheduler.loading",
            mend="look at the disk the model is on, or raise OLLAMA_LOAD_TIMEOUT",
        )

    async def _close(self, link: Link) -> None:
        with trio.move_on_after(CLOSE_S):
            async with link.request(Close()) as items:
                async for _ in items:
                    continue
            return
        raise RuntimeFault(
            f"runner {self.runner_id} did not close within {CLOSE_S:.0f} s", where="scheduler.loading"
        )

    def where(self) -> str:
        """Phase and percentage, as errors name them."""
        return str(self._progress)

    def _advance(self, progress: LoadProgress) -> None:
        self._progress = progress
        self.story.waits(str(progress))
        self.on_progress(progress)

    def _note(self, decision: str) -> None:
        self.means.journal.note(f"{self.model.name} [{self.runner_id}] {decision}", self.model.digest)


def _devices_of(placement: Placement) -> frozenset[str]:
    """Where layers live.  What every model takes of the host besides is not worth waiting for."""
    return frozenset(part.device for part in placement if part.layers)


def _loaded_text(placement: Placement) -> str:
    return f"loaded on {', '.join(f'{part.device} ({len(part.layers)} layers)' for part in placement)}"
