"""A model in one process: sized, allocated, loaded, freed.

`Model.open` reads the header and plans the worst case on the devices of a layout: that is `fit`, and it
allocates nothing.  `allocate` takes the memory, `load` brings the tensor data into it (on the CPU: into the
page cache, where the kernels use it in place), `close` gives everything back.
"""

import logging
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from typing import Final

from actors.errors import Unsupported
from actors.pool import pool_cells
from actors.protocol import LayerPlacement, LoadOptions, MemoryReport, ModelSpec
from actors.runner.allocation import Allocation
from actors.runner.cache.shape import PAGE_SIZE, cache_shape, padded
from actors.runner.crossover import Check, crossover, whole_from
from actors.runner.devices import no_device
from actors.runner.layer_times import Side, times_of
from actors.runner.memory import Attempt, Sizes, expected_overhead_bytes, memory_report
from actors.runner.models.families import read_hparams
from actors.runner.models.hparams import Hparams
from actors.runner.pages import resident_bytes
from actors.runner.progress import Tell, unheard
from actors.runner.reading import LOOK_S, read
from actors.runner.source import Source
from actors.runner.streaming import N_SLOTS, WeightStream
from actors.runner.tokenizer.tokenizer import Tokenizer
from actors.runner.weights import blocks_of, streamed_blocks
from kernels.backend import Backend
from kernels.dtype import DType
from kernels.executable import Executable
from kernels.memory import Memory, OutOfMemory
from kernels.plan import NOT_STREAMED, Placement, Plan, PlanError, plans, streamable
from kernels.program import Program, ShapeError
from kernels.tensor import N_OUTPUTS, N_PAGES, N_SEQS, N_SOURCE, N_SOURCE_PAGES, N_TOKENS

DEFAULT_N_CTX = 4096
DEFAULT_N_BATCH = 512
MAX_N_BATCH = 1 << 15  # a grid of CUDA has 65,535 rows at most
NEVER: Final = sys.maxsize  # rows of a batch that no batch has
N_DRAFT_ROWS = 16  # drafted inputs of one batch, over all sequences: each has logits of its own
KV_TYPES: Mapping[str, DType] = {
    "": DType.F16,
    "f16": DType.F16,
    "f32": DType.F32,
    "q8_0": DType.Q8_0,
}

log = logging.getLogger(__name__)


