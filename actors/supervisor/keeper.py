"""Keeping one actor alive: start it, ask after its health, start it again when it dies."""

import logging
import signal
from collections.abc import Mapping
from typing import Final

import msgspec
import trio

from actors.actor import CONFIG_EXIT, DRAIN_S
from actors.errors import RuntimeFault
from actors.link import connect
from actors.protocol import GetStats, Stats
from actors.supervisor.launch import launch, stop
from actors.supervisor.policy import RestartPolicy
from actors.supervisor.table import ActorEntry

log = logging.getLogger(__name__)

STOP_S: Final = DRAIN_S + 2
"""From SIGTERM to SIGKILL: an actor's own draining, and a little."""
GIVE_UP_STOP_S: Final = 3.0
"""The same when the runtime fails: nothing is worth waiting for."""
RETRY_S: Final = 0.02
"""Between two looks at an actor that starts: it takes some hundred milliseconds to answer."""


class HealthPolicy(msgspec.Struct, frozen=True):
    """How often an actor is asked, and how long it may take."""

    period_s: float = 5.0
    answer_s: float = 10.0
    start_s: float = 60.0  # the first answer: a machine may be busy when everything starts at once


class Ties(msgspec.Struct, frozen=True):
    """What a child gets from its supervisor."""

    address: str
    sockets: Mapping[str, int]
    lifeline_fd: int
    environ: Mapping[str, str]


class Keeper:
    """One actor of the runtime.  `run` returns after `stop`, or raises RuntimeFault when it cannot live."""

    def __init__(self, entry: ActorEntry, ties: Ties, policy: RestartPolicy, health: HealthPolicy) -> None:
        self.entry = entry
        self._ties = ties
        self._policy = policy
        self._health = health
        self._process: trio.Process | None = None
        self._deaths_s: list[float] = []
        self._answered = trio.Event()
        self._stopping = trio.Event()
        self._replacing = trio.Event()
        self._hurry = trio.Event()
        self._stopped = trio.Event()

    @property
    def pid(self) -> int | None:
        """The process of now, if there is one."""
        return self._process.pid if self._process else None

    async def wait_ready(self) -> None:
        """Until the actor has answered once."""
        await self._answered.wait()

    def stop(self) -> None:
        """Stop for good, draining; `run` returns when it is done."""
        self._stopping.set()

    async def wait_stopped(self) -> None:
        """Until `run` has ended what `stop` asked it to end."""
        await self._stopped.wait()

    def hurry(self) -> None:
        """Cut the draining short."""
        self._hurry.set()

    def replace(self) -> None:
        """Start a new process at once; the old one stops accepting, and finishes what it has begun."""
        self._replacing.set()

    async def run(self) -> None:
        """Keep the actor alive."""
        async with trio.open_nursery() as retired_nursery:
            while not self._stopping.is_set():
                self._replacing = trio.Event()
                process = await launch(
                    self.entry.command, self._ties.sockets, self._ties.lifeline_fd, self._ties.environ
                )
                self._process = process
                log.debug("started %s", self.entry.name, extra={"child": process.pid})
                is_dead = False
                try:
                    is_dead = await self._live(process)
                finally:
                    if not is_dead and not self._replacing.is_set() and not self._stopping.is_set():
                        await stop(process, GIVE_UP_STOP_S)  # we are cancelled
                if is_dead:
                    self._process = None
                    await self._mourn(process)
                elif self._stopping.is_set():
                    await stop(process, STOP_S, self._hurry)
                else:
                    retired_nursery.start_soon(stop, process, STOP_S, self._hurry)
        self._process = None
        self._stopped.set()

    async def _live(self, process: trio.Process) -> bool:
        """True when it has died, False when it is to be stopped or replaced."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._cancel_on, self._stopping, nursery.cancel_scope)
            nursery.start_soon(self._cancel_on, self._replacing, nursery.cancel_scope)
            nursery.start_soon(self._check_health, process)
            await process.wait()
            nursery.cancel_scope.cancel()
        return process.returncode is not None

    async def _cancel_on(self, event: trio.Event, scope: trio.CancelScope) -> None:
        await event.wait()
        scope.cancel()

    async def _mourn(self, process: trio.Process) -> None:
        """Wait as the policy says; RuntimeFault when it says that there is no use."""
        code = process.returncode if process.returncode is not None else 0
        name, ending = self.entry.name, describe_exit(code)
        if code == CONFIG_EXIT:
            raise RuntimeFault(
                f"{name} cannot start: a setting cannot be used", where=name, mend="see its log above"
            )
        now_s = trio.current_time()
        self._deaths_s = [*self._policy.recent(self._deaths_s, now_s), now_s]
        delay_s = self._policy.delay_s(self._deaths_s, now_s)
        if delay_s is None:
            raise RuntimeFault(
                f"{name} {ending}, and died {len(self._deaths_s)} times within {self._policy.window_s:.0f} s",
                where=name,
                mend="see its log above for the cause",
            )
        log.warning("%s %s, starts again in %.1f s", name, ending, delay_s, extra={"child": process.pid})
        with trio.move_on_after(delay_s):
            await self._stopping.wait()

    async def _check_health(self, process: trio.Process) -> None:
        """Kill the process when it leaves a question unanswered: a loop that hangs does not end by itself."""
        answer_s = self._health.start_s
        while True:
            with trio.move_on_after(answer_s) as waiting:
                while not await self._is_answering():  # noqa: ASYNC110  # waits for another process
                    await trio.sleep(RETRY_S)
            if waiting.cancelled_caught:
                log.error("%s did not answer within %.0f s: killing it", self.entry.name, answer_s)
                process.kill()
                return
            self._answered.set()
            answer_s = self._health.answer_s
            await trio.sleep(self._health.period_s)

    async def _is_answering(self) -> bool:
        try:
            async with connect(self._ties.address, name="supervisor") as link:
                stats = await link.ask(GetStats(), Stats)
        except RuntimeFault as fault:
            log.debug("%s does not answer: %s", self.entry.name, fault)
            return False
        # while one process takes over from another, either may have answered
        return stats.pid == self.pid or self._replacing.is_set()


def describe_exit(code: int) -> str:
    """In words: "ended with exit code 1", "was killed by SIGKILL"."""
    if code >= 0:
        return f"ended with exit code {code}"
    try:
        return f"was killed by {signal.Signals(-code).name}"
    except ValueError:
        return f"was killed by signal {-code}"
