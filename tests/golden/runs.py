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
from kernels.memory import HostMemory, Memory
from kernels.ops.sampling import SamplingParams
from kernels.plan import Placement, plan
from kernels.reference import ReferenceBackend

F32 = npt.NDArray[np.float32]
PAGE_SIZE = 8
HOST = "cpu"  # beside a device
N_CTX = 64
WANTED = Draw(SamplingParams(), (), 0, -1)


def padded(source: Sequence[int]) -> list[int]:
    """What an encoder reads, in whole pages."""
    return [*source, *[0] * (-len(source) % PAGE_SIZE)]


class Bound:
    """A model file bound to one backend with room for four sequences of N_CTX."""

    def __init__(
        self, path: Path, backend: Backend, cache_dtype: DType = DType.F32, n_batch: int = 64
    ) -> None:
        file = GGUFFile.open(path)
        hparams = read_hparams(file)
        # windows have fewer pages than what is computed fills, so that they come to be given up
        window, chunk = max(hparams.windows), max(hparams.chunks)
        width = window or chunk
        n_window_cells = 4 * (width + N_CTX // 2) // PAGE_SIZE * PAGE_SIZE if width else 0
        n_rows = n_rows_of(4) if hparams.n_tap else 0
        n_source_cells = 4 * N_CTX if hparams.n_encoder else 0
        shape = CacheShape(
            8 * N_CTX, PAGE_SIZE, cache_dtype, n_window_cells, window, chunk, n_rows, n_source_cells
        )
        self.cache = Cache(shape)
        program = build_program(file, hparams, shape)
        bounds = {"n_tokens": n_batch, "n_outputs": n_batch, "n_seqs": 4, "n_pages": N_CTX // PAGE_SIZE}
        if hparams.n_encoder:
            bounds |= {"n_source": 4 * N_CTX, "n_source_pages": N_CTX // PAGE_SIZE}
        host = backend if backend.is_host else ReferenceBackend(HOST)
        backends = {host.name: host, backend.name: backend}
        placement = Placement((backend.name,) * (hparams.n_layer + 1), host.name)
        made = plan(program, placement, backends, bounds)
        self._buffers = [backends[device].allocate(n, "graph") for device, n in made.graph_bytes.items()]
        graphs = {device: b.memory for device, b in zip(made.graph_bytes, self._buffers, strict=True)}
        states: dict[str, Memory] = {}
        for tensor in program.states.values():
            self._buffers.append(backend.allocate(tensor.n_bytes({}), "cache"))
            states[tensor.name] = self._buffers[-1].memory
        weights: dict[tuple[str, str], Memory] = {}
        for tensor, device in made.weights:
            raw = np.frombuffer(file.tensor_bytes(tensor.name), np.uint8)
            weights[tensor.name, device] = HostMemory(raw)
            if not backends[device].is_host:
                self._buffers.append(backends[device].allocate(raw.nbytes, "weights"))
                self._buffers[-1].memory.upload(raw)
                weights[tensor.name, device] = self._buffers[-1].memory
        self._executable = made.bind(backends, graphs, weights, states)

    def open(self, n_source: int = 0) -> Slot:
        """An empty slot; n_source: inputs that an encoder will read."""
        return self.cache.open([], n_source=n_source)

    def feed(self, *inputs: tuple[Slot, Sequence[int]], all_rows: bool = False) -> F32:
        """Logits [n_sequences, n_vocab] after the last input of each; with all_rows of every input."""
        for slot, tokens in inputs:
            assert self.cache.extend(slot, len(tokens))
        parts = [Part(i, slot, tokens, (WANTED,)) for i, (slot, tokens) in enumerate(inputs)]
        arrays = index_arrays(parts, self.cache)
        if all_rows:  # of those whose logits there can be
            arrays["outputs"] = np.arange(len(arrays["tokens"]), dtype=np.int32)
        logits = self._executable.run(arrays)["logits"].astype(np.float32, copy=True)
        for slot, tokens in inputs:
            self.cache.advance(slot, tokens)
        return logits
