"""The runner host as the scheduler sees it: spawn, stop, and hear of deaths.

The link to the host comes and goes with the host; runners are its children and end with it.
"""

import logging
import math
import secrets
from collections import OrderedDict
from collections.abc import Callable

import trio

from actors.actor import stay_connected
from actors.errors import PeerGone, QueueFull, RuntimeFault
from actors.link import Link
from actors.protocol import (
    GetStats,
    ModelSpec,
    RunnerExited,
    RunnerStarted,
    SpawnRunner,
    Stats,
    StopRunner,
    WatchRunners,
)

HOST_WAIT_S = 15.0  # a host that is being restarted is back well before
SPAWN_S = 90.0  # the host itself gives a runner 60 s to answer
STOP_S = 20.0  # the host's ladder ends in SIGKILL before
LAST_WORDS_S = 2.0  # between the end of a runner's socket and the host's report of its death
COUNT_AGAIN_S = 1.0  # the host names its runners at once
EXITS_KEPT = 256  # deaths remembered for those who ask a moment later

N_RUNNERS_GAUGE = "runners"  # in the host's Stats: living runners

log = logging.getLogger("scheduler")


class Runners:
    """Spawns and stops runners through the host, and knows which live."""

    def __init__(
        self, host_address: str, on_exit: Callable[[RunnerExited], None], on_known: Callable[[], None]
    ) -> None:
        self._host_address = host_address
        self._on_exit = on_exit
        self._on_known = on_known  # called whenever `living` is complete again
        self._link: Link | None = None
        self._exits: OrderedDict[str, RunnerExited] = OrderedDict()
        self._changed = trio.Event()
        self.living: dict[str, RunnerStarted] = {}
        self.known = trio.Event()  # set once the host has named all its runners

    async def run(self) -> None:
        """Keep a link to the host, for ever."""
        await stay_connected(self._host_address, "scheduler", self._use)

    async def _use(self, link: Link) -> None:
        self.living.clear()
        self._link = link
        self._signal()
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._count, link)
                try:
                    async with link.request(WatchRunners()) as items:
                        async for item in items:
                            self._hear(item)
                except QueueFull as fault:
                    log.warning("%s", fault)  # we were too slow; connecting again tells all anew
                nursery.cancel_scope.cancel()
        finally:
            self._link = None
            self._signal()

    async def _count(self, link: Link) -> None:
        """Until the host has named as many runners as it says it has: only then is what we hear complete."""
        while True:
            stats = await link.ask(GetStats(), Stats)
            # asked again: one of those it counted may have died before it was named
            with trio.move_on_after(COUNT_AGAIN_S):
                while len(self.living) < stats.gauges.get(N_RUNNERS_GAUGE, 0):
                    await self._changed.wait()
                break
        self.known.set()
        self._on_known()

    def _hear(self, item: object) -> None:
        match item:
            case RunnerStarted():
                self.living[item.runner_id] = item
            case RunnerExited():
                self.living.pop(item.runner_id, None)
                self._exits[item.runner_id] = item
                while len(self._exits) > EXITS_KEPT:
                    self._exits.popitem(last=False)
                self._on_exit(item)
            case _:
                return
        self._signal()

    def _signal(self) -> None:
        self._changed.set()
        self._changed = trio.Event()

    async def _host(self) -> Link:
        with trio.move_on_after(HOST_WAIT_S):
            while self._link is None:
                await self._changed.wait()
            return self._link
        raise PeerGone(
            f"the runner host did not answer within {HOST_WAIT_S:.0f} s",
            where="scheduler.runners",
            mend="see its log; the supervisor restarts it",
        )

    async def spawn(self, runner_id: str) -> RunnerStarted:
        """A new runner that answers at its address.  Raises PeerGone with its last words if it dies first."""
        link = await self._host()
        with trio.move_on_after(SPAWN_S):
            started = await link.ask(SpawnRunner(runner_id), RunnerStarted)
            self.living.setdefault(runner_id, started)
            return started
        raise RuntimeFault(
            f"runner {runner_id} did not start within {SPAWN_S:.0f} s",
            where="scheduler.runners",
        )

    async def stop(self, runner_id: str) -> None:
        """End a runner and wait until it has ended.  Raises PeerGone if the host does not confirm it."""
        link = await self._host()
        with trio.move_on_after(STOP_S):
            exited = await link.ask(StopRunner(runner_id), RunnerExited)
            if self.living.pop(runner_id, None) is not None:
                self._hear(exited)
            return
        raise PeerGone(f"runner {runner_id} was not stopped within {STOP_S:.0f} s", where="scheduler.runners")

    async def exit_of(self, runner_id: str, within_s: float = LAST_WORDS_S) -> RunnerExited | None:
        """How a runner ended, if the host says so in time."""
        with trio.move_on_after(within_s):
            while runner_id not in self._exits:
                await self._changed.wait()
        return self._exits.get(runner_id)


def stall_s(load_timeout_s: float) -> float:
    """The configured stall time-out; 0 and less mean none."""
    return load_timeout_s if load_timeout_s > 0 else math.inf


def new_runner_id(model: ModelSpec) -> str:
    """Names the model for those who read process lists; never used twice, not even after a restart."""
    short = "".join(c for c in model.digest.rpartition(":")[2][:8] if c.isalnum()) or "model"
    return f"{short}-{secrets.token_hex(4)}"
