"""The supervisor over throwaway actors: what dies comes back, what hangs is killed, nothing is left."""

import os
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio

from actors.link import connect
from actors.protocol import Text, Tokenize, Tokens
from actors.supervisor.keeper import describe_exit
from actors.supervisor.launch import launch, stop
from actors.supervisor.notify import Notifier
from tests.actors.echo_actor import FAILS_AT_START
from tests.actors.small_runtime import NAMES
from tests.processes import (
    CEILING_S,
    ROOT,
    environment,
    hang,
    is_alive,
    kill,
    read_all,
    read_line,
    started,
    wait_stats,
    wait_until,
)

RUNTIME = "tests.actors.small_runtime"
WHOLE_S = 5.0
"""From a death to a runtime that is whole again."""


@asynccontextmanager
async def up(run_dir: Path, **extra: str) -> AsyncGenerator[tuple[trio.Process, str], None]:
    """A runtime that has said that it is ready; and what it said.  Nothing of it may outlive the block."""
    pids: list[int] = []
    async with started(RUNTIME, environ=environment(run_dir, **extra)) as process:
        line = await read_line(process.stdout)
        try:
            yield process, line
        finally:
            pids = children_of(process.pid)
            if process.returncode is None:
                process.kill()
    with trio.fail_after(WHOLE_S):
        await wait_until(lambda: not any(is_alive(pid) for pid in pids))


def children_of(pid: int) -> list[int]:
    """The children of a process; none when it is gone."""
    try:
        text = Path(f"/proc/{pid}/task/{pid}/children").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return []
    return [int(child) for child in text.split()]


async def test_the_ready_line_says_where_and_how_fast(run_dir: Path) -> None:
    async with up(run_dir) as (_, line):
        assert "listening on http://127.0.0.1:" in line
        assert "ready in " in line


async def test_the_run_directory_and_the_sockets_are_ours_alone(run_dir: Path) -> None:
    place = run_dir / "new"
    async with up(place):
        assert place.stat().st_mode & 0o777 == 0o700
        assert [(place / f"{name}.sock").stat().st_mode & 0o777 for name in NAMES] == [0o600] * 3


async def test_sockets_are_handed_down_by_name(run_dir: Path) -> None:
    async with up(run_dir):
        got = {name: (await wait_stats(run_dir, name)).gauges["has_http"] for name in NAMES}
        assert got == {"one": 0.0, "two": 0.0, "front": 1.0}


@pytest.mark.parametrize("name", NAMES)
async def test_a_killed_actor_is_back_within_seconds(run_dir: Path, name: str) -> None:
    async with up(run_dir):
        before = await wait_stats(run_dir, name)
        kill(before.pid)
        with trio.fail_after(WHOLE_S):
            await wait_stats(run_dir, name, lambda stats: stats.pid != before.pid)


async def test_the_others_do_not_notice(run_dir: Path) -> None:
    async with up(run_dir):
        before = {name: (await wait_stats(run_dir, name)).pid for name in NAMES}
        kill(before["one"])
        await wait_stats(run_dir, "one", lambda stats: stats.pid != before["one"])
        after = {name: (await wait_stats(run_dir, name)).pid for name in NAMES}
        assert {name for name in NAMES if before[name] != after[name]} == {"one"}


async def test_connecting_to_a_dead_actor_waits_and_is_not_refused(run_dir: Path) -> None:
    async with up(run_dir):
        before = await wait_stats(run_dir, "one")
        kill(before.pid)
        await wait_until(lambda: not is_alive(before.pid))
        async with connect(f"unix:{run_dir}/one.sock", name="test") as link:
            assert (await link.ask(Tokenize(text="a"), Tokens)).tokens == (97,)


async def test_a_hung_actor_is_killed_and_started_again(run_dir: Path) -> None:
    async with up(run_dir) as (process, _):
        before = await wait_stats(run_dir, "two")
        await hang(run_dir, "two")
        await wait_stats(run_dir, "two", lambda stats: stats.pid != before.pid)
        process.terminate()
        assert "two did not answer within 2 s: killing it" in await read_all(process.stderr)


async def test_an_actor_that_dies_again_and_again_brings_the_runtime_down(run_dir: Path) -> None:
    async with up(run_dir) as (process, _):
        pid = 0
        for _n in range(5):
            pid = (await wait_stats(run_dir, "one", lambda stats, old=pid: stats.pid != old)).pid
            kill(pid)
        assert await process.wait() == 1
        assert "one was killed by SIGKILL, and died 5 times within 60 s" in await read_all(process.stderr)


async def test_an_actor_that_cannot_be_configured_stops_the_start(run_dir: Path) -> None:
    async with started(RUNTIME, environ=environment(run_dir, RUNTIME_CPU_ISA=FAILS_AT_START)) as process:
        text = await read_all(process.stderr)
        assert await process.wait() == 1
        assert "this cannot be" in text
        assert "cannot start: a setting cannot be used" in text


async def test_sigterm_finishes_what_has_begun_and_exits_0(run_dir: Path) -> None:
    async with (
        up(run_dir) as (process, _),
        connect(f"unix:{run_dir}/front.sock", name="test") as link,
        link.request(Tokenize(text="wait")) as items,
    ):
        assert await items.receive() == Text(text="waiting")
        process.terminate()
        assert await items.receive() == Text(text="drained")
        assert await process.wait() == 0
    assert list(run_dir.glob("*.sock")) == []  # noqa: ASYNC240  # a test's own files


