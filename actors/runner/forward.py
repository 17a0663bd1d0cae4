"""One forward pass outside the event loop: index arrays from slots, an executable run, sampled tokens.

A `Device` takes a step: the CPU's on a native thread, which needs nothing of the interpreter while it runs;
every other on a Python thread.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache, partial
from itertools import chain
from typing import NamedTuple, Protocol

import numpy as np
import trio

from actors.protocol import Logprob, TokenLogprob
from actors.runner.cache.cache import Cache, Slot
from actors.runner.cache.pages import Pages, Table
from actors.runner.tokenizer.tokenizer import Tokenizer
from kernels.backend import Backend
from kernels.cpu.backend import CpuBackend
from kernels.cpu.sampler import NanLogits, SamplingParams, logprobs, native_params, sample
from kernels.cpu.worker import CpuWorker
from kernels.cpu.worker import Draw as NativeDraw
from kernels.cpu.worker import Drawn as NativeDrawn
from kernels.executable import Executable
from kernels.ops.op import F32, Array


class Draw(NamedTuple):
    """How to sample after a row of logits; position counts all tokens before the one that is drawn."""

    params: SamplingParams
    history: Sequence[int]  # tokens that penalties look at, oldest first
    position: int
    n_logprobs: int
    drafted: Sequence[int] = ()  # tokens after the history that this draw takes for granted

    @property
    def seen(self) -> Sequence[int]:
        """The end of all tokens before that penalties look at; empty where there are none."""
        if not self.params.has_penalties:
            return ()
        n_last = self.params.repeat_last_n
        tail = _last(self.history, n_last)
        return _last([*tail, *self.drafted], n_last) if self.drafted else tail


def _last(tokens: Sequence[int], n: int) -> Sequence[int]:
    """The last n, all where n is negative."""
    return tokens if n < 0 else tokens[max(0, len(tokens) - n) :]


class Part(NamedTuple):
    """One sequence's inputs in a batch; its last inputs' logits are wanted, one for each of `draws`."""

    seq_id: int
    slot: Slot
    tokens: Sequence[int]
    draws: Sequence[Draw] = ()  # of several, all but the first are for drafted tokens

    @property
    def n_drafted(self) -> int:
        """Inputs at the end that were guessed."""
        return max(0, len(self.draws) - 1)


class Drawn(NamedTuple):
    """A sampled token, or why there is none: an error of one row is that sequence's alone."""

    seq_id: int
    token: int
    logprob: Logprob | None
    error: str = ""


def index_arrays(parts: Sequence[Part], cache: Cache) -> dict[str, Array]:
    """The inputs of `models.decoder.Batch`, all i32, for sequences whose slots have room for their parts."""
    tokens: list[int] = []
    positions: list[int] = []
    rows: list[int] = []
    outputs: list[int] = []
    for row, (_, slot, inputs, draws) in enumerate(parts):
        tokens += inputs
        positions += range(slot.n_cells, slot.n_cells + len(inputs))
        rows += [row] * len(inputs)
        outputs += range(len(tokens) - len(draws), len(tokens))
    named = {"tokens": tokens, "positions": positions, "rows": rows, "outputs": outputs}
    named["cells"] = _cells(cache.pages, [(p, p.slot.table) for p in parts])
    if cache.window is not None:
        named["window_cells"] = _cells(cache.window, [(p, p.slot.window) for p in parts])
    if cache.rows is not None:
        named["sources"] = [p.slot.state.current for p in parts]
        named["targets"] = [cache.rows.target(p.slot.state, p.slot.n_cells + len(p.tokens)) for p in parts]
    # one conversion for all: between two steps each call of numpy begins with a cold cache
    flat = np.array(list(chain.from_iterable(named.values())), np.int32)
    arrays: dict[str, Array] = {}
    begin = 0
    for name, values in named.items():
        arrays[name] = flat[begin : begin + len(values)]
        begin += len(values)
    arrays["n_visible"] = flat[len(tokens) : 2 * len(tokens)] + np.int32(1)  # positions, and oneself
    arrays["tables"] = _tables([part.slot.table for part in parts])
    if cache.window is not None:
        arrays["window_tables"] = _tables([part.slot.window for part in parts])
    return arrays


def _cells(pages: Pages, tables: Sequence[tuple[Part, Table]]) -> list[int]:
    """The cell of each input."""
    cells: list[int] = []
    for part, table in tables:
        cells += pages.cells(table, part.slot.n_cells, part.slot.n_cells + len(part.tokens))
    return cells


