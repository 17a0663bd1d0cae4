"""Our models opened in this process."""

from collections.abc import Generator
from contextlib import contextmanager

from actors.protocol import LoadOptions, ModelSpec
from actors.runner.devices import HOST, open_host
from actors.runner.model import Model
from bench.case import Skipped
from bench.files import ModelFile

N_BATCH = 512


@contextmanager
def opened(file: ModelFile, n_ctx: int, n_parallel: int, n_threads: int, isa: str) -> Generator[Model]:
    """The model, loaded."""
    spec = ModelSpec(file.path.stem, "sha256:0", str(file.path), file.n_bytes)
    n_batch = max(1, min(N_BATCH, n_ctx))
    options = LoadOptions(n_ctx=n_ctx, n_batch=n_batch, n_thread=n_threads, n_parallel=n_parallel)
    model = Model.open(spec, options, (), {HOST: open_host(isa, n_threads)})
    try:
        if not model.allocate():
            raise Skipped(f"no memory for a context of {n_ctx} positions by {n_parallel} sequences")
        model.load()
        yield model
    finally:
        model.close()
