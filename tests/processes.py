"""Real processes for tests: start them, ask them, be sure that they are gone."""

import os
import signal
import subprocess
import sys
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import trio

from actors.errors import RuntimeFault
from actors.link import connect
from actors.protocol import GetStats, Stats, Tokenize, Tokens

ROOT = Path(__file__).resolve().parent.parent
CEILING_S = 30.0
"""For broken builds; nothing here waits for it."""
POLL_S = 0.02
UNANSWERED_S = 0.5


def environment(run_dir: Path, **extra: str) -> dict[str, str]:
    """A runtime of its own, whatever else runs on this machine."""
    keep = {key: os.environ[key] for key in ("PATH", "HOME", "LANG") if key in os.environ}
    return {
        **keep,
        "XDG_CONFIG_HOME": str(run_dir / "no-config"),
        "RUNTIME_RUN_DIR": str(run_dir),
        "OLLAMA_MODELS": str(run_dir / "models"),
        "OLLAMA_HOST": "127.0.0.1:0",
        **extra,
    }


@asynccontextmanager
async def started(
    module: str, *arguments: str, environ: Mapping[str, str], pass_fds: Sequence[int] = ()
) -> AsyncGenerator[trio.Process, None]:
    """`python -m module arguments`, both outputs piped; killed and reaped in the end if it still runs."""
    process = await trio.lowlevel.open_process(
        [sys.executable, "-m", module, *arguments],
        cwd=ROOT,
        env=dict(environ),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        pass_fds=pass_fds,
    )
    try:
        with trio.fail_after(CEILING_S):
            yield process
    finally:
        with trio.CancelScope(shield=True):
            if process.returncode is None:
                process.kill()
            await process.wait()
            for pipe in (process.stdout, process.stderr):
                if pipe is not None:
                    await pipe.aclose()


async def read_line(stream: trio.abc.ReceiveStream | None) -> str:
    """Up to the next newline, or the end."""
    assert stream is not None
    line = b""
    while not line.endswith(b"\n"):
        data = await stream.receive_some(1)
        if not data:
            break
        line += data
    return line.decode()


async def read_all(stream: trio.abc.ReceiveStream | None) -> str:
    """Up to the end; children that inherited the pipe count."""
    assert stream is not None
    text = b""
    async for data in stream:
        text += data
    return text.decode(errors="replace")


async def wait_stats(run_dir: Path, actor: str, wanted: Callable[[Stats], bool] = lambda _: True) -> Stats:
    """The actor's Stats once they are as wanted; the caller sets the deadline."""
    while True:
        try:
            async with connect(f"unix:{run_dir}/{actor}.sock", name="test") as link:
                stats = await link.ask(GetStats(), Stats)
            if wanted(stats):
                return stats
        except RuntimeFault:
            pass  # not up yet, or just gone
        await trio.sleep(POLL_S)


async def hang(run_dir: Path, actor: str) -> None:
    """Make a throwaway actor hang: tell it to, until it leaves a question unanswered."""
    while True:
        try:
            with trio.move_on_after(UNANSWERED_S):
                async with connect(f"unix:{run_dir}/{actor}.sock", name="test") as link:
                    await link.ask(Tokenize(text="hang"), Tokens)
        except RuntimeFault:
            return  # whoever watches over it was faster
        with trio.move_on_after(UNANSWERED_S) as waiting:
            await wait_stats(run_dir, actor)
        if waiting.cancelled_caught:
            return


async def wait_until(is_so: Callable[[], bool]) -> None:
    """Until a condition of another process holds; the caller sets the deadline."""
    while not is_so():  # noqa: ASYNC110  # what is waited for is in another process
        await trio.sleep(POLL_S)


def is_alive(pid: int) -> bool:
    """The process runs; one that is dead and not yet reaped does not."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state not in ("Z", "X")


def kill(pid: int) -> None:
    """kill -9."""
    os.kill(pid, signal.SIGKILL)