def _tables(tables: Sequence[Table]) -> Array:
    """[n_seqs, n_pages]; what is not there reads as page 0."""
    made = np.zeros((len(tables), max(len(table.pages) for table in tables)), np.int32)
    for row, table in enumerate(tables):
        made[row, : len(table.pages)] = np.frombuffer(table.pages, np.int32)
    return made


class Device(Protocol):
    """Where steps are taken, one at a time."""

    async def step(
        self,
        executable: Executable,
        inputs: Mapping[str, Array],
        parts: Sequence[Part],
        meanwhile: Callable[[], None],
    ) -> list[Drawn]:
        """Run the batch and draw a token for each draw of each part, in order.

        `meanwhile` is called once, if it can be while the batch computes.  Not cut short by cancellation: the
        device would still be writing.
        """
        ...


class NativeDevice:
    """The CPU alone.  Its thread tells the event loop by a pipe."""

    def __init__(self, backend: CpuBackend, tokenizer: Tokenizer) -> None:
        self._worker = CpuWorker(backend)
        self._tokenizer = tokenizer

    async def step(
        self,
        executable: Executable,
        inputs: Mapping[str, Array],
        parts: Sequence[Part],
        meanwhile: Callable[[], None],
    ) -> list[Drawn]:
        """See `Device`."""
        wanted = [(part.seq_id, draw) for part in parts for draw in part.draws]
        draws = [NativeDraw(_native(d.params), d.position, d.seen, d.n_logprobs) for _, d in wanted]
        self._worker.start(executable, inputs, draws)
        try:
            meanwhile()
        finally:
            with trio.CancelScope(shield=True):  # bounded by a batch
                await trio.lowlevel.wait_readable(self._worker.fd)
            drawn = self._worker.take()
        return [self._drawn(seq_id, draw, row) for (seq_id, draw), row in zip(wanted, drawn, strict=True)]

    def _drawn(self, seq_id: int, draw: Draw, row: NativeDrawn) -> Drawn:
        if row.error is not None:
            return Drawn(seq_id, 0, None, str(row.error))
        if draw.n_logprobs < 0:
            return Drawn(seq_id, row.token, None)
        return Drawn(seq_id, row.token, _entries(row.token, row.logprob, row.top, self._tokenizer))


class ThreadDevice:
    """Any devices, on a Python thread."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._limiter = trio.CapacityLimiter(1)

    async def step(
        self,
        executable: Executable,
        inputs: Mapping[str, Array],
        parts: Sequence[Part],
        meanwhile: Callable[[], None],
    ) -> list[Drawn]:
        """See `Device`."""
        meanwhile()
        work = partial(forward, executable, inputs, parts, self._tokenizer)
        return await trio.to_thread.run_sync(work, limiter=self._limiter)


def device_of(backends: Mapping[str, Backend], tokenizer: Tokenizer) -> Device:
    """The device that runs what is bound to these backends."""
    only = next(iter(backends.values())) if len(backends) == 1 else None
    return NativeDevice(only, tokenizer) if isinstance(only, CpuBackend) else ThreadDevice(tokenizer)


_native = lru_cache(maxsize=1024)(native_params)  # a request's parameters stay the same from token to token


def forward(
    executable: Executable, inputs: Mapping[str, Array], parts: Sequence[Part], tokenizer: Tokenizer
) -> list[Drawn]:
    """Run the batch and draw a token for each draw of each part, in order."""
    logits: F32 = executable.run(inputs)["logits"].astype(np.float32, copy=False)
    wanted = [(part.seq_id, draw) for part in parts for draw in part.draws]
    return [_draw(seq_id, draw, logits[row], tokenizer) for row, (seq_id, draw) in enumerate(wanted)]


def _draw(seq_id: int, draw: Draw, logits: F32, tokenizer: Tokenizer) -> Drawn:
    try:
        token = sample(logits, np.array(draw.seen, np.int32), draw.params, draw.position)
    except NanLogits as exc:
        return Drawn(seq_id, 0, None, str(exc))
    if draw.n_logprobs < 0:
        return Drawn(seq_id, token, None)
    chosen, top = logprobs(logits, token, draw.n_logprobs)
    return Drawn(seq_id, token, _entries(token, chosen, top, tokenizer))


def _entries(token: int, chosen: float, top: Sequence[tuple[int, float]], tokenizer: Tokenizer) -> Logprob:
    return Logprob(_entry(token, chosen, tokenizer), tuple(_entry(t, p, tokenizer) for t, p in top))


def _entry(token: int, logprob: float, tokenizer: Tokenizer) -> TokenLogprob:
    return TokenLogprob(token, tokenizer.piece(token, special=True), logprob)
