"""Starting the runtime: in this process's place (`up`), or beside it while a chat lasts (`run --up`)."""

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Generator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from pathlib import Path
from typing import IO

import click
from rich.console import Console

from actors.cli.context import Cli
from actors.errors import PeerGone
from actors.settings import SETTINGS, bad_value, clean

READY_S = 60.0  # processes start in about a second; a cold disk or a busy machine takes many
LOOK_EVERY_S = 0.1
STOP_S = 50.0  # more than the supervisor's own ladder takes: twice 20 s of draining and a little
LOG_LINES = 15

COMMAND = (sys.executable, "-m", "actors.supervisor")


def setting_flags(command: Callable[..., None]) -> Callable[..., None]:
    """A flag for every setting; its help names the variables that set it, too."""
    for setting in reversed(SETTINGS):
        text = f"{setting.meaning} [{setting.default}]  ({setting.names})"
        command = click.option(setting.flag, setting.key, metavar=setting.metavar, help=text)(command)
    return command


@click.command()
@click.option(
    "--config",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="A TOML file with settings; else actor-runtime/config.toml in ~/.config, if there is one."
    "  (RUNTIME_CONFIG)",
)
@setting_flags
def up(config: Path | None, **flags: str | None) -> None:
    """Start the runtime, and keep it running until Ctrl-C.

    Settings come from a TOML file, from environment variables and from flags. A flag wins over a RUNTIME_
    variable, that over Ollama's variable, and that over the file. A value that cannot be used stops the
    start. Below, each flag is followed by its default and its variables; a key of the file is a flag's name
    with _ for -, and with _s behind spans of time and _bytes behind sizes.
    """
    if config is not None:
        os.environ["RUNTIME_CONFIG"] = str(config)
    os.environ.update(flag_variables(flags))
    # the supervisor takes our place: its signals and its standard error are the user's own
    sys.stdout.flush()
    sys.stderr.flush()
    os.execv(COMMAND[0], COMMAND)


def flag_variables(flags: Mapping[str, str | None]) -> dict[str, str]:
    """The variables that hand flags (by key) on to the actors; ConfigError names a flag that is wrong."""
    variables: dict[str, str] = {}
    for setting in SETTINGS:
        text = flags.get(setting.key)
        if text is None:
            continue
        if not (text := clean(text)):
            raise bad_value(setting.flag, "", "expected a value")
        setting.parse(setting.flag, text)
        variables[setting.variable] = text
    return variables


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
