"""The runner host with real processes: spawn, stop, deaths, last words, inspection."""

import os
import signal
import subprocess
import sys
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio

from actors.config import Config
from actors.errors import ModelError, PeerGone, RequestError, RuntimeFault
from actors.inherited import make_run_dir
from actors.link import Link, connect
from actors.protocol import (
    GetStats,
    Inspect,
    ModelInfo,
    RunnerExited,
    RunnerStarted,
    SpawnRunner,
    Stats,
    StopRunner,
    WatchRunners,
)
from actors.runner.host import child as child_module
from actors.runner.host.service import RunnerHost
from tests.actors.rig import FAKE_RUNNER, Running, until

CHATTY = """
import os, sys
for n in range(4000):
    sys.stderr.write(f"line {n} {'x' * 100}\\n")
sys.stdout.write("the very end\\n")
"""


@asynccontextmanager
async def host(run_dir: Path, command: tuple[str, ...] = FAKE_RUNNER) -> AsyncGenerator[Link, None]:
    """A link to a runner host in this process, ended with the block."""
    config = Config(run_dir=str(run_dir / "run"))
    make_run_dir(config.run_dir)
    with trio.fail_after(30):
        async with trio.open_nursery() as nursery:
            running = Running()
            await nursery.start(running.run, "host", RunnerHost(config, command), config)
            async with connect(config.socket_address("host"), name="test") as link:
                yield link
            await running.stop()


async def test_a_spawned_runner_answers_at_its_address(run_dir: Path) -> None:
    async with host(run_dir) as link:
        started = await link.ask(SpawnRunner("one"), RunnerStarted)
        async with connect(started.address, name="test") as runner:
            assert runner.peer.name == "runner-one"
            assert runner.peer.pid == started.pid


async def test_a_stopped_runner_is_reaped_and_its_socket_removed(run_dir: Path) -> None:
    async with host(run_dir) as link:
        started = await link.ask(SpawnRunner("one"), RunnerStarted)
        exited = await link.ask(StopRunner("one"), RunnerExited)
        assert (exited.runner_id, exited.pid, exited.exit_code) == ("one", started.pid, 0)
        assert not os.path.exists(started.address.removeprefix("unix:"))  # noqa: ASYNC240  # one call on tmpfs
        with pytest.raises(ProcessLookupError):
            os.kill(started.pid, 0)


async def test_stopping_twice_tells_the_same_end(run_dir: Path) -> None:
    async with host(run_dir) as link:
        await link.ask(SpawnRunner("one"), RunnerStarted)
        first = await link.ask(StopRunner("one"), RunnerExited)
        assert await link.ask(StopRunner("one"), RunnerExited) == first


async def test_a_watcher_hears_who_lives_and_who_dies(run_dir: Path) -> None:
    async with host(run_dir) as link:
        started = await link.ask(SpawnRunner("one"), RunnerStarted)
        async with link.request(WatchRunners()) as events:
            assert await events.receive() == started
            os.kill(started.pid, signal.SIGKILL)
            exited = await events.receive()
    assert isinstance(exited, RunnerExited)
    assert (exited.runner_id, exited.exit_code) == ("one", -signal.SIGKILL)


async def test_a_runner_that_dies_while_it_starts_is_reported_with_its_last_words(run_dir: Path) -> None:
    command = (sys.executable, "-c", "import sys; sys.exit('no kernels for this machine')")
    async with host(run_dir, command) as link:
        with pytest.raises(PeerGone, match=r"ended with status 1 .*no kernels for this machine"):
            await link.ask(SpawnRunner("one"), RunnerStarted)


async def test_a_command_that_cannot_run_is_an_error_not_a_crash(run_dir: Path) -> None:
    async with host(run_dir, ("/nonexistent/runner",)) as link:
        with pytest.raises(RuntimeFault, match="cannot be started"):
            await link.ask(SpawnRunner("one"), RunnerStarted)
        with pytest.raises(RequestError, match="there is no runner one"):
            await link.ask(StopRunner("one"), RunnerExited)


async def test_of_a_chatty_runner_the_end_is_kept(run_dir: Path) -> None:
    async with host(run_dir, (sys.executable, "-c", CHATTY)) as link:
        with pytest.raises(PeerGone):
            await link.ask(SpawnRunner("one"), RunnerStarted)
        words = (await link.ask(StopRunner("one"), RunnerExited)).last_words
    assert len(words) <= child_module.LAST_WORDS_BYTES
    assert "the very end" in words


