"""One runner process: started with a lifeline, its last words kept, reaped, its socket removed."""

import logging
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path

import trio

from actors.protocol import RunnerExited

LAST_WORDS_BYTES = 8 << 10  # of standard error; a Python traceback or a CUDA report with room to spare
READ_BYTES = 64 << 10
DRAIN_S = 1.0  # after the exit: a grandchild may hold the pipe open for ever
TERM_S = 5.0  # from SIGTERM to SIGKILL; a runner leaves its batch and unmaps within this
KILL_S = 5.0  # from SIGKILL to the exit; longer means that the kernel holds it

log = logging.getLogger("host")


class Tail:
    """The last LAST_WORDS_BYTES of a stream."""

    def __init__(self) -> None:
        self._kept = bytearray()

    def add(self, data: bytes | bytearray) -> None:
        """Take more in; the oldest falls out."""
        self._kept += data
        del self._kept[:-LAST_WORDS_BYTES]

    def text(self) -> str:
        """As text; bytes that are none are replaced."""
        return self._kept.decode("utf-8", errors="replace")


class Child:
    """A runner process.  `run` owns it from start to reaping; cancelled, it ends the process."""

    def __init__(self, runner_id: str, socket_path: Path) -> None:
        self.runner_id = runner_id
        self.socket_path = socket_path
        self.pid = 0
        self.exited: RunnerExited | None = None
        self.ended = trio.Event()
        self._tail = Tail()
        self._stopping = trio.CancelScope()

    def stop(self) -> None:
        """Begin the ladder: SIGTERM, TERM_S, SIGKILL.  `ended` tells when it is over."""
        self._stopping.cancel()

    async def run(
        self,
        command: Sequence[str],
        environ: Mapping[str, str],
        *,
        task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        """Start `command` and stay until it has ended; started() when there is a process.

        The process holds the read end of a pipe, named in RUNTIME_LIFELINE_FD: end of file means that we are
        gone, however we went.
        """
        self.socket_path.unlink(missing_ok=True)
        lifeline_child, lifeline = os.pipe()
        words, words_child = os.pipe()
        with ExitStack() as ours:
            ours.callback(os.close, lifeline)
            try:
                process = await self._open(command, environ, lifeline_child, words_child)
            finally:
                os.close(lifeline_child)
                os.close(words_child)
                stream = trio.lowlevel.FdStream(words)
                ours.callback(stream.close)
            self.pid = process.pid
            task_status.started()
            try:
                await self._watch(process, stream)
            finally:
                self._bury(process)

    def _bury(self, process: trio.Process) -> None:
        """Note how it ended; without a status it is one that the kernel does not let go."""
        self.socket_path.unlink(missing_ok=True)
        exit_code = -signal.SIGKILL if process.returncode is None else process.returncode
        self.exited = RunnerExited(self.runner_id, self.pid, exit_code, self._tail.text())
        self.ended.set()

    async def _open(
        self, command: Sequence[str], environ: Mapping[str, str], lifeline: int, words: int
    ) -> trio.Process:
        # both outputs are its words: what a library prints to stdout must not be lost, nor reach our stdout
        return await trio.lowlevel.open_process(
            list(command),
            stdin=subprocess.DEVNULL,
            stdout=words,
            stderr=words,
            pass_fds=(lifeline,),
            env=dict(environ) | {"RUNTIME_LIFELINE_FD": str(lifeline)},
        )

    async def _watch(self, process: trio.Process, words: trio.lowlevel.FdStream) -> None:
        # shielded: also while we are being stopped somebody must read, or the runner blocks on its last words
        draining, drained = trio.CancelScope(shield=True), trio.Event()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._drain, words, draining, drained)
            try:
                with self._stopping:
                    await process.wait()
            finally:
                with trio.CancelScope(shield=True):  # bounded: every step of the ladder has its own limit
                    await end(process)
                    with trio.move_on_after(DRAIN_S):
                        await drained.wait()
                draining.cancel()

    async def _drain(
        self, words: trio.lowlevel.FdStream, draining: trio.CancelScope, drained: trio.Event
    ) -> None:
        """Always read, or a chatty runner blocks on a full pipe; pass on to our own standard error."""
        with draining:
            while data := await words.receive_some(READ_BYTES):
                self._tail.add(data)
                forward(data)
        drained.set()


async def end(process: trio.Process) -> None:
    """SIGTERM, wait, SIGKILL, wait.  Returns at once for a process that has ended."""
    if process.returncode is not None:
        return
    process.terminate()
    with trio.move_on_after(TERM_S):
        await process.wait()
    if process.returncode is None:
        log.warning("process %d ignored SIGTERM for %.0f s", process.pid, TERM_S)
        process.kill()
        with trio.move_on_after(KILL_S):
            await process.wait()
    if process.returncode is None:
        log.error("process %d does not end %.0f s after SIGKILL", process.pid, KILL_S)


def forward(data: bytes | bytearray) -> None:
    """Write a child's words to our standard error; a reader of it that is gone costs us nothing."""
    try:
        sys.stderr.buffer.write(data)
        sys.stderr.buffer.flush()
    except (OSError, ValueError):
        return
