"""`python -m bench.latency`: what a long prompt does to running streams, and what preparing batches saves."""

import argparse
import os
import random
import sys
import time
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import trio

from actors.protocol import Finished, Generate, LoadOptions, ModelSpec, Sampling
from actors.runner.engine import Engine
from actors.runner.model import Model
from bench.files import model_file
from bench.load import percentile
from bench.shapes import SHAPES
from bench.vocabulary import choose
from kernels.cpu.backend import CpuBackend

N_STREAMS = 4
N_PROMPT = 32
N_BEFORE, N_AFTER = 60, 20  # tokens of each stream before the long prompt comes, and after it
N_GAP = 100
GREEDY = Sampling(temperature=0)


def main(arguments: Sequence[str]) -> int:
    """Process entry; the exit code."""
    options = _parser().parse_args(arguments)
    shape = SHAPES[options.shape]
    path = model_file(options.folder, shape, "Q4_K_M", choose((), shape.n_vocab)).path
    spec = ModelSpec(path.stem, "sha256:0", str(path), path.stat().st_size)
    sizes = LoadOptions(n_ctx=options.n_prompt + 2048, n_parallel=N_STREAMS + 1)
    model = Model.open(spec, sizes, (), {"cpu": CpuBackend(options.threads)})
    assert model.allocate()
    model.load()
    print(
        f"{path.name}, {options.threads} threads, {N_STREAMS} streams, prompt of {options.n_prompt} tokens\n"
    )
    print("| | p50 ms | p95 | p99 |\n|---|---|---|---|")
    before, during = trio.run(_disturbed, model, options.n_prompt)
    for name, gaps in (("before the prompt came", before), ("while it is processed", during)):
        cells = " | ".join(f"{1e3 * percentile(gaps, part):.1f}" for part in (0.5, 0.95, 0.99))
        print(f"| between tokens, {name} | {cells} |", flush=True)
    print("\n| batches | gap between them, us | tokens/s |\n|---|---|---|")
    for name, is_ahead in (("one after the other", False), ("prepared ahead", True)):
        gap_s, rate = trio.run(_gap, model, is_ahead)
        print(f"| {name} | {1e6 * gap_s:.0f} | {rate:.1f} |", flush=True)
    model.close()
    return 0


def _prompt(model: Model, seed: int, n: int) -> tuple[int, ...]:
    return tuple(random.Random(seed).choices(range(model.n_vocab // 2), k=n))


async def _disturbed(model: Model, n_prompt: int) -> tuple[list[float], list[float]]:
    """Seconds between tokens of all streams, before a long prompt comes and until its first token."""
    engine = Engine(model, 64, is_speculating=False)
    came_s = ended_s = 0.0
    times: list[list[float]] = [[] for _ in range(N_STREAMS)]
    n_most = N_BEFORE + n_prompt + N_AFTER

    async def stream(i: int, over: trio.Event) -> None:
        async with engine.open(Generate(_prompt(model, i, N_PROMPT), GREEDY, n_predict=n_most)) as sequence:
            while not over.is_set() and not isinstance(item := await sequence.receive(), Finished):
                engine.resume()
                times[i] += [time.perf_counter()] * len(item.tokens)

    async with trio.open_nursery() as nursery:
        await nursery.start(engine.run)
        over = trio.Event()
        for i in range(N_STREAMS):
            nursery.start_soon(stream, i, over)
        while min(map(len, times)) < N_BEFORE:  # noqa: ASYNC110  # a bench may look now and then
            await trio.sleep(0.05)
        came_s = time.perf_counter()
        async with engine.open(Generate(_prompt(model, 99, n_prompt), GREEDY, n_predict=1)) as sequence:
            await sequence.receive()  # its first token
        ended_s = time.perf_counter()
        over.set()
        await engine.stop()
    pairs = [pair for one in times for pair in pairwise(one[5:])]  # the prompts' own are left out
    before = [later - earlier for earlier, later in pairs if later < came_s]
    during = [later - earlier for earlier, later in pairs if came_s < earlier < ended_s]
    return before, during


async def _gap(model: Model, is_ahead: bool) -> tuple[float, float]:
    """Seconds between batches while all streams decode, and tokens a second."""
    engine = Engine(model, 64, is_speculating=False)
    if not is_ahead:
        engine._look_ahead = lambda batch: None  # pyright: ignore[reportPrivateUsage,reportAttributeAccessIssue,reportUnknownLambdaType]

    async def stream(i: int) -> None:
        async with engine.open(Generate(_prompt(model, i, N_PROMPT), GREEDY, n_predict=N_GAP)) as sequence:
            while not isinstance(await sequence.receive(), Finished):
                engine.resume()

    async with trio.open_nursery() as nursery:
        await nursery.start(engine.run)
        began_s = time.perf_counter()
        async with trio.open_nursery() as streams:
            for i in range(N_STREAMS):
                streams.start_soon(stream, i)
        took_s = time.perf_counter() - began_s
        await engine.stop()
    return engine.gap_s / max(1, engine.n_batches - 1), N_STREAMS * N_GAP / took_s


def _parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(prog="python -m bench.latency", description=__doc__)
    add = made.add_argument
    add("--shape", choices=list(SHAPES), default="qwen2-0.5B")
    add("--n-prompt", type=int, default=10_000)
    add("--threads", type=int, default=len(os.sched_getaffinity(0)))
    add("--folder", type=Path, default=Path("build/bench"), help="where generated files are kept")
    return made


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
