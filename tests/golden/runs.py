"""Runs a model file's program on one backend, sequence by sequence, without the engine."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from actors.runner.cache.cache import Cache, Slot
from actors.runner.cache.rows import n_rows_of
from actors.runner.cache.shape import CacheShape
from actors.runner.forward import Draw, Part, index_arrays
from actors.runner.gguf.reader import GGUFFile
from actors.runner.models.families import build_program, read_hparams
from kernels.backend import Backend
from kernels.dtype import DType
from kernels.memory import HostMemory
from kernels.ops.sampling import SamplingParams
from kernels.plan import Placement, plan

F32 = npt.NDArray[np.float32]
PAGE_SIZE = 8
N_CTX = 64
WANTED = Draw(SamplingParams(), (), 0, -1)


class Bound:
    """A model file bound to one backend with room for four sequences of N_CTX."""

    def __init__(
        self, path: Path, backend: Backend, cache_dtype: DType = DType.F32, n_batch: int = 64
    ) -> None:
        file = GGUFFile.open(path)
        hparams = read_hparams(file)
        # windows have fewer pages than what is computed fills, so that they come to be given up
        window = max(hparams.windows)
        n_window_cells = 4 * (window + N_CTX // 2) // PAGE_SIZE * PAGE_SIZE if window else 0
        n_rows = n_rows_of(4) if hparams.n_tap else 0
        shape = CacheShape(4 * N_CTX, PAGE_SIZE, cache_dtype, n_window_cells, window, n_rows)
        self.cache = Cache(shape)
        program = build_program(file, hparams, shape)
        name = backend.name
        bounds = {"n_tokens": n_batch, "n_outputs": n_batch, "n_seqs": 4, "n_pages": N_CTX // PAGE_SIZE}
        made = plan(program, Placement((name,) * (hparams.n_layer + 1), name), {name: backend}, bounds)
        self._graph = backend.allocate(made.graph_bytes[name], "graph")
        self._states = {t.name: backend.allocate(t.n_bytes({}), "cache") for t in program.states.values()}
        weights = {
            (t.name, d): HostMemory(np.frombuffer(file.tensor_bytes(t.name), np.uint8))
            for t, d in made.weights
        }
        states = {name: buffer.memory for name, buffer in self._states.items()}
        self._executable = made.bind({name: backend}, {name: self._graph.memory}, weights, states)

    def open(self) -> Slot:
        """An empty slot."""
        return self.cache.open([])

    def feed(self, *inputs: tuple[Slot, Sequence[int]], all_rows: bool = False) -> F32:
        """Logits [n_sequences, n_vocab] after the last input of each; with all_rows of every input."""
        for slot, tokens in inputs:
            assert self.cache.extend(slot, len(tokens))
        parts = [Part(i, slot, tokens, (WANTED,)) for i, (slot, tokens) in enumerate(inputs)]
        arrays = index_arrays(parts, self.cache)
        if all_rows:
            arrays["outputs"] = np.arange(len(arrays["tokens"]), dtype=np.int32)
        logits = self._executable.run(arrays)["logits"].astype(np.float32, copy=True)
        for slot, tokens in inputs:
            self.cache.advance(slot, tokens)
        return logits
