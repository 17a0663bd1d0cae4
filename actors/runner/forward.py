"""One forward pass outside the event loop: index arrays from slots, an executable run, sampled tokens.

A `Device` takes a step: the CPU's on a native thread, which needs nothing of the interpreter while it runs;
every other on a Python thread.
"""

from array import array
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
    n_unseen: int = 0  # tokens at the beginning that penalties never look at

    @property
    def seen(self) -> Sequence[int]:
        """The end of all tokens before that penalties look at; empty where there are none."""
        if not self.params.has_penalties:
            return ()
        n_last = self.params.repeat_last_n
        tail = _last(self.history, n_last, self.n_unseen)
        return _last([*tail, *self.drafted], n_last) if self.drafted else tail


def _last(tokens: Sequence[int], n: int, n_unseen: int = 0) -> Sequence[int]:
    """The last n of those after the first n_unseen, all of them where n is negative."""
    begin = n_unseen if n < 0 else max(n_unseen, len(tokens) - n)
    return tokens[begin:] if begin else tokens


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
    """The inputs of the model's program, all i32, for sequences whose slots have room for their parts.

    Those of `models.decoder.Batch`; of a model with an encoder those of `models.t5.Answers` and `Prompts`.
    """
    tokens: list[int] = []
    positions: list[int] = []
    rows: list[int] = []
    outputs: list[int] = []
    spans: list[range] = []  # of each part the cells, without those of an encoder's inputs
    for row, (_, slot, inputs, draws) in enumerate(parts):
        n_skipped = slot.n_to_encode
        spans.append(range(slot.n_cells + n_skipped, slot.n_cells + len(inputs)))
        tokens += inputs[n_skipped:] if n_skipped else inputs
        positions += range(spans[-1].start - slot.n_padded, spans[-1].stop - slot.n_padded)
        rows += [row] * len(spans[-1])
        outputs += range(len(tokens) - len(draws), len(tokens))
    named = {"tokens": tokens, "positions": positions, "rows": rows, "outputs": outputs}
    named["cells"] = _cells(cache.pages, [p.slot.table for p in parts], spans)
    if cache.window is not None:
        named["window_cells"] = _cells(cache.window, [p.slot.window for p in parts], spans)
    if cache.rows is not None:
        named["sources"] = [p.slot.state.current for p in parts]
        named["targets"] = [cache.rows.target(p.slot.state, p.slot.n_cells + len(p.tokens)) for p in parts]
    if cache.has_encoder:
        named["n_kept"] = [parts[row].slot.n_source for row in rows]
        named |= _source_arrays(parts, cache)
    # one conversion for all: between two steps each call of numpy begins with a cold cache
    flat = np.array(list(chain.from_iterable(named.values())), np.int32)
    arrays: dict[str, Array] = {}
    begin = 0
    for name, values in named.items():
        arrays[name] = flat[begin : begin + len(values)]
        begin += len(values)
    arrays["n_visible"] = flat[len(tokens) : 2 * len(tokens)] + np.int32(1)  # positions, and oneself
    if cache.has_encoder:
        kept = [part.slot.n_padded // cache.page_size for part in parts]
        arrays["tables"] = _tables([p.slot.table.pages[n:] for p, n in zip(parts, kept, strict=True)])
        arrays["kept_tables"] = _tables([p.slot.table.pages[:n] for p, n in zip(parts, kept, strict=True)])
        arrays["source_tables"] = _source_tables(parts, cache.page_size)
        return arrays
    arrays["tables"] = _tables([part.slot.table.pages for part in parts])
    if cache.window is not None:
        arrays["window_tables"] = _tables([part.slot.window.pages for part in parts])
    return arrays


def _source_arrays(parts: Sequence[Part], cache: Cache) -> dict[str, list[int]]:
    """What an encoder reads: the prompts that begin, each in pages of its own in the encoder's states."""
    names = ("tokens", "positions", "rows", "visible", "cells")
    found: dict[str, list[int]] = {"kept_cells": [], **{f"source_{name}": [] for name in names}}
    begin = 0
    for row, (_, slot, inputs, _) in enumerate(parts):
        n = slot.n_source if slot.n_to_encode else 0
        found["source_tokens"] += inputs[:n]
        found["source_positions"] += range(n)
        found["source_rows"] += [row] * n
        found["source_visible"] += [n] * n
        found["source_cells"] += range(begin, begin + n)
        found["kept_cells"] += cache.pages.cells(slot.table, 0, n)
        begin += slot.n_to_encode
    return found


def _source_tables(parts: Sequence[Part], page_size: int) -> Array:
    """Of the encoder's states, as `_source_arrays` has their cells; as wide as the tables of what is kept."""
    width = max(part.slot.n_padded for part in parts) // page_size
    made = np.zeros((len(parts), width), np.int32)
    begin = 0
    for row, part in enumerate(parts):
        n_pages = part.slot.n_to_encode // page_size
        made[row, :n_pages] = range(begin, begin + n_pages)
        begin += n_pages
    return made


def _cells(pages: Pages, tables: Sequence[Table], spans: Sequence[range]) -> list[int]:
    """The cell of each input."""
    cells: list[int] = []
    for table, span in zip(tables, spans, strict=True):
        cells += pages.cells(table, span.start, span.stop)
    return cells


def _tables(tables: "Sequence[array[int]]") -> Array:
    """[n_seqs, n_pages]; what is not there reads as page 0."""
    made = np.zeros((len(tables), max(len(pages) for pages in tables)), np.int32)
    for row, pages in enumerate(tables):
        if pages:
            made[row, : len(pages)] = np.frombuffer(pages, np.int32)
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
