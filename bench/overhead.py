"""Time outside the kernels: the engine driven in this process, with a clock at the end of every step."""

import itertools
import statistics
import time
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

import trio

from actors.protocol import Chunk, Finished, Generate, Sampling
from actors.runner.engine import Engine
from bench.case import OUTSIDE_S, OUTSIDE_SHARE, SERVED_TOKENS_PER_S, Case, Metric
from bench.files import ModelFile
from bench.opening import opened
from bench.served import served_tokens_per_s
from kernels.cpu.worker import CpuWorker, Drawn

N_PROMPT = 8
DEADLINE_S = 600.0


@dataclass(slots=True)
class Clock:
    """When each step that drew n_draws tokens had ended, and how long had been computed until then."""

    n_draws: int
    ends: list[tuple[float, float]] = field(default_factory=list[tuple[float, float]])

    def outside_s(self) -> float:
        """What a step takes beyond its computing, in the median: others run here too."""
        return statistics.median((b[0] - a[0]) - (b[1] - a[1]) for a, b in itertools.pairwise(self.ends))

    def outside_share(self) -> float:
        """Of a step's time."""
        return self.outside_s() / statistics.median(b[0] - a[0] for a, b in itertools.pairwise(self.ends))


@contextmanager
def step_clock(n_draws: int) -> Generator[Clock]:
    """Every step of the native worker with so many draws is noted while the block runs."""
    clock = Clock(n_draws)
    take = CpuWorker.take

    def noted(self: CpuWorker) -> list[Drawn]:
        drawn = take(self)
        if len(drawn) == clock.n_draws:
            clock.ends.append((time.perf_counter(), self.compute_s))
        return drawn

    CpuWorker.take = noted
    try:
        yield clock
    finally:
        CpuWorker.take = take


def engine_overhead(case: Case, file: ModelFile, n_threads: int, isa: str) -> Mapping[Metric, float]:
    """The engine's own part of a step, and what comes out of a runner's socket with all of it."""
    n_ctx = N_PROMPT + case.n_tokens
    with opened(file, n_ctx, case.n_seq, n_threads, isa) as model, step_clock(case.n_seq) as clock:
        engine = Engine(model, case.n_seq, is_speculating=False)  # a step of so many draws and no more
        trio.run(_generate, engine, requests(case.n_seq, case.n_tokens))
    if len(clock.ends) < 2:
        raise ArithmeticError(f"{case.title}: only {len(clock.ends)} batches of {case.n_seq} rows ran")
    return {
        OUTSIDE_S: clock.outside_s(),
        OUTSIDE_SHARE: clock.outside_share(),
        SERVED_TOKENS_PER_S: served_tokens_per_s(
            file, requests(case.n_seq, case.n_tokens), n_ctx, n_threads, isa
        ),
    }


def requests(n_seq: int, n_predict: int) -> list[Generate]:
    """Prompts that share no prefix, sampled as a client's are that asks for nothing special."""
    return [
        Generate(tuple(range(i + 1, i + 1 + N_PROMPT)), Sampling(seed=i), n_predict=n_predict)
        for i in range(n_seq)
    ]


async def _generate(engine: Engine, wanted: list[Generate]) -> None:
    async def read(request: Generate) -> None:
        async with engine.open(request) as sequence:
            item: Chunk | Finished | None = None
            while not isinstance(item, Finished):
                item = await sequence.receive()
                engine.resume()

    with trio.fail_after(DEADLINE_S):
        async with trio.open_nursery() as nursery:
            async with trio.open_nursery() as readers_nursery:
                for request in wanted:
                    readers_nursery.start_soon(read, request)
                # together from the first batch on: a prompt beside running streams takes its time
                while engine.gauges()["sequences_queued"] < len(wanted):  # noqa: ASYNC110  # nothing tells
                    await trio.sleep(0.001)
                await nursery.start(engine.run)
            await engine.stop()
