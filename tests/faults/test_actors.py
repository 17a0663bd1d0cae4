"""Faults of actors and of their peers, with the real runtime: who x how, and that it is whole again."""

import struct
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import pytest
import trio

from actors.connection import OUTBOX_MAX
from actors.protocol import PROTOCOL_VERSION, Fail, Hello, Open, Tokenize
from actors.supervisor.table import runtime_table
from actors.wire import FRAME_MAX_BYTES, FrameDecoder, encode_frame
from tests.processes import environment, is_alive, kill, read_line, started, wait_stats, wait_until

NAMES = [entry.name for entry in runtime_table()]
WHOLE_S = 5.0
HELLO = encode_frame(Hello(name="fault", pid=1, version=PROTOCOL_VERSION, build="test"))


@asynccontextmanager
async def up(run_dir: Path) -> AsyncGenerator[tuple[trio.Process, str], None]:
    """The real runtime, and its URL."""
    async with started("actors.supervisor", environ=environment(run_dir)) as process:
        line = await read_line(process.stdout)
        yield process, line.partition("listening on ")[2].split()[0]
        process.terminate()
        await process.wait()


async def pids_of(run_dir: Path) -> dict[str, int]:
    return {name: (await wait_stats(run_dir, name)).pid for name in NAMES}


@pytest.mark.parametrize("name", NAMES)
async def test_the_runtime_is_whole_again_after_a_kill(run_dir: Path, name: str) -> None:
    async with up(run_dir) as (_, url):
        before = await pids_of(run_dir)
        kill(before[name])
        with trio.fail_after(WHOLE_S):
            await wait_stats(run_dir, name, lambda stats: stats.pid != before[name])
            after = await pids_of(run_dir)
        assert {other for other in NAMES if after[other] != before[other]} == {name}
        async with httpx.AsyncClient() as client:
            assert (await client.get(f"{url}/api/version", timeout=WHOLE_S)).status_code == 200


async def test_no_client_is_refused_while_the_gateway_is_dead(run_dir: Path) -> None:
    async with up(run_dir) as (_, url), httpx.AsyncClient() as client:
        gateway = await wait_stats(run_dir, "gateway")
        kill(gateway.pid)
        await wait_until(lambda: not is_alive(gateway.pid))
        assert (await client.get(f"{url}/api/version", timeout=WHOLE_S)).status_code == 200


async def test_no_process_outlives_a_killed_supervisor(run_dir: Path) -> None:
    async with up(run_dir) as (process, _):
        pids = await pids_of(run_dir)
        process.kill()
        with trio.fail_after(WHOLE_S):
            await wait_until(lambda: not any(is_alive(pid) for pid in pids.values()))


@pytest.mark.parametrize("name", NAMES)
async def test_a_frame_too_large_costs_the_sender_its_connection_only(run_dir: Path, name: str) -> None:
    async with up(run_dir):
        before = await wait_stats(run_dir, name)
        async with await trio.open_unix_socket(str(run_dir / f"{name}.sock")) as stream:
            await stream.send_all(HELLO + struct.pack("<I", FRAME_MAX_BYTES + 1))
            goodbye = await frames(stream)
        assert isinstance(goodbye[-1], Fail)
        assert f"{FRAME_MAX_BYTES} is the most" in goodbye[-1].error.message
        assert (await wait_stats(run_dir, name)).pid == before.pid


async def test_half_a_frame_and_silence_holds_up_nobody(run_dir: Path) -> None:
    async with (
        up(run_dir),
        await trio.open_unix_socket(str(run_dir / "scheduler.sock")) as stream,
    ):
        await stream.send_all(HELLO + struct.pack("<I", 100) + b"half")
        with trio.fail_after(WHOLE_S):
            await pids_of(run_dir)


async def test_a_reader_that_stops_does_not_make_its_peer_grow(run_dir: Path) -> None:
    opening = Open(stream=1, credit=1 << 20, body=Tokenize(text="flood"))
    async with started("tests.actors.echo_actor", "one", environ=environment(run_dir)):
        await wait_stats(run_dir, "one")
        async with await trio.open_unix_socket(str(run_dir / "one.sock")) as stream:
            await stream.send_all(HELLO + encode_frame(opening))
            await wait_stats(run_dir, "one", lambda stats: stats.gauges["flooded"] >= OUTBOX_MAX)
            flooded = [(await wait_stats(run_dir, "one")).gauges["flooded"] for _ in range(30)]
        # the outbox, one batch that is being written, and what the kernel holds
        assert flooded[-1] <= OUTBOX_MAX + 32


async def frames(stream: trio.SocketStream) -> list[object]:
    """All that the peer says until it hangs up."""
    decoder = FrameDecoder()
    found: list[object] = []
    async for data in stream:
        decoder.feed(data)
        while (frame := decoder.next_frame()) is not None:
            found.append(frame)
    return found
