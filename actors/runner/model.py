"""A model in one process: sized, allocated, loaded, freed.

`Model.open` reads the header and plans the worst case on the devices of a layout: that is `fit`, and it
allocates nothing.  `allocate` takes the memory, `load` brings the tensor data into it (on the CPU: into the
page cache, where the kernels use it in place), `close` gives everything back.
"""

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from actors.errors import Unsupported
from actors.protocol import LayerPlacement, LoadOptions, MemoryReport, ModelSpec
from actors.runner.cache.causal import PAGE_SIZE, n_pages_for
from actors.runner.gguf.check import check_without_merges
from actors.runner.gguf.reader import GGUFFile
from actors.runner.memory import Attempt, Sizes, memory_report, planned_overhead_bytes
from actors.runner.models.decoder import CacheShape
from actors.runner.models.families import build_program
from actors.runner.models.hparams import Hparams, read_hparams
from actors.runner.pages import resident_bytes, touch
from actors.runner.tokenizer.tokenizer import Tokenizer
from kernels.backend import Backend, Buffer, Bytes, OutOfMemory
from kernels.dtype import DType
from kernels.executable import Executable
from kernels.plan import Placement, PlanError, plan
from kernels.program import ShapeError
from kernels.tensor import N_OUTPUTS, N_PAGES, N_SEQS, N_TOKENS, Tensor

DEFAULT_N_CTX = 4096
DEFAULT_N_BATCH = 512
KV_TYPES: Mapping[str, DType] = {
    "": DType.F16,
    "f16": DType.F16,
    "f32": DType.F32,
    "q8_0": DType.Q8_0,
}
READ_CHUNK_BYTES = 8 << 20  # between two looks at the cancel flag: a few milliseconds from a fast disk

N_READERS = 2  # mapping pages that are in memory already takes a core 50 ms for 800 MB

Progress = Callable[[int, int], None]  # done bytes, total bytes; raises to cancel


@dataclass(slots=True)
class Memory:
    """What a model holds on its devices."""

    graphs: dict[str, Buffer] = field(default_factory=dict[str, Buffer])
    states: dict[str, Buffer] = field(default_factory=dict[str, Buffer])

    def free(self) -> None:
        """Give everything back."""
        for buffer in (*self.graphs.values(), *self.states.values()):
            buffer.free()
        self.graphs, self.states = {}, {}


class Source:
    """An open and checked model file.  Its tokenizer is made on a thread meanwhile."""

    def __init__(self, path: str) -> None:
        """ModelError for a bad file."""
        with ExitStack() as undo:
            self.identity = identity_of(path)  # before: a file replaced meanwhile is then opened anew
            self.file = GGUFFile.open(Path(path))
            undo.callback(self.file.close)
            check_without_merges(self.file)
            undo.pop_all()
        maker = ThreadPoolExecutor(1, "tokenizer")
        self._tokenizer = maker.submit(Tokenizer.from_metadata, self.file.metadata)
        maker.shutdown(wait=False)

    def tokenizer(self) -> Tokenizer:
        """Waits until it is made; ModelError where it cannot be."""
        return self._tokenizer.result()

    def close(self) -> None:
        """Give up the mapping."""
        self.file.close()


def identity_of(path: str) -> tuple[object, ...]:
    """Changes when another file lies there, or the file was written to; a missing file has one too."""
    try:
        found = os.stat(path)
    except OSError:
        return (path,)
    return (path, found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns)


