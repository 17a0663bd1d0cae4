"""The runner host: spawns runners, reaps them, and tells who watches.  They end when it ends."""

import os
import re
import sys
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path

import trio

from actors.actor import not_understood
from actors.config import Config
from actors.errors import CapacityError, PeerGone, QueueFull, RequestError, RuntimeFault
from actors.inherited import child_environment
from actors.link import Replies, connect
from actors.protocol import (
    Inspect,
    Request,
    RunnerExited,
    RunnerStarted,
    SpawnRunner,
    StopRunner,
    WatchRunners,
)
from actors.runner.host.child import Child
from actors.runner.host.inspection import inspect

RUNNER_COMMAND = (sys.executable, "-m", "actors.runner")
START_S = 60.0  # imports and kernels; a cold disk makes it tens of seconds
POLL_S = 0.01  # between two looks at whether the runner's socket answers
RUNNERS_MAX = 64  # processes; no machine of today holds as many models at once
EXITS_KEPT = 64  # deaths remembered, for a StopRunner that comes a moment later
WATCH_MAX = 256  # events a watcher may be behind; more than all runners starting and dying at once
INSPECTIONS_MAX = 2  # at a time: short, but each maps a file and starts a Python

RUNNER_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,40}")  # it becomes part of a socket's path

Event = RunnerStarted | RunnerExited


class RunnerHost:
    """Satisfies `actors.actor.Service`.  `command` starts a runner; tests bring their own."""

    def __init__(self, config: Config, command: Sequence[str] = RUNNER_COMMAND) -> None:
        self._config = config
        self._command = tuple(command)
        self._children: dict[str, Child] = {}
        self._started: dict[str, RunnerStarted] = {}  # those that answer at their socket
        self._exits: OrderedDict[str, RunnerExited] = OrderedDict()
        self._watchers: set[trio.MemorySendChannel[Event]] = set()
        self._inspecting = trio.CapacityLimiter(INSPECTIONS_MAX)
        self._children_nursery: trio.Nursery | None = None
        self._n_spawned = 0

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Own the processes; when cancelled, all are stopped and reaped before this returns."""
        self._remove_leftovers()
        async with trio.open_nursery() as nursery:
            self._children_nursery = nursery
            task_status.started()
            await trio.sleep_forever()

    def _remove_leftovers(self) -> None:
        """Sockets of runners of a host before us; they ended with it."""
        for path in Path(self._config.run_dir).glob("runner-*.sock"):
            path.unlink(missing_ok=True)

    async def handle(self, request: Request, replies: Replies) -> None:
        """Answer one request."""
        match request:
            case SpawnRunner():
                await replies.send(await self._spawn(request.runner_id))
            case StopRunner():
                await replies.send(await self._stop(request.runner_id))
            case WatchRunners():
                await self._watch(replies)
            case Inspect():
                async with self._inspecting:
                    info = await inspect(self._command, request.path)
                await replies.send(info)
            case _:
                raise not_understood(request)

    def gauges(self) -> dict[str, float]:
        """Counters for GetStats; a new watcher is told of as many runners as `runners` says."""
        return {
            "runners": len(self._started),
            "runners_starting": len(self._children) - len(self._started),
            "runners_spawned_total": self._n_spawned,
            "inspections": self._inspecting.borrowed_tokens,
        }

    async def _spawn(self, runner_id: str) -> RunnerStarted:
        """A runner that answers.  If that fails, or nobody waits for it any more, none is left behind."""
        child = await self._start(runner_id)
        is_up = False
        try:
            started = await self._wait_answer(child)
            is_up = True
        finally:
            if not is_up:
                child.stop()
        self._started[runner_id] = started
        self._tell(started)
        return started

    async def _start(self, runner_id: str) -> Child:
        if not RUNNER_ID.fullmatch(runner_id):
            raise RequestError(
                f'"{runner_id[:80]}" cannot be a runner id',
                where="spawn",
                mend="letters, digits, - and _, up to 41",
            )
        if runner_id in self._children:
            raise RequestError(f"runner {runner_id} lives already", where="spawn", mend="use another id")
        if len(self._children) >= RUNNERS_MAX:
            raise CapacityError(f"{RUNNERS_MAX} runners live already", where="spawn", mend="stop one")
        if self._children_nursery is None:
            raise RuntimeFault("the runner host is not up yet", where="spawn", mend="try again in a moment")
        address = self._config.socket_address(f"runner-{runner_id}")
        child = self._children[runner_id] = Child(runner_id, Path(address.removeprefix("unix:")))
        self._n_spawned += 1
        try:
            await self._children_nursery.start(self._own, child)
        except OSError as exc:
            raise RuntimeFault(f"runner {runner_id} cannot be started: {exc}", where="spawn") from exc
        return child

    async def _own(self, child: Child, *, task_status: trio.TaskStatus[None]) -> None:
        environ = child_environment(os.environ, RUNTIME_RUN_DIR=self._config.run_dir)
        try:
            await child.run([*self._command, "--id", child.runner_id], environ, task_status=task_status)
        finally:
            del self._children[child.runner_id]
            self._started.pop(child.runner_id, None)
            if child.exited is not None:
                self._exits[child.runner_id] = child.exited
                while len(self._exits) > EXITS_KEPT:
                    self._exits.popitem(last=False)
                self._tell(child.exited)

    async def _wait_answer(self, child: Child) -> RunnerStarted:
        address = f"unix:{child.socket_path}"
        with trio.move_on_after(START_S):
            while child.exited is None:
                try:
                    async with connect(address, name="host"):
                        return RunnerStarted(child.runner_id, child.pid, address)
                except PeerGone:
                    with trio.move_on_after(POLL_S):
                        await child.ended.wait()
            raise PeerGone(
                f"runner {child.runner_id} ended with status {child.exited.exit_code} while it started: "
                f"{child.exited.last_words.strip()[-1000:]}",
                where="spawn",
            )
        raise PeerGone(
            f"runner {child.runner_id} did not answer within {START_S:.0f} s",
            where="spawn",
            mend="see its log",
        )

    async def _stop(self, runner_id: str) -> RunnerExited:
        """End a runner; one that ended before is answered with how it did."""
        child = self._children.get(runner_id)
        if child is not None:
            child.stop()
            await child.ended.wait()
            if child.exited is not None:
                return child.exited
        if (exited := self._exits.get(runner_id)) is not None:
            return exited
        raise RequestError(f"there is no runner {runner_id}", where="stop")

    async def _watch(self, replies: Replies) -> None:
        send, receive = trio.open_memory_channel[Event](WATCH_MAX)
        for started in self._started.values():
            send.send_nowait(started)
        self._watchers.add(send)
        try:
            async with receive:
                async for event in receive:
                    await replies.send(event)
            raise QueueFull(
                f"a watcher of runners was {WATCH_MAX} events behind", where="watch", mend="watch anew"
            )
        finally:
            self._watchers.discard(send)
            send.close()

    def _tell(self, event: Event) -> None:
        for watcher in tuple(self._watchers):
            try:
                watcher.send_nowait(event)
            except trio.WouldBlock:
                self._watchers.discard(watcher)
                watcher.close()
            except trio.BrokenResourceError:
                self._watchers.discard(watcher)