async def test_a_second_sigterm_hurries(run_dir: Path) -> None:
    async with up(run_dir) as (process, _):
        await hang(run_dir, "one")
        process.terminate()
        process.send_signal(signal.SIGINT)
        process.send_signal(signal.SIGTERM)
        with trio.fail_after(10):
            assert await process.wait() == 0


async def test_a_killed_supervisor_leaves_no_process(run_dir: Path) -> None:
    async with up(run_dir) as (process, _):
        pids = [(await wait_stats(run_dir, name)).pid for name in NAMES]
        process.kill()
        with trio.fail_after(WHOLE_S):
            await wait_until(lambda: not any(is_alive(pid) for pid in pids))


async def test_a_runtime_starts_where_a_killed_one_lived(run_dir: Path) -> None:
    async with up(run_dir) as (process, _):
        process.kill()
        await process.wait()
        async with up(run_dir) as (_, line):
            assert "ready in" in line


async def test_a_second_runtime_in_the_same_place_is_refused(run_dir: Path) -> None:
    async with up(run_dir) as (first, _), started(RUNTIME, environ=environment(run_dir)) as second:
        text = await read_all(second.stderr)
        assert await second.wait() == 1
        assert f"another runtime (process {first.pid}) lives in {run_dir}" in text


async def test_a_port_in_use_is_named_with_the_way_out(run_dir: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        environ = environment(run_dir, OLLAMA_HOST=f"127.0.0.1:{port}")
        async with started(RUNTIME, environ=environ) as process:
            text = await read_all(process.stderr)
            assert await process.wait() == 1
    assert f"port {port} is in use" in text
    assert "(OLLAMA_HOST);" in text
    assert "set RUNTIME_HOST" in text


async def test_a_port_that_systemd_holds_is_taken_from_it(run_dir: Path) -> None:
    reading, writing = os.pipe()  # the lifeline
    with socket.create_server(("127.0.0.1", 0)) as held:
        command = (sys.executable, "-m", RUNTIME)
        environ = environment(run_dir, PYTHONPATH=str(ROOT))
        process = await launch(command, {"http": held.fileno()}, reading, environ, subprocess.PIPE)
        try:
            with trio.fail_after(CEILING_S):
                await wait_stats(run_dir, "front", lambda stats: stats.gauges["has_http"] == 1)
                assert f"127.0.0.1:{held.getsockname()[1]}" in await read_line(process.stdout)
        finally:
            assert await stop(process, 10) == 0
            os.close(reading)
            os.close(writing)


async def test_a_run_directory_of_others_is_refused(run_dir: Path) -> None:
    if os.getuid() != 0:
        pytest.skip("needs root to make a directory of another user")
    os.chown(run_dir, 12345, 12345)
    async with started(RUNTIME, environ=environment(run_dir)) as process:
        assert "is not a directory of user 0" in await read_all(process.stderr)
        assert await process.wait() == 1


async def test_sighup_replaces_the_front_and_keeps_the_rest(run_dir: Path) -> None:
    async with up(run_dir) as (process, _):
        before = {name: await wait_stats(run_dir, name) for name in NAMES}
        process.send_signal(signal.SIGHUP)
        await wait_stats(run_dir, "front", lambda stats: stats.pid != before["front"].pid)
        await wait_until(lambda: not is_alive(before["front"].pid))
        after = {name: (await wait_stats(run_dir, name)).pid for name in ("one", "two")}
        assert after == {name: before[name].pid for name in after}


async def test_sighup_with_a_bad_configuration_changes_nothing(run_dir: Path) -> None:
    file = run_dir / "c.toml"
    file.write_text("")
    async with up(run_dir, RUNTIME_CONFIG=str(file)) as (process, _):
        before = await wait_stats(run_dir, "front")
        file.write_text("prot = 1")
        process.send_signal(signal.SIGHUP)
        assert "not reloaded" in await read_line(process.stderr)
        assert (await wait_stats(run_dir, "front")).pid == before.pid


async def test_systemd_is_told_ready_alive_and_stopping(run_dir: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind("\0" + f"runtime-test-{os.getpid()}")
        manager.setblocking(False)
        told: list[str] = []

        def is_told(word: str) -> bool:
            try:
                while True:
                    told.extend(manager.recv(4096).decode().splitlines())
            except BlockingIOError:
                return word in told

        environ = {"NOTIFY_SOCKET": f"@runtime-test-{os.getpid()}", "WATCHDOG_USEC": "300000"}
        async with up(run_dir, **environ) as (process, _):
            for word in ("READY=1", "WATCHDOG=1"):
                await wait_until(lambda word=word: is_told(word))
            process.terminate()
            await wait_until(lambda: is_told("STOPPING=1"))
            assert await process.wait() == 0


def test_without_a_service_manager_nothing_is_said() -> None:
    Notifier({}).send("READY=1")
    assert Notifier({}).watchdog_s == 0


def test_a_watchdog_meant_for_another_process_is_not_ours() -> None:
    assert Notifier({"WATCHDOG_USEC": "5000000", "WATCHDOG_PID": "1"}).watchdog_s == 0
    assert Notifier({"WATCHDOG_USEC": "5000000", "WATCHDOG_PID": str(os.getpid())}).watchdog_s == 5


@pytest.mark.parametrize(
    ("code", "words"),
    [(3, "ended with exit code 3"), (-9, "was killed by SIGKILL"), (-99, "was killed by signal 99")],
)
def test_an_end_is_told_in_words(code: int, words: str) -> None:
    assert describe_exit(code) == words