class Model:
    """One model and one layout; see the module's text for its life."""

    def __init__(
        self,
        source: Source,
        spec: ModelSpec,
        options: LoadOptions,
        backends: Mapping[str, Backend],
        placement: Placement,
    ) -> None:
        self._source = source
        self._file = file = source.file
        self._backends = backends
        self._placement = placement
        self._memory = Memory()
        self._executables: list[tuple[int, Executable]] = []
        self.spec = spec
        self.options = options
        self.hparams: Hparams = read_hparams(file)
        self.n_ctx = min(options.n_ctx or DEFAULT_N_CTX, self.hparams.n_ctx_train)
        self.n_batch = min(options.n_batch or DEFAULT_N_BATCH, self.n_ctx)
        self.n_parallel = min(options.n_parallel or 1, self.n_batch)
        self.page_size = PAGE_SIZE
        self.n_pages = n_pages_for(self.n_ctx, self.n_parallel, self.page_size)
        shape = CacheShape(self.n_pages * self.page_size, self.page_size, KV_TYPES[options.kv_type])
        program = build_program(file, self.hparams, shape)
        # the smaller plan first: decoding reuses memory that stays in the processor's cache
        self._plans = [plan(program, placement, backends, self._bounds(n)) for n in self._buckets()]
        self.attempt = Attempt(planned_overhead_bytes=planned_overhead_bytes(self.hparams.n_vocab))

    @classmethod
    def open(
        cls,
        spec: ModelSpec,
        options: LoadOptions,
        layers: tuple[LayerPlacement, ...],
        backends: Mapping[str, Backend],
    ) -> "Model":
        """Read and plan.  ModelError for a bad file, Unsupported for a device or family that cannot run."""
        with ExitStack() as undo:
            source = Source(spec.path)
            undo.callback(source.close)
            model = cls.planned(source, spec, options, layers, backends)
            undo.pop_all()
        return model

    @classmethod
    def planned(
        cls,
        source: Source,
        spec: ModelSpec,
        options: LoadOptions,
        layers: tuple[LayerPlacement, ...],
        backends: Mapping[str, Backend],
    ) -> "Model":
        """Plan for a file that is open; the model closes it, unless this raises.  Unsupported as `open`."""
        n_layer = source.file.get_int(f"{source.file.get_str('general.architecture')}.block_count")
        placement = read_placement(layers, n_layer, backends)
        try:
            return cls(source, spec, options, backends, placement)
        except (PlanError, ShapeError) as exc:
            raise Unsupported(str(exc), where=spec.path) from exc

    @property
    def n_vocab(self) -> int:
        """Tokens of the vocabulary."""
        return self.hparams.n_vocab

    @property
    def tokenizer(self) -> Tokenizer:
        """There at once when the model is loaded; before, this waits for it and raises as `load` does."""
        return self._source.tokenizer()

    @property
    def backends(self) -> Mapping[str, Backend]:
        """Of every device that this runner may use."""
        return self._backends

    @property
    def states(self) -> Mapping[str, Bytes]:
        """The memory of each state by its name in the program, while the model is allocated."""
        return {name: buffer.array for name, buffer in self._memory.states.items()}

    def sizes(self) -> Sizes:
        """Everything `memory_report` needs to know of the plans."""
        return Sizes(
            self.hparams.n_layer,
            self.n_ctx,
            self.hparams.n_ctx_train,
            self.n_batch,
            self.n_parallel,
            KV_TYPES[self.options.kv_type].name.lower(),
        )

    def report(self) -> MemoryReport:
        """Planned beside measured, as far as the load has come."""
        return memory_report(self.sizes(), self._plans, self._backends, self.attempt)

    def allocate(self) -> bool:
        """Take all memory of the layout.

        False when a device refused: `report` says which, and nothing stays allocated.
        """
        biggest = self._plans[-1]
        try:
            for tensor in biggest.program.states.values():
                device = biggest.homes[tensor]
                label = f"cache.{tensor.layer}"
                self._memory.states[tensor.name] = self._take(device, tensor.n_bytes({}), label)
            for device in self._used_devices():
                n_bytes = max(p.graph_bytes[device] for p in self._plans)
                self._memory.graphs[device] = self._take(device, n_bytes, "graph")
        except OutOfMemory as exc:
            self.attempt.fail(exc.device, exc.label, str(exc))
            self._memory.free()
            return False
        self._bind()
        return True

    def load(self, progress: Progress) -> None:
        """Bring all tensor data into memory, and have the tokenizer; `progress` may raise to cancel.

        ModelError for a vocabulary of which no tokenizer can be made.
        """
        infos = sorted(self._file.tensors.values(), key=lambda info: info.offset)
        data = {info.name: self._file.tensor_bytes(info.name) for info in infos}
        done_bytes, total_bytes = 0, sum(map(len, data.values()))
        with ThreadPoolExecutor(N_READERS, "reader") as readers:
            progress(done_bytes, total_bytes)
            try:
                for n_bytes in readers.map(touch, _chunks(data.values())):
                    done_bytes += n_bytes
                    progress(done_bytes, total_bytes)
            finally:
                readers.shutdown(wait=False, cancel_futures=True)
        self.attempt.resident = {name: resident_bytes(view) for name, view in data.items()}
        self._source.tokenizer()

    def executable(self, n_tokens: int, n_outputs: int) -> Executable:
        """The smallest bound plan that takes this many rows."""
        rows = max(n_tokens, n_outputs)
        return next(executable for bound, executable in self._executables if rows <= bound)

    def close(self) -> None:
        """Free everything; a second call does nothing."""
        self._executables = []
        self._memory.free()
        self._source.close()

    def refit(
        self,
        spec: ModelSpec,
        options: LoadOptions,
        layers: tuple[LayerPlacement, ...],
    ) -> "Model | None":
        """A model that only was planned, for another request: the same where the plan is, else another plan.

        None when the file is not the one that is open; then, and when this raises, the model is closed.
        """
        with ExitStack() as undo:
            undo.callback(self.close)
            if identity_of(spec.path) != self._source.identity or options.n_thread != self.options.n_thread:
                return None
            model = self
            if (spec, options) != (self.spec, self.options) or self._placement != read_placement(
                layers, self.hparams.n_layer, self._backends
            ):
                model = Model.planned(self._source, spec, options, layers, self._backends)
            undo.pop_all()
        return model

    def _take(self, device: str, n_bytes: int, label: str) -> Buffer:
        backend = self._backends[device]
        before_bytes = backend.allocations.given_bytes
        buffer = backend.allocate(n_bytes, label)
        self.attempt.measure(device, label, backend.allocations.given_bytes - before_bytes)
        return buffer

    def _bind(self) -> None:
        graphs = {device: buffer.array for device, buffer in self._memory.graphs.items()}
        for bound, one_plan in zip(self._buckets(), self._plans, strict=True):
            weights = {(t.name, device): self._weight(t) for t, device in one_plan.weights}
            self._executables.append((bound, one_plan.bind(self._backends, graphs, weights, self.states)))

    def _weight(self, tensor: Tensor) -> Bytes:
        """The tensor's bytes where they lie in the mapped file."""
        return np.frombuffer(self._file.tensor_bytes(tensor.name), np.uint8)

    def _used_devices(self) -> list[str]:
        return [d for d in self._backends if any(p.graph_bytes[d] for p in self._plans)]

    def _buckets(self) -> list[int]:
        """Rows of each plan: a decode batch, a full prompt batch."""
        return sorted({self.n_parallel, self.n_batch})

    def _bounds(self, n_tokens: int) -> dict[str, int]:
        pages = -(-self.n_ctx // self.page_size)
        outputs = min(self.n_parallel, n_tokens)
        return {
            N_TOKENS.name: n_tokens,
            N_OUTPUTS.name: outputs,
            N_SEQS.name: outputs,
            N_PAGES.name: pages,
        }


def _chunks(tensors: Iterable[memoryview]) -> Iterator[memoryview]:
    for data in tensors:
        for start in range(0, len(data), READ_CHUNK_BYTES):
            yield data[start : start + READ_CHUNK_BYTES]


def read_placement(
    layers: tuple[LayerPlacement, ...], n_layer: int, backends: Mapping[str, Backend]
) -> Placement:
    """The placement a message describes; layers nobody names stay on the host.

    Unsupported names a device that this runner lacks.
    """
    host = next(iter(backends))
    of_layer = [host] * (n_layer + 1)
    for part in layers:
        if part.device not in backends:
            raise Unsupported(
                f"this runner cannot use device {part.device!r}",
                where="placement",
                mend=f"place layers on {', '.join(backends)}",
            )
        for layer in part.layers:
            if not 0 <= layer <= n_layer:
                raise Unsupported(f"layer {layer} is outside 0..{n_layer}", where="placement")
            of_layer[layer] = part.device
    return Placement(tuple(of_layer), host)
