"""Starting a child with its listening sockets at descriptors 3, 4, ... and its lifeline behind them."""

import subprocess
import sys
from collections.abc import Mapping, Sequence
from typing import Final

import trio

from actors.inherited import child_environment

# The convention needs the child's own pid in its environment and its sockets at fixed descriptors, which
# only code that runs in the child can give.  A function run between fork and exec may deadlock on another
# thread's lock; a bare interpreter that becomes the child a few milliseconds later may not.
_BECOME: Final = """
import fcntl, os, sys
fds, names, command = sys.argv[1].split(","), sys.argv[2], sys.argv[3:]
high = [fcntl.fcntl(int(fd), fcntl.F_DUPFD, 100) for fd in fds]
for i, fd in enumerate(high):
    os.dup2(fd, 3 + i, inheritable=True)
os.closerange(3 + len(high), 4096)
n_sockets = len(high) - 1
if n_sockets:
    os.environ.update(LISTEN_FDS=str(n_sockets), LISTEN_FDNAMES=names, LISTEN_PID=str(os.getpid()))
os.environ["RUNTIME_LIFELINE_FD"] = str(3 + n_sockets)
os.execve(command[0], command, os.environ)
"""


async def launch(
    command: Sequence[str],
    sockets: Mapping[str, int],
    lifeline_fd: int,
    environ: Mapping[str, str],
    stdout: int | None = None,
) -> trio.Process:
    """Start `command` with these listening sockets (name -> descriptor) and the lifeline's read end.

    Its standard output goes to our standard error, if not to `stdout`.  It gets a session of its own: a
    terminal's Ctrl-C is for the supervisor, which stops its children in order.
    """
    fds = [*sockets.values(), lifeline_fd]
    numbers = ",".join(str(fd) for fd in fds)
    return await trio.lowlevel.open_process(
        [sys.executable, "-I", "-S", "-c", _BECOME, numbers, ":".join(sockets), *command],
        pass_fds=fds,
        start_new_session=True,
        stdin=subprocess.DEVNULL,
        stdout=sys.stderr.fileno() if stdout is None else stdout,
        env=child_environment(environ),
    )


async def stop(
    process: trio.Process, patience_s: float, hurry: trio.Event | None = None, hurry_s: float = 2.0
) -> int:
    """SIGTERM, wait, SIGKILL, always reaped; `hurry` cuts the wait to `hurry_s`.  Gives the exit code."""
    with trio.CancelScope(shield=True):
        process.terminate()
        with trio.move_on_after(patience_s) as patience:
            async with trio.open_nursery() as nursery:
                if hurry is not None:
                    nursery.start_soon(_hurry, process, patience, hurry, hurry_s)
                await process.wait()
                nursery.cancel_scope.cancel()
        if process.returncode is None:
            process.kill()
        await process.wait()
    assert process.returncode is not None
    return process.returncode


async def _hurry(
    process: trio.Process, patience: trio.CancelScope, hurry: trio.Event, hurry_s: float
) -> None:
    await hurry.wait()
    process.terminate()  # a second one cuts its draining short
    patience.deadline = min(patience.deadline, trio.current_time() + hurry_s)
