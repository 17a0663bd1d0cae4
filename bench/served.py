"""Ours as a client meets it: a runner process of its own, driven over its socket."""

import compileall
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager

import trio

import actors
import kernels
from actors.errors import RuntimeFault
from actors.link import Link, link_over
from actors.protocol import (
    Alloc,
    Chunk,
    Commit,
    Finished,
    Generate,
    LoadOptions,
    MemoryReport,
    ModelSpec,
    Sampling,
)
from bench.case import (
    ANON_BYTES,
    BEYOND_BYTES,
    FIRST_TOKEN_S,
    SECOND_PSS_BYTES,
    SECOND_RSS_BYTES,
    Metric,
)
from bench.files import ModelFile
from bench.process_memory import anon_bytes, pss_bytes, rss_bytes

DEADLINE_S = 600.0
POLL_S = 0.001
START_N_CTX = 4096
PROMPT = "The quick brown fox jumps over the lazy dog."


def start_and_memory(file: ModelFile, n_threads: int, isa: str) -> Mapping[Metric, float]:
    """From spawn to the first token, what the runner then holds, and what a second one adds."""
    _compile()
    return trio.run(_start_and_memory, file, n_threads, isa)


def served_tokens_per_s(
    file: ModelFile, requests: Sequence[Generate], n_ctx: int, n_threads: int, isa: str
) -> float:
    """Tokens a second that all requests together get out of a runner's socket while they all decode."""
    return trio.run(_served, file, requests, n_ctx, n_threads, isa)


def _compile() -> None:
    """Have the bytecode that an installed package comes with, also where Python is told to write none."""
    for package in (actors, kernels):
        for folder in package.__path__:
            compileall.compile_dir(folder, quiet=2)


async def _start_and_memory(file: ModelFile, n_threads: int, isa: str) -> Mapping[Metric, float]:
    options = LoadOptions(n_ctx=START_N_CTX, n_thread=n_threads, n_parallel=1)
    with trio.fail_after(DEADLINE_S):
        async with AsyncExitStack() as stack:
            began_s = time.perf_counter()
            pid, link = await stack.enter_async_context(_runner("first", isa))
            report = await _load(link, file, options)
            await _first_token(link)
            first_token_s = time.perf_counter() - began_s
            second_pid, second = await stack.enter_async_context(_runner("second", isa))
            await _load(second, file, options)
            await _first_token(second)
            planned = sum(
                d.graph.measured_bytes + sum(c.measured_bytes for c in d.cache) for d in report.devices
            )
            return {
                FIRST_TOKEN_S: first_token_s,
                ANON_BYTES: anon_bytes(pid),
                BEYOND_BYTES: max(1, anon_bytes(pid) - planned),
                SECOND_PSS_BYTES: pss_bytes(second_pid),
                SECOND_RSS_BYTES: rss_bytes(second_pid),
            }
    raise AssertionError("fail_after raises, or the block returns")


async def _served(
    file: ModelFile, requests: Sequence[Generate], n_ctx: int, n_threads: int, isa: str
) -> float:
    options = LoadOptions(n_ctx=n_ctx, n_thread=n_threads, n_parallel=len(requests))
    arrivals: list[list[float]] = []
    with trio.fail_after(DEADLINE_S):
        async with _runner("served", isa) as (_, link):
            await _load(link, file, options)
            async with trio.open_nursery() as nursery:
                for request in requests:
                    nursery.start_soon(_arrivals, link, request, arrivals)
    # while all decode: from the last first token to the first last one
    begin_s, end_s = max(times[0] for times in arrivals), min(times[-1] for times in arrivals)
    if end_s <= begin_s:  # so few tokens that some had ended before others began: the whole time counts
        begin_s, end_s = min(times[0] for times in arrivals), max(times[-1] for times in arrivals)
    n_tokens = sum(begin_s < at_s <= end_s for times in arrivals for at_s in times)
    return n_tokens / (end_s - begin_s)


async def _arrivals(link: Link, request: Generate, arrivals: list[list[float]]) -> None:
    """Append when each token of the answer arrived."""
    times: list[float] = []
    async with link.request(request) as stream:
        async for item in stream:
            if isinstance(item, Chunk):
                times += [time.perf_counter()] * len(item.tokens)
            if isinstance(item, Finished):
                break
    arrivals.append(times)


@asynccontextmanager
async def _runner(runner_id: str, isa: str) -> AsyncGenerator[tuple[int, Link]]:
    """A runner's pid and a link to it, as soon as it listens; killed and reaped afterwards."""
    with tempfile.TemporaryDirectory(prefix="bench-") as run_dir:
        environ = {key: value for key, value in os.environ.items() if not key.startswith("RUNTIME_")}
        environ |= {"RUNTIME_RUN_DIR": run_dir, "XDG_CONFIG_HOME": f"{run_dir}/no-config"}
        if isa:
            environ["RUNTIME_CPU_ISA"] = isa
        command = [sys.executable, "-m", "actors.runner", "--id", runner_id]
        process = await trio.lowlevel.open_process(command, env=environ, stderr=subprocess.DEVNULL)
        try:
            async with _connected(process, trio.Path(run_dir) / f"runner-{runner_id}.sock") as link:
                yield process.pid, link
        finally:
            process.kill()
            with trio.CancelScope(shield=True):  # it is dead: a moment
                await process.wait()


@asynccontextmanager
async def _connected(process: trio.Process, socket: trio.Path) -> AsyncGenerator[Link]:
    async with await _stream(process, socket) as stream, link_over(stream, name="bench") as link:
        yield link


async def _stream(process: trio.Process, socket: trio.Path) -> trio.SocketStream:
    while True:
        try:
            return await trio.open_unix_socket(socket)
        except (FileNotFoundError, ConnectionRefusedError):  # not made yet, or made and not listening yet
            if process.poll() is not None:
                message = f"the runner ended with code {process.returncode} before it listened"
                raise RuntimeError(message) from None
            await trio.sleep(POLL_S)


async def _load(link: Link, file: ModelFile, options: LoadOptions) -> MemoryReport:
    spec = ModelSpec(file.path.stem, "sha256:0", str(file.path), file.n_bytes)
    report = await _report(link, Alloc(spec, options, ()))
    if report.failure:
        raise RuntimeError(f"the runner refused {file.path.name}: {report.failure}")
    return await _report(link, Commit())


async def _report(link: Link, request: Alloc | Commit) -> MemoryReport:
    """What a part of a load ends with, after its progress."""
    async with link.request(request) as stream:
        async for item in stream:
            if isinstance(item, MemoryReport):
                return item
    raise RuntimeFault(f"{type(request).__name__} ended without a report", where="runner")


async def _first_token(link: Link) -> None:
    async with link.request(Generate(PROMPT, Sampling(temperature=0), n_predict=1)) as stream:
        async for item in stream:
            if isinstance(item, Chunk | Finished):
                return
