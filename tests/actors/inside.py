"""A runner host whose runners are tasks of the test's own process: hundreds live and die within seconds.

Sockets, messages and the scheduler are real; only a process is a task, and a kill cancels it.
"""

import os

import trio

from actors.actor import not_understood
from actors.config import Config
from actors.errors import RequestError
from actors.link import Replies
from actors.protocol import Request, RunnerExited, RunnerStarted, SpawnRunner, StopRunner, WatchRunners
from tests.actors.fake_runner import FakeRunner
from tests.actors.rig import Running

KILLED = -9
EVENTS_MAX = 4096  # more than a test makes


class InsideHost:
    """Satisfies `actors.actor.Service`."""

    def __init__(self, config: Config) -> None:
        self._config = config
        self._running: dict[str, Running] = {}
        self._exits: dict[str, RunnerExited] = {}
        self._watchers: set[trio.MemorySendChannel[RunnerStarted | RunnerExited]] = set()
        self._runners_nursery: trio.Nursery | None = None
        self.runners: dict[str, FakeRunner] = {}  # that answer
        self.n_spawned = 0

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        async with trio.open_nursery() as nursery:
            self._runners_nursery = nursery
            task_status.started()
            await trio.sleep_forever()

    def gauges(self) -> dict[str, float]:
        return {"runners": len(self.runners), "runners_starting": len(self._running) - len(self.runners)}

    async def handle(self, request: Request, replies: Replies) -> None:
        match request:
            case SpawnRunner():
                await replies.send(await self._spawn(request.runner_id))
            case StopRunner():
                while request.runner_id in self._running:
                    self.kill(request.runner_id)  # one that is starting is killed when it is up
                    await trio.sleep(0.001)
                if request.runner_id not in self._exits:
                    raise RequestError(f"there is no runner {request.runner_id}", where="stop")
                await replies.send(self._exits[request.runner_id])
            case WatchRunners():
                await self._watch(replies)
            case _:
                raise not_understood(request)

    def kill(self, runner_id: str) -> None:
        """As SIGKILL does to a runner that answers."""
        if runner_id in self.runners:
            self._running[runner_id].scope.cancel()

    async def _spawn(self, runner_id: str) -> RunnerStarted:
        assert self._runners_nursery is not None
        self._running[runner_id] = Running()
        self.n_spawned += 1
        await self._runners_nursery.start(self._own, runner_id)
        return self._started(runner_id)

    async def _own(self, runner_id: str, *, task_status: trio.TaskStatus[None]) -> None:
        runner, running = FakeRunner(self._config, runner_id), self._running[runner_id]
        try:
            async with trio.open_nursery() as nursery:
                await nursery.start(running.run, f"runner-{runner_id}", runner, self._config)
                self.runners[runner_id] = runner
                self._tell(self._started(runner_id))
                task_status.started()
        finally:
            self.runners.pop(runner_id, None)
            del self._running[runner_id]
            self._exits[runner_id] = RunnerExited(runner_id, os.getpid(), KILLED)
            self._tell(self._exits[runner_id])

    def _started(self, runner_id: str) -> RunnerStarted:
        return RunnerStarted(runner_id, os.getpid(), self._config.socket_address(f"runner-{runner_id}"))

    async def _watch(self, replies: Replies) -> None:
        send, receive = trio.open_memory_channel[RunnerStarted | RunnerExited](EVENTS_MAX)
        for runner_id in self.runners:
            send.send_nowait(self._started(runner_id))
        self._watchers.add(send)
        try:
            async for event in receive:
                await replies.send(event)
        finally:
            self._watchers.discard(send)

    def _tell(self, event: RunnerStarted | RunnerExited) -> None:
        for watcher in self._watchers:
            watcher.send_nowait(event)
