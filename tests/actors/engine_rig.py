"""An engine on a tiny real model and the reference backend."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import trio

from actors.protocol import Finished, Generate, LoadOptions, ModelSpec, Sampling
from actors.runner.engine import Engine
from actors.runner.model import Model
from kernels.reference import ReferenceBackend
from tests.golden import tiny as t

TINY = t.VARIANTS["qwen3"]
GREEDY = Sampling(temperature=0)
PROMPT = tuple(t.prompt(TINY, 40))


def write_model(path: Path) -> Path:
    """The tiny model's file."""
    t.write(path, TINY, t.weights(TINY))
    return path


def open_model(
    path: Path, n_ctx: int = 64, n_parallel: int = 2, n_batch: int = 16, n_cells: int = 0
) -> Model:
    """Allocated, on the reference backend."""
    spec = ModelSpec("tiny", "sha256:0", str(path), 0)
    options = LoadOptions(n_ctx=n_ctx, n_parallel=n_parallel, n_batch=n_batch, n_cells=n_cells)
    model = Model.open(spec, options, (), {"cpu": ReferenceBackend("cpu")})
    assert model.allocate()
    return model


@asynccontextmanager
async def engine_of(
    path: Path,
    n_ctx: int = 64,
    n_parallel: int = 2,
    n_batch: int = 16,
    max_queue: int = 8,
    n_cells: int = 0,
    *,
    is_speculating: bool = True,
) -> AsyncIterator[Engine]:
    """An engine that serves while the block runs.  To its clock nothing takes time, so drafts always pay."""
    model = open_model(path, n_ctx, n_parallel, n_batch, n_cells)
    engine = Engine(model, max_queue, is_speculating=is_speculating, clock=lambda: 0.0)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(engine.run)
        yield engine
        nursery.cancel_scope.cancel()
    model.close()


async def collect(engine: Engine, request: Generate) -> tuple[list[int], str, Finished]:
    """Tokens, text and last words of one request."""
    tokens: list[int] = []
    text = ""
    async with engine.open(request) as sequence:
        while True:
            item = await sequence.receive()
            engine.resume()
            if isinstance(item, Finished):
                return tokens, text, item
            tokens += item.tokens
            text += item.text