async def test_a_spawn_that_nobody_waits_for_leaves_no_runner(run_dir: Path) -> None:
    async with host(run_dir) as link:
        async with link.request(SpawnRunner("one")):
            await until_gauge(link, "runners_starting", 1)
        await until_gauge(link, "runners_starting", 0)
        assert (await link.ask(GetStats(), Stats)).gauges["runners"] == 0


@pytest.mark.parametrize("runner_id", ["", "../up", "a/b", "x" * 60, "-x"])
async def test_an_id_that_cannot_be_a_socket_is_refused(run_dir: Path, runner_id: str) -> None:
    async with host(run_dir) as link:
        with pytest.raises(RequestError, match="cannot be a runner id"):
            await link.ask(SpawnRunner(runner_id), RunnerStarted)


async def test_an_id_that_lives_is_refused(run_dir: Path) -> None:
    async with host(run_dir) as link:
        await link.ask(SpawnRunner("one"), RunnerStarted)
        with pytest.raises(RequestError, match="lives already"):
            await link.ask(SpawnRunner("one"), RunnerStarted)


async def test_sockets_of_a_host_before_are_removed(run_dir: Path) -> None:
    sockets = run_dir / "run"
    make_run_dir(str(sockets))
    (sockets / "runner-old.sock").touch()
    async with host(run_dir):
        assert not (sockets / "runner-old.sock").exists()


async def test_all_runners_end_with_their_host(run_dir: Path) -> None:
    async with host(run_dir) as link:
        pids = [(await link.ask(SpawnRunner(name), RunnerStarted)).pid for name in ("one", "two")]
    for pid in pids:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


async def test_runners_of_a_killed_host_end_by_their_lifeline(run_dir: Path) -> None:
    """The host is a process of its own here, so that SIGKILL leaves it no time for anything."""
    sockets = run_dir / "run"
    make_run_dir(str(sockets))
    program = (
        "import sys; from actors.actor import main; from actors.runner.host.service import RunnerHost;"
        f"sys.exit(main('host', lambda config: RunnerHost(config, {FAKE_RUNNER!r})))"
    )
    environ = os.environ | {"RUNTIME_RUN_DIR": str(sockets)}
    with trio.fail_after(30):
        command = [sys.executable, "-c", program]
        process = await trio.lowlevel.open_process(command, stdin=subprocess.DEVNULL, env=environ)
        async with connected(f"unix:{sockets}/host.sock") as link:
            started = await link.ask(SpawnRunner("one"), RunnerStarted)
            async with connect(started.address, name="test") as runner:
                process.kill()
                await process.wait()
                with pytest.raises(PeerGone):
                    async with runner.request(WatchRunners()) as silence:
                        await silence.receive()


async def test_inspecting_gives_what_the_reader_read(run_dir: Path) -> None:
    path = run_dir / "model"
    path.write_text("{}")
    async with host(run_dir) as link:
        assert (await link.ask(Inspect(str(path)), ModelInfo)).architecture == "fake"


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ('{"error": "bad magic"}', "^bad magic$"),
        ('{"crash": "Fatal Python error: Bus error"}', "status 7: Fatal Python error: Bus error"),
        ('{"flood": 1}', "more than 48 MiB"),
    ],
)
async def test_inspecting_what_breaks_the_reader_is_an_error(run_dir: Path, content: str, said: str) -> None:
    path = run_dir / "model"
    path.write_text(content)
    async with host(run_dir) as link:
        with pytest.raises(ModelError, match=said):
            await link.ask(Inspect(str(path)), ModelInfo)


@asynccontextmanager
async def connected(address: str) -> AsyncGenerator[Link, None]:
    """A link to an actor that is coming up."""
    while True:
        try:
            async with connect(address, name="test"):
                break
        except PeerGone:
            await trio.sleep(0.01)
    async with connect(address, name="test") as link:
        yield link


async def until_gauge(link: Link, gauge: str, value: float) -> None:
    """Wait for a gauge of the host."""

    async def holds() -> bool:
        return (await link.ask(GetStats(), Stats)).gauges[gauge] == value

    await until(holds)


@pytest.mark.parametrize("path", ["", "model.gguf", "--help"])
async def test_inspecting_wants_an_absolute_path(run_dir: Path, path: str) -> None:
    async with host(run_dir) as link:
        with pytest.raises(RequestError, match="is not an absolute path"):
            await link.ask(Inspect(path), ModelInfo)
