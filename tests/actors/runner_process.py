"""A runner as a process of its own, driven over its socket."""

import os
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import trio

from actors.errors import PeerGone
from actors.link import Link, connect
from actors.protocol import (
    Alloc,
    Chunk,
    Close,
    Commit,
    Finished,
    Generate,
    LoadProgress,
    MemoryReport,
)

CEILING_S = 60


@asynccontextmanager
async def runner(run_dir: Path, **settings: str) -> AsyncIterator[Link]:
    """A link to a fresh runner process, which is ended and reaped afterwards; settings are its variables."""
    environ = os.environ | {"RUNTIME_RUN_DIR": str(run_dir)} | settings
    address = f"unix:{run_dir}/runner-t.sock"
    command = [sys.executable, "-m", "actors.runner", "--id", "t"]
    async with trio.open_nursery() as nursery:
        start = partial(trio.run_process, command, env=environ, check=False)
        process: trio.Process = await nursery.start(start)
        with trio.fail_after(CEILING_S):
            await listening(process, address)
            async with connect(address, name="test") as link:
                yield link
        process.terminate()


async def listening(process: trio.Process, address: str) -> None:
    """Until it accepts: its socket has a name before it listens."""
    while True:
        try:
            async with connect(address, name="test"):
                return
        except PeerGone:
            assert process.returncode is None, "the runner ended before it listened"
            await trio.sleep(0.01)


async def told(link: Link, request: Alloc | Commit) -> tuple[list[LoadProgress], MemoryReport]:
    """The progress of a part of a load, and the report at its end."""
    progress: list[LoadProgress] = []
    async with link.request(request) as stream:
        async for item in stream:
            if isinstance(item, MemoryReport):
                return progress, item
            assert isinstance(item, LoadProgress)
            progress.append(item)
    raise AssertionError("a load ends with a report")


async def report_of(link: Link, request: Alloc | Commit) -> MemoryReport:
    return (await told(link, request))[1]


async def generate(link: Link, request: Generate) -> tuple[str, Finished]:
    text = ""
    async with link.request(request) as stream:
        async for item in stream:
            if isinstance(item, Finished):
                return text, item
            assert isinstance(item, Chunk)
            text += item.text
    raise AssertionError("an answer ends with Finished")


async def close(link: Link) -> None:
    async with link.request(Close()) as stream:
        async for _ in stream:
            raise AssertionError("closing answers nothing")
