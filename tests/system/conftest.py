"""The real runtime, in a temporary place on a free port, for tests that drive it as users do."""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
import trio

from actors.link import Link, connect
from actors.protocol import GetStats, Stats

UP_S = 60.0  # ceilings for broken builds on a busy machine, not waits
DOWN_S = 40.0
LISTENING = "listening on "
MODEL = "handbook"
QUESTION = [{"role": "user", "content": "What are you?"}]


@dataclass
class Runtime:
    """A running runtime.  `http` talks to it without any client library's help."""

    process: subprocess.Popen[str]
    url: str
    home: Path
    http: httpx.Client

    @property
    def run_dir(self) -> Path:
        return self.home / "run"

    @property
    def models_dir(self) -> Path:
        return self.home / "models"

    def log(self) -> str:
        """What its actors have written so far."""
        return (self.home / "log").read_text()

    def chat(self, **options: Any) -> dict[str, Any]:  # noqa: ANN401  # JSON
        """One greedy answer, not streamed."""
        options = {"temperature": 0, **options}
        body = {"model": MODEL, "messages": QUESTION, "stream": False, "options": options}
        response = self.http.post("/api/chat", json=body)
        assert response.status_code == 200, response.text
        return response.json()

    def ask_actor(self, actor: str, ask: Callable[[Link], Any]) -> Any:  # noqa: ANN401  # the answer's type
        """Run `ask(link)` over the actor's own socket."""

        async def talk() -> Any:  # noqa: ANN401  # as above
            with trio.fail_after(10):
                async with connect(f"unix:{self.run_dir}/{actor}.sock", name="test") as link:
                    return await ask(link)

        return trio.run(talk)

    def stats(self, actor: str) -> Stats:
        """The actor's health and counters."""
        return self.ask_actor(actor, lambda link: link.ask(GetStats(), Stats))

    def pid(self, actor: str) -> int:
        """The process that answers at the actor's socket."""
        return self.stats(actor).pid

    def runner_pids(self) -> list[int]:
        """Processes of runners of this runtime."""
        return [
            int(folder.name)
            for folder in Path("/proc").iterdir()
            if folder.name.isdigit() and self._is_runner(folder)
        ]

    def _is_runner(self, folder: Path) -> bool:
        try:
            command = (folder / "cmdline").read_bytes().split(b"\0")
            environ = (folder / "environ").read_bytes()
        except OSError:
            return False  # it ended meanwhile
        return b"--id" in command and b"actors.runner" in command and bytes(self.run_dir) in environ

    def wait_until(self, is_so: Callable[[], bool], within_s: float) -> float:
        """Wait for a condition; seconds it took.  AssertionError with the log's end if it does not come."""
        began_s = time.monotonic()
        while True:
            try:
                if is_so():
                    return time.monotonic() - began_s
            except Exception as exc:
                if time.monotonic() - began_s > within_s:
                    raise AssertionError(
                        f"not within {within_s} s; the log ends: {self.log()[-2000:]}"
                    ) from exc
            assert time.monotonic() - began_s < within_s, f"not within {within_s} s: {self.log()[-2000:]}"
            time.sleep(0.05)


@contextmanager
def started(**settings: str) -> Iterator[Runtime]:
    """Start `runtime up` with these environment variables; stop it as systemd would."""
    home = Path(tempfile.mkdtemp(prefix="rt-", dir="/tmp"))
    environ = {key: value for key, value in os.environ.items() if not key.startswith(("OLLAMA_", "RUNTIME_"))}
    environ |= {
        "OLLAMA_HOST": "127.0.0.1:0",
        "OLLAMA_MODELS": str(home / "models"),
        "RUNTIME_RUN_DIR": str(home / "run"),
        "XDG_CONFIG_HOME": str(home),
        **settings,
    }
    with (home / "log").open("w") as log:
        command = [sys.executable, "-m", "actors.supervisor"]
        process = subprocess.Popen(command, env=environ, stdout=subprocess.PIPE, stderr=log, text=True)
    try:
        url = _ready_url(process, home / "log")
        with httpx.Client(base_url=url, timeout=UP_S, trust_env=False, verify=False) as http:
            yield Runtime(process, url, home, http)
    finally:
        _stop(process)
        shutil.rmtree(home, ignore_errors=True)


def _ready_url(process: subprocess.Popen[str], log: Path) -> str:
    assert process.stdout is not None
    for line in process.stdout:  # ends when the process does
        if LISTENING in line:
            return line.partition(LISTENING)[2].split()[0]
    pytest.fail(f"the runtime ended with {process.wait(DOWN_S)}: {log.read_text()[-3000:]}")


def _stop(process: subprocess.Popen[str]) -> None:
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(DOWN_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
        raise
    finally:
        assert process.stdout is not None
        process.stdout.close()


@pytest.fixture(scope="session")
def runtime() -> Iterator[Runtime]:
    """One runtime for all tests that leave it as it is."""
    with started() as made:
        yield made


@pytest.fixture
def own_runtime() -> Iterator[Runtime]:
    """A runtime that the test may damage."""
    with started() as made:
        yield made
