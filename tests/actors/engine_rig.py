"""An engine on a tiny real model and the reference backend."""

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from unittest.mock import patch

import trio

from actors import pool
from actors.protocol import Chunk, Finished, Generate, LoadOptions, ModelSpec, Sampling
from actors.runner.engine import Engine
from actors.runner.forward import Drawn, Part
from actors.runner.model import Model
from actors.runner.sequence import Sequence as EngineSequence
from kernels.executable import Executable
from kernels.ops.op import Array
from kernels.reference import ReferenceBackend
from tests.golden import tiny as t

TINY = t.VARIANTS["qwen3"]
GREEDY = Sampling(temperature=0)
PROMPT = tuple(t.prompt(TINY, 40))


def write_model(path: Path, tiny: t.Tiny = TINY) -> Path:
    """The tiny model's file."""
    t.write(path, tiny, t.weights(tiny))
    return path


def open_model(
    path: Path, n_ctx: int = 64, n_parallel: int = 2, n_batch: int = 16, n_each: int = pool.N_EACH
) -> Model:
    """Allocated, on the reference backend.  n_each: cells for each sequence, of which the pool is made."""
    spec = ModelSpec("tiny", "sha256:0", str(path), 0)
    options = LoadOptions(n_ctx=n_ctx, n_parallel=n_parallel, n_batch=n_batch)
    with patch.object(pool, "N_EACH", n_each):
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
    n_each: int = pool.N_EACH,
    *,
    is_speculating: bool = True,
) -> AsyncIterator[Engine]:
    """An engine that serves while the block runs.  To its clock nothing takes time, so drafts always pay."""
    model = open_model(path, n_ctx, n_parallel, n_batch, n_each)
    engine = Engine(model, max_queue, is_speculating=is_speculating, clock=lambda: 0.0)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(engine.run)
        yield engine
        nursery.cancel_scope.cancel()
    model.close()


async def collect(engine: Engine, request: Generate) -> tuple[list[int], str, Finished]:
    """Tokens, text and last words of one request."""
    async with engine.open(request) as sequence:
        chunks, done = await receive(engine, sequence)
    return tokens_of(chunks), "".join(chunk.text for chunk in chunks), done


def tokens_of(chunks: Sequence[Chunk]) -> list[int]:
    """The tokens of all chunks in order."""
    return [token for chunk in chunks for token in chunk.tokens]


async def receive(engine: Engine, sequence: EngineSequence) -> tuple[list[Chunk], Finished]:
    """Everything that is left of an open sequence."""
    chunks: list[Chunk] = []
    while not isinstance(item := await sequence.receive(), Finished):
        engine.resume()
        chunks.append(item)
    return chunks, item


Step = Callable[[], Awaitable[list[Drawn]]]


def around_steps(
    engine: Engine, around: Callable[[Step, Mapping[str, Array], Sequence[Part]], Awaitable[list[Drawn]]]
) -> None:
    """Have `around` take the engine's steps from now on; it is given the step, its inputs and its parts."""
    step = engine._device.step  # pyright: ignore[reportPrivateUsage]

    async def wrapped(
        executable: Executable,
        inputs: Mapping[str, Array],
        parts: Sequence[Part],
        meanwhile: Callable[[], None],
    ) -> list[Drawn]:
        return await around(lambda: step(executable, inputs, parts, meanwhile), inputs, parts)

    engine._device.step = wrapped  # pyright: ignore[reportPrivateUsage,reportAttributeAccessIssue]
