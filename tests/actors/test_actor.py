"""One actor as a process: its life from the first request to the last."""

import json
import os
import signal
import socket
from pathlib import Path

import pytest
import trio
import trio.testing

from actors.actor import CONFIG_EXIT, stay_connected
from actors.errors import ModelNotFound, PeerGone, RequestError
from actors.inherited import bind_unix, inherited_fds
from actors.lifeline import ORPHAN_EXIT
from actors.link import Link, connect
from actors.protocol import Explain, Explanation, Text, Tokenize, Tokens
from tests.actors.echo_actor import FAILS_AT_START
from tests.processes import environment, hang, read_all, started, wait_stats

ECHO = "tests.actors.echo_actor"


async def test_an_actor_alone_binds_its_socket_answers_and_unlinks_it(run_dir: Path) -> None:
    async with started(ECHO, "one", environ=environment(run_dir)) as process:
        stats = await wait_stats(run_dir, "one")
        assert (stats.name, stats.pid) == ("one", process.pid)
        process.terminate()
        assert await process.wait() == 0
    assert not (run_dir / "one.sock").exists()


async def test_the_socket_is_for_its_user_only(run_dir: Path) -> None:
    async with started(ECHO, "one", environ=environment(run_dir)):
        await wait_stats(run_dir, "one")
        assert (run_dir / "one.sock").stat().st_mode & 0o777 == 0o600


async def test_an_unknown_request_is_refused_by_name(run_dir: Path) -> None:
    async with started(ECHO, "one", environ=environment(run_dir)):
        await wait_stats(run_dir, "one")
        async with connect(f"unix:{run_dir}/one.sock", name="test") as link:
            with pytest.raises(RequestError, match="Explain is not answered here"):
                await link.ask(Explain(), Explanation)


async def test_a_fault_does_not_hurt_the_actor(run_dir: Path) -> None:
    async with started(ECHO, "one", environ=environment(run_dir)) as process:
        await wait_stats(run_dir, "one")
        async with connect(f"unix:{run_dir}/one.sock", name="test") as link:
            with pytest.raises(RequestError):
                await link.ask(Tokenize(text="refuse"), Tokens)
            assert (await link.ask(Tokenize(text="a"), Tokens)).tokens == (97,)
        assert process.returncode is None


async def test_a_bug_ends_the_actor_and_is_logged_once(run_dir: Path) -> None:
    async with started(ECHO, "one", environ=environment(run_dir)) as process:
        await wait_stats(run_dir, "one")
        async with connect(f"unix:{run_dir}/one.sock", name="test") as link:
            with pytest.raises(PeerGone):
                await link.ask(Tokenize(text="bug"), Tokens)
        assert (await read_all(process.stderr)).count("ends by a bug") == 1
        assert await process.wait() == 1


async def test_garbage_costs_the_sender_its_connection_only(run_dir: Path) -> None:
    async with started(ECHO, "one", environ=environment(run_dir)):
        first = await wait_stats(run_dir, "one")
        for garbage in (b"GET / HTTP/1.1\r\n\r\n", b"\xff" * 4, bytes(1000), os.urandom(1000)):
            stream = await trio.open_unix_socket(str(run_dir / "one.sock"))
            async with stream:
                await stream.send_all(garbage)
                await stream.send_eof()
                await read_all(stream)
        assert (await wait_stats(run_dir, "one")).pid == first.pid


async def test_sigterm_lets_what_has_begun_finish(run_dir: Path) -> None:
    async with started(ECHO, "one", environ=environment(run_dir)) as process:
        await wait_stats(run_dir, "one")
        async with (
            connect(f"unix:{run_dir}/one.sock", name="test") as link,
            link.request(Tokenize(text="wait")) as items,
        ):
            assert await items.receive() == Text(text="waiting")
            process.terminate()
            assert await items.receive() == Text(text="drained")
        assert await process.wait() == 0


async def test_the_end_of_the_lifeline_is_the_end_of_the_actor(run_dir: Path) -> None:
    reading, writing = os.pipe()
    environ = environment(run_dir, RUNTIME_LIFELINE_FD=str(reading))
    async with started(ECHO, "one", environ=environ, pass_fds=[reading]) as process:
        os.close(reading)
        await wait_stats(run_dir, "one")
        os.close(writing)
        assert await process.wait() == 0


async def test_a_hung_actor_ends_with_its_lifeline_too(run_dir: Path) -> None:
    reading, writing = os.pipe()
    environ = environment(run_dir, RUNTIME_LIFELINE_FD=str(reading))
    async with started(ECHO, "one", environ=environ, pass_fds=[reading]) as process:
        os.close(reading)
        await wait_stats(run_dir, "one")
        await hang(run_dir, "one")
        os.close(writing)
        assert await process.wait() == ORPHAN_EXIT