class Model:
    """One model and one layout; see the module's text for its life.

    stream_from: inputs of a batch from which on layers of the host are computed by a device, their weights
    streamed; 0: as measured when it is loaded.
    """

    def __init__(
        self,
        source: Source,
        spec: ModelSpec,
        options: LoadOptions,
        layers: tuple[LayerPlacement, ...],
        backends: Mapping[str, Backend],
        stream_from: int,
    ) -> None:
        self._source = source
        self._file = file = source.file
        self._backends = backends
        self.hparams: Hparams = read_hparams(file)
        self._placement = placement = read_placement(layers, self.hparams.n_layer, backends)
        self._executables: list[tuple[int, Executable]] = []
        self._stream_from = stream_from
        self._stream: WeightStream | None = None  # while it is allocated, if layers are streamed
        self._streamed: Executable | None = None
        self.streamed_rows = NEVER  # from which on batches are streamed
        self.spec = spec
        self.options = options
        self.page_size = PAGE_SIZE
        has_encoder = self.hparams.n_encoder > 0
        self.n_ctx, self.n_pages = pool_of(options, self.hparams.n_ctx_train, has_encoder=has_encoder)
        self.n_batch = min(options.n_batch or DEFAULT_N_BATCH, self.n_ctx, MAX_N_BATCH)
        if has_encoder:  # which reads the longest prompt at once; the decoder's first input comes with it
            self.n_batch = max(self.n_batch, padded(self.n_ctx) + 1)
        self.n_parallel = min(options.n_parallel or 1, self.n_batch)
        self.cache_shape = cache_shape(
            self.n_pages,
            KV_TYPES[options.kv_type],
            window=max(self.hparams.windows),
            chunk=max(self.hparams.chunks),
            is_recurrent=self.hparams.n_tap > 0,
            n_parallel=self.n_parallel,
            n_batch=self.n_batch,
            has_encoder=has_encoder,
        )
        program = source.program(self.hparams, self.cache_shape)
        self._plans = self._made_plans(program)
        self._streamed_plan = self._planned_streaming(program)
        self._blocks = blocks_of(self._plans[-1], placement, backends)
        streamed = streamed_blocks(self._streamed_plan, backends) if self._streamed_plan else []
        self._allocation = Allocation(self._all_plans, self._blocks, streamed, backends, placement.input)
        self._overhead = {
            device: expected_overhead_bytes(backend, self.hparams.n_vocab)
            for device, backend in backends.items()
        }
        self.attempt = Attempt()

    @classmethod
    def open(
        cls,
        spec: ModelSpec,
        options: LoadOptions,
        layers: tuple[LayerPlacement, ...],
        backends: Mapping[str, Backend],
        stream_from: int = NEVER,
    ) -> "Model":
        """Read and plan.  ModelError for a bad file, Unsupported for a device or family that cannot run."""
        with ExitStack() as undo:
            source = Source(spec.path)
            undo.callback(source.close)
            model = cls.planned(source, spec, options, layers, backends, stream_from)
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
        stream_from: int = NEVER,
    ) -> "Model":
        """Plan for a file that is open; the model closes it, unless this raises.  Unsupported as `open`."""
        try:
            return cls(source, spec, options, layers, backends, stream_from)
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
    def host(self) -> Backend:
        """The backend of the host."""
        return self._backends[self._placement.input]

    @property
    def states(self) -> Mapping[str, Memory]:
        """The memory of each state by its name in the program, while the model is allocated."""
        return self._allocation.states

    def gauges(self) -> dict[str, float]:
        """Each device's allocator, for GetStats: after a load it stands still."""
        found: dict[str, float] = {}
        for device, backend in self._backends.items():
            found[f"device_allocations_total:{device}"] = backend.allocations.n_allocations
            found[f"device_allocated_bytes:{device}"] = backend.allocations.given_bytes
        if self._stream is not None:
            found["streamed_from_inputs"] = self.streamed_rows
            found["streamed_layers_total"] = self._stream.n_brought
            found["streamed_bytes_total"] = self._stream.brought_bytes
            if self._stream.has_experts:
                found["experts_ahead_from_rows"] = self._stream.whole_from
        return found

    def sizes(self) -> Sizes:
        """Everything `memory_report` needs to know of the plans."""
        return Sizes(
            self.hparams.n_layer,
            self.n_ctx,
            self.n_pages * self.page_size,
            self.hparams.n_ctx_train,
            self.n_batch,
            self.n_parallel,
            KV_TYPES[self.options.kv_type].name.lower(),
        )

    def report(self) -> MemoryReport:
        """Planned beside measured, as far as the load has come."""
        overhead = {d: n + self._allocation.overhead_bytes(d) for d, n in self._overhead.items()}
        return memory_report(
            self.sizes(), self._all_plans, self._blocks, self._backends, overhead, self.attempt
        )

    def allocate(self, tell: Tell = unheard) -> bool:
        """Take all memory of the layout.

        False when a device refused: `report` says which, and nothing stays allocated.  `tell` may raise to
        cancel; then nothing stays allocated either.
        """
        with ExitStack() as undo:
            undo.callback(self._allocation.free)
            try:
                self._allocation.take(self.attempt, tell)
                self._bind()
            except OutOfMemory as exc:
                self.attempt.fail(exc.device, exc.label, str(exc))
                return False
            undo.pop_all()
        return True

    def load(self, tell: Tell = unheard, clock: Callable[[], float] = time.perf_counter) -> None:
        """Bring all tensor data into memory, and have the tokenizer; `tell` may raise to cancel.

        clock: seconds; by it is decided from which batches on layers are streamed.

        ModelError: the file cannot be read, or no tokenizer can be made of its vocabulary.
        """
        wanted = self._allocation.wanted(self._file)
        read(self._source.path, self._source.identity, wanted, self._allocation.staging, tell)
        total_bytes = sum(tensor.n_bytes for tensor in wanted)
        check = partial(tell, "finalising", total_bytes, total_bytes)
        self._begin_streaming(clock, check)
        check()
        while not self._source.has_tokenizer(LOOK_S):
            check()
        self._source.tokenizer()
        self.attempt.resident = {
            tensor.name: resident_bytes(self._file.tensor_bytes(tensor.name))
            for block in self._blocks
            if block.is_mapped
            for tensor in block.tensors
        }

    def executable(self, n_tokens: int, n_outputs: int, n_source: int = 0) -> Executable:
        """The smallest bound plan that takes this many rows; one that streams from its rows on."""
        rows = max(n_tokens, n_outputs, n_source)
        if self._streamed is not None and rows >= self.streamed_rows:
            return self._streamed
        if n_source:
            return self._executables[-1][1]
        return next(executable for bound, executable in self._executables if rows <= bound)

    def close(self) -> None:
        """Free everything; a second call does nothing."""
        self._executables = []
        self._stream = self._streamed = None
        self._allocation.free()
        self._source.close()

    def refit(
        self,
        spec: ModelSpec,
        options: LoadOptions,
        layers: tuple[LayerPlacement, ...],
        backends: Mapping[str, Backend],
    ) -> "Model | None":
        """A model that only was planned, for another request: the same where the plan is, else another plan.

        None when the file is not the one that is open; then, and when this raises, the model is closed.
        """
        with ExitStack() as undo:
            undo.callback(self.close)
            if not self._source.is_of(spec.path):
                return None
            model = self
            if (spec, options) != (self.spec, self.options) or self._placement != read_placement(
                layers, self.hparams.n_layer, backends
            ):
                model = Model.planned(self._source, spec, options, layers, backends, self._stream_from)
            undo.pop_all()
        return model

    @property
    def _all_plans(self) -> list[Plan]:
        return [*self._plans, *([self._streamed_plan] if self._streamed_plan else [])]

    def _made_plans(self, program: Program) -> list[Plan]:
        """The smaller one first: decoding reuses memory that stays in the processor's cache.

        An encoder's part is only in the largest: it runs where a prompt begins.
        """
        *few, most = self._buckets()
        if not self.hparams.n_encoder:
            return self._plans_of(program, [*few, most])
        return [*self._plans_of(program.without(N_SOURCE), few), *self._plans_of(program, [most])]

    def _plans_of(
        self, program: Program, rows: Sequence[int], streamed: Mapping[int, str] = NOT_STREAMED
    ) -> list[Plan]:
        """A plan for each of these numbers of rows."""
        bounds = [self._bounds(program, n) for n in rows]
        return plans(program, self._placement, self._backends, bounds, streamed)

    def _planned_streaming(self, program: Program) -> Plan | None:
        """A plan that streams, where that may be faster for some batch.

        Not for so few layers that the slots would hold them for good: the device has room for them then.
        """
        streamed = streamable(program, self._placement, self._backends)
        if len(streamed) <= N_SLOTS or self.n_batch < max(2, self._stream_from):
            return None
        return self._plans_of(program, [self.n_batch], streamed)[0]

    def _bind(self) -> None:
        memory = self._allocation
        graphs, weights, states = memory.graphs, memory.weights(self._file), memory.states
        self._executables = [
            (bound, one_plan.bind(self._backends, graphs, weights, states))
            for bound, one_plan in zip(self._buckets(), self._plans, strict=True)
        ]
        if self._streamed_plan is not None:
            self._stream = stream = memory.stream(self._file)
            weights |= stream.weights
            self._streamed = self._streamed_plan.bind(self._backends, graphs, weights, states, stream)

    def _begin_streaming(self, clock: Callable[[], float], check: Check) -> None:
        """Decide from which batches on; where none is faster for it, give back what it would need."""
        if self._stream is not None and self._streamed_plan is not None:
            rows = self._crossover(self._stream, self._streamed_plan, clock, check)
            if rows is not None:
                self.streamed_rows = rows
                log.info(
                    "layers of the host are streamed to a device for batches of %d inputs and more", rows
                )
                return
            log.info("no batch would be faster if layers of the host were streamed to a device")
        self._stream = self._streamed = None
        self._allocation.free_staging()

    def _crossover(
        self, stream: WeightStream, plan: Plan, clock: Callable[[], float], check: Check
    ) -> int | None:
        """As was asked for, else as measured; with experts also from where on they all come ahead."""
        if self._stream_from and not stream.has_experts:
            return self._stream_from
        weights = self._allocation.weights(self._file) | stream.weights
        graphs = self._allocation.graphs

        def side(its_plan: Plan, name: str) -> Side:
            return Side(its_plan, self._backends[name], graphs[name], weights)

        host = side(self._plans[-1], self._placement.input)
        device = side(plan, plan.streamed[stream.layers[0]])
        times = times_of(stream, host, device, clock, check)
        if stream.has_experts:
            stream.whole_from = whole_from(times[-1], self.n_batch)
        return self._stream_from or crossover(times, self.n_batch)

    def _buckets(self) -> list[int]:
        """Rows of each plan: a decode batch, a full prompt batch."""
        return sorted({self.n_parallel, self.n_batch})

    def _bounds(self, program: Program, n_tokens: int) -> dict[str, int]:
        pages = -(-self.n_ctx // self.page_size)
        bounds = {
            N_TOKENS: n_tokens,
            N_OUTPUTS: min(self.n_parallel + N_DRAFT_ROWS, n_tokens),
            N_SEQS: min(self.n_parallel, n_tokens),
            N_PAGES: pages,
            N_SOURCE: n_tokens,
            N_SOURCE_PAGES: pages,
        }
        needed = program.symbols
        return {symbol.name: n for symbol, n in bounds.items() if symbol.name in needed}


def pool_of(options: LoadOptions, n_ctx_train: int, *, has_encoder: bool = False) -> tuple[int, int]:
    """Positions that one sequence may use, and pages of the pool that all of them share.

    Behind an encoder a prompt may be as long as that, and so may an answer.
    """
    n_ctx = min(options.n_ctx or DEFAULT_N_CTX, n_ctx_train)
    if has_encoder:
        n_ctx = min(n_ctx, MAX_N_BATCH)
    whole = padded(n_ctx)  # a sequence ends within a page of its own
    whole *= 2 if has_encoder else 1
    return n_ctx, -(-pool_cells(whole, options.n_parallel or 1) // PAGE_SIZE)


def read_placement(
    layers: tuple[LayerPlacement, ...], n_layer: int, backends: Mapping[str, Backend]
) -> Placement:
    """The placement a message describes; layers nobody names stay on the host.

    Unsupported names a layer that the model lacks, or a device without a backend.
    """
    host = next(iter(backends))
    of_layer = [host] * (n_layer + 1)
    for part in layers:
        for layer in part.layers:
            if not 0 <= layer <= n_layer:
                raise Unsupported(f"layer {layer} is outside 0..{n_layer}", where="placement")
            if part.device not in backends:
                raise no_device(part.device)
            of_layer[layer] = part.device
    return Placement(tuple(of_layer), host)
