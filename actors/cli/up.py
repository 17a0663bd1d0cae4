"""Starting the runtime: in this process's place (`up`), or beside it while a chat lasts (`run --up`)."""

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Generator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from pathlib import Path
from typing import IO

import click
from rich.console import Console

from actors.cli.context import Cli
from actors.errors import PeerGone

READY_S = 60.0  # processes start in about a second; a cold disk or a busy machine takes many
LOOK_EVERY_S = 0.1
STOP_S = 50.0  # more than the supervisor's own ladder takes: twice 20 s of draining and a little
LOG_LINES = 15

COMMAND = (sys.executable, "-m", "actors.supervisor")


@click.command()
@click.option(
    "--config",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="A TOML file with settings; else actor-runtime/config.toml in ~/.config, if there is one.",
)
@click.option(
    "--host", metavar="HOST[:PORT]", help="Where to serve HTTP; else OLLAMA_HOST, else 127.0.0.1:11434."
)
def up(config: Path | None, host: str | None) -> None:
    """Start the runtime, and keep it running until Ctrl-C.

    \b
    Settings come from a TOML file and from the environment:
      OLLAMA_HOST               where to serve HTTP               127.0.0.1:11434
      OLLAMA_MODELS             the model library                 ~/.ollama/models
      OLLAMA_KEEP_ALIVE         how long models stay loaded       5m
      OLLAMA_LOAD_TIMEOUT       a load without progress ends      5m
      OLLAMA_CONTEXT_LENGTH     positions one sequence may use    4096
      OLLAMA_NUM_PARALLEL       sequences of one model at once    4
      OLLAMA_MAX_LOADED_MODELS  models in memory                  3 per device
      OLLAMA_MAX_QUEUE          requests that may wait            512
      OLLAMA_KV_CACHE_TYPE      f16, f32 or q8_0                  f16
      OLLAMA_ORIGINS            more web origins, with commas
      RUNTIME_CONFIG            the TOML file
      RUNTIME_RUN_DIR           where the sockets are
      RUNTIME_CPU_ISA           forces an instruction set
      RUNTIME_LOG_LEVEL         debug, info, warning, error       info
    """
    if config is not None:
        os.environ["RUNTIME_CONFIG"] = str(config)
    if host is not None:
        os.environ["OLLAMA_HOST"] = host
    # the supervisor takes our place: its signals and its standard error are the user's own
    sys.stdout.flush()
    sys.stderr.flush()
    os.execv(COMMAND[0], COMMAND)


@contextmanager
def runtime_up(cli: Cli) -> Generator[None]:
    """A runtime that is reachable inside the block: the one that runs, or one that ends with the block."""
    if cli.http.is_up():
        yield
        return
    # its log is kept for the case that it does not start; it would only disturb the chat
    with tempfile.TemporaryFile(prefix="runtime-", suffix=".log") as log, _child(log) as child:
        _wait_ready(cli, child, log)
        yield


@contextmanager
def _child(log: IO[bytes]) -> Generator[subprocess.Popen[bytes]]:
    """The supervisor as a child; stopped at the end, and by its lifeline if we are killed."""
    lifeline, held = os.pipe()
    try:
        child = subprocess.Popen(
            COMMAND,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            pass_fds=(lifeline,),
            env={**os.environ, "RUNTIME_LIFELINE_FD": str(lifeline)},
            start_new_session=True,  # Ctrl-C stops an answer, not the runtime
        )
        os.close(lifeline)
        try:
            yield child
        finally:
            _stop(child)
    finally:
        os.close(held)


def _stop(child: subprocess.Popen[bytes]) -> None:
    with suppress(ProcessLookupError):
        child.send_signal(signal.SIGTERM)
    try:
        child.wait(STOP_S)
    except subprocess.TimeoutExpired:
        child.kill()
        child.wait()


def _wait_ready(cli: Cli, child: subprocess.Popen[bytes], log: IO[bytes]) -> None:
    """Return when HTTP answers; PeerGone with the end of the log if it does not come up."""
    console = Console(stderr=True)
    deadline_s = time.monotonic() + READY_S
    with _spinner(console):
        while not cli.http.is_up():
            if child.poll() is not None or time.monotonic() > deadline_s:
                state = f"ended with {child.returncode}" if child.returncode is not None else "is not ready"
                raise PeerGone(f"the runtime {state}", where="cli", mend=f"its log ends with:\n{_tail(log)}")
            time.sleep(LOOK_EVERY_S)


def _spinner(console: Console) -> AbstractContextManager[object]:
    return console.status("starting the runtime") if console.is_terminal else nullcontext()


def _tail(log: IO[bytes]) -> str:
    log.seek(0)
    return "\n".join(log.read().decode(errors="replace").splitlines()[-LOG_LINES:])