async def test_a_setting_that_cannot_be_used_has_an_exit_code_of_its_own(run_dir: Path) -> None:
    environ = environment(run_dir, RUNTIME_CPU_ISA=FAILS_AT_START)
    async with started(ECHO, "one", environ=environ) as process:
        assert "this cannot be; unset it" in await read_all(process.stderr)
        assert await process.wait() == CONFIG_EXIT


async def test_two_actors_do_not_share_a_name(run_dir: Path) -> None:
    async with started(ECHO, "one", environ=environment(run_dir)):
        await wait_stats(run_dir, "one")
        async with started(ECHO, "one", environ=environment(run_dir)) as second:
            assert "another process listens" in await read_all(second.stderr)
            assert await second.wait() == CONFIG_EXIT


async def test_the_socket_of_a_dead_actor_is_taken_over(run_dir: Path) -> None:
    for _ in range(2):
        async with started(ECHO, "one", environ=environment(run_dir)) as process:
            await wait_stats(run_dir, "one", lambda stats, pid=process.pid: stats.pid == pid)
            process.send_signal(signal.SIGKILL)
            await process.wait()


async def test_json_logs_are_one_object_a_line(run_dir: Path) -> None:
    environ = environment(run_dir, RUNTIME_LOG_FORMAT="json", RUNTIME_LOG_LEVEL="debug")
    async with started(ECHO, "one", environ=environ) as process:
        await wait_stats(run_dir, "one")
        process.terminate()
        lines = (await read_all(process.stderr)).splitlines()
        assert {json.loads(line)["actor"] for line in lines} == {"one"}


# --- Without a process -------------------------------------------------------------------------------------


def test_sockets_meant_for_another_process_are_not_taken() -> None:
    assert inherited_fds({"LISTEN_PID": "1", "LISTEN_FDS": "1", "LISTEN_FDNAMES": "http"}, 2) == {}


def test_inherited_sockets_are_known_by_name() -> None:
    environ = {"LISTEN_PID": "2", "LISTEN_FDS": "2", "LISTEN_FDNAMES": "gateway:http"}
    assert inherited_fds(environ, 2) == {"gateway": 3, "http": 4}


def test_a_file_in_the_way_is_not_deleted(run_dir: Path) -> None:
    (run_dir / "x.sock").write_text("precious")
    with pytest.raises(Exception, match="it is not a socket"):
        bind_unix(str(run_dir / "x.sock"))
    assert (run_dir / "x.sock").read_text() == "precious"


async def test_nobody_listening_is_peer_gone(run_dir: Path) -> None:
    with pytest.raises(PeerGone, match=r"nobody listens at .*runtime up"):
        async with connect(f"unix:{run_dir}/none.sock", name="test"):
            pass


async def test_a_path_too_long_for_a_socket_says_so(run_dir: Path) -> None:
    with pytest.raises(Exception, match="RUNTIME_RUN_DIR to a shorter path"):
        async with connect(f"unix:{run_dir}/{'x' * 200}.sock", name="test"):
            pass


async def test_staying_connected_survives_the_peers_death(run_dir: Path) -> None:
    seen: list[int] = []
    again = trio.Event()

    async def use(link: Link) -> None:
        seen.append(link.peer.pid)
        if len(seen) == 2:
            again.set()
        async with link.request(Tokenize(text="wait")) as items:
            async for _ in items:
                pass

    address = f"unix:{run_dir}/one.sock"
    async with trio.open_nursery() as nursery:
        nursery.start_soon(stay_connected, address, "test", use)
        for _ in range(2):
            async with started(ECHO, "one", environ=environment(run_dir)) as process:
                await wait_stats(run_dir, "one", lambda stats: stats.gauges["waiting"] == 1)
                process.kill()
                await process.wait()
        await again.wait()
        nursery.cancel_scope.cancel()
    assert len(set(seen)) == 2


async def test_staying_connected_lets_other_faults_up(run_dir: Path) -> None:
    async def use(_: Link) -> None:
        raise ModelNotFound("gone")

    async with started(ECHO, "one", environ=environment(run_dir)):
        with pytest.raises(ModelNotFound):
            await stay_connected(f"unix:{run_dir}/one.sock", "test", use)


def test_a_socket_of_ours_can_be_bound_where_a_dead_one_lay(run_dir: Path) -> None:
    path = str(run_dir / "x.sock")
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(path)
    bind_unix(path).close()
