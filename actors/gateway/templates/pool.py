"""The gateway's side of the template workers: warm processes, killed when a job takes too long."""

import subprocess
import sys
from pathlib import Path

import msgspec
import trio

import actors
from actors.errors import PeerGone, RequestError
from actors.gateway.templates.jobs import LENGTH, MAX_FRAME_BYTES, RENDER_LIMIT_S, Job, Outcome
from actors.gateway.templates.language import check_language

N_WORKERS = 2  # a render takes about a millisecond; a second worker is for while the first hangs
START_S = 30.0  # of a Python process on a machine that is busy
REAP_S = 2.0  # after SIGKILL

COMMAND = (sys.executable, "-m", "actors.gateway.templates.worker")
ROOT = Path(actors.__file__).parent.parent  # `-m` finds the package from here, installed or not


class _WorkerGone(Exception):
    """The worker died in the middle of a job: of its memory limit, or because the system killed it."""


class _Worker:
    """One process, one job at a time."""

    def __init__(self, process: trio.Process) -> None:
        self._process = process
        self._held = bytearray()

    @property
    def is_alive(self) -> bool:
        return self._process.poll() is None

    async def wait_ready(self) -> None:
        """Return when it has said that it is up."""
        await self._outcome()

    async def render(self, body: bytes) -> Outcome:
        """Send a job, wait for its outcome; the caller kills the worker if this does not return."""
        assert self._process.stdin is not None
        try:
            await self._process.stdin.send_all(LENGTH.pack(len(body)) + body)
            return await self._outcome()
        except (trio.BrokenResourceError, trio.ClosedResourceError) as exc:
            raise _WorkerGone from exc

    async def _outcome(self) -> Outcome:
        size: int = LENGTH.unpack(await self._read(LENGTH.size))[0]
        return msgspec.msgpack.decode(await self._read(size), type=Outcome)

    async def _read(self, n: int) -> bytes:
        assert self._process.stdout is not None
        while len(self._held) < n:
            got = await self._process.stdout.receive_some()
            if not got:
                raise _WorkerGone
            self._held += got
        data = bytes(self._held[:n])
        del self._held[:n]
        return data

    async def kill(self) -> None:
        """SIGKILL and reap."""
        with trio.move_on_after(REAP_S, shield=True):
            self._process.kill()
            await self._process.wait()
            for pipe in (self._process.stdin, self._process.stdout):
                if pipe is not None:
                    await pipe.aclose()


class RenderPool:
    """Runs templates out of the gateway's process.  `run` owns the processes; `render` needs it to run."""

    def __init__(self, limit_s: float = RENDER_LIMIT_S) -> None:
        self.limit_s = limit_s
        self._workers: set[_Worker] = set()  # all of them
        self._idle: list[_Worker] = []
        self._turns = trio.CapacityLimiter(N_WORKERS)
        self._is_running = False

    async def run(self, *, task_status: trio.TaskStatus[None]) -> None:
        """Keep the workers; started() at once; kills them all when cancelled."""
        self._is_running = True
        try:
            task_status.started()
            # one is warm before anybody asks, most often; who asks before that may start the other
            async with self._turns:
                self._idle.append(await self._start())
            await trio.sleep_forever()
        finally:
            self._is_running = False
            for worker in list(self._workers):
                await self._remove(worker)

    async def render(self, job: Job) -> str:
        """The text; RequestError with the reason when the template fails, or takes longer than limit_s."""
        assert self._is_running, "RenderPool.run is not running"
        try:
            body = msgspec.msgpack.encode(job)
        except (ValueError, OverflowError) as exc:  # lone surrogates, integers over 64 bits
            raise RequestError(f"the messages cannot be put in a template: {exc}", where="template") from exc
        if len(body) > MAX_FRAME_BYTES:
            raise RequestError("the messages are too large for a template", where="template")
        outcome = await self._outcome(body)
        if outcome.error:
            raise RequestError(
                f"the chat template failed: {outcome.error}",
                where="template",
                mend="send messages that the model's template allows, or give it another TEMPLATE",
            )
        return outcome.text

    async def check(self, template: str) -> None:
        """Raise RequestError, with the line, for what is no template; Unsupported for a Go one."""
        assert self._is_running, "RenderPool.run is not running"
        check_language(template)
        outcome = await self._outcome(msgspec.msgpack.encode(Job(template, {}, only_check=True)))
        if outcome.error:
            raise RequestError(f"the template cannot be used: {outcome.error}", where="template")

    async def _outcome(self, body: bytes) -> Outcome:
        async with self._turns:
            worker = await self._take()
            try:
                with trio.fail_after(self.limit_s):
                    outcome = await worker.render(body)
            except trio.TooSlowError:
                return Outcome(error=f"it did not end within {self.limit_s:g} s")
            except _WorkerGone:
                return Outcome(error="it took more memory or time than is allowed")
            else:
                self._idle.append(worker)
                return outcome
            finally:
                if worker not in self._idle:
                    await self._remove(worker)

    async def _take(self) -> _Worker:
        while self._idle:
            worker = self._idle.pop()
            if worker.is_alive:
                return worker
            await self._remove(worker)
        return await self._start()

    async def _start(self) -> _Worker:
        process = await trio.lowlevel.open_process(
            COMMAND, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=ROOT
        )
        worker = _Worker(process)
        self._workers.add(worker)
        is_ready = False
        try:
            with trio.fail_after(START_S):
                await worker.wait_ready()
            is_ready = True
        except (trio.TooSlowError, _WorkerGone) as exc:
            raise PeerGone(
                "a template worker did not start", where="templates.pool", mend="see its messages in the log"
            ) from exc
        finally:
            if not is_ready:
                await self._remove(worker)
        return worker

    async def _remove(self, worker: _Worker) -> None:
        await worker.kill()
        self._workers.discard(worker)
