"""The loop that serves many sequences from one model.

One task owns every sequence and the cache; it composes a batch, has the device's thread run it, and hands the
drawn tokens out.  Nothing it does waits for a reader.  An error that is not one sequence's own goes up and
ends the process: its last words are the traceback.

While a batch computes, the text of the one before is made, and the next one is prepared as far as it can be
known: where every sequence goes on, only the drawn tokens have to be filled in between two batches.
"""

from collections import deque
from collections.abc import AsyncGenerator
from collections.abc import Sequence as SequenceOf
from contextlib import asynccontextmanager
from functools import partial
from typing import NamedTuple

import trio

from actors.errors import ModelError, PeerGone, QueueFull
from actors.protocol import DoneReason, Generate
from actors.runner.batch import Waiting, compose
from actors.runner.cache.causal import CausalCache
from actors.runner.context import shift
from actors.runner.forward import Drawn, Part, device_of, index_arrays
from actors.runner.intake import sequence_of
from actors.runner.model import Model
from actors.runner.sequence import Offer, Sequence, refuse
from kernels.executable import Executable
from kernels.ops.op import Array

UNKNOWN_TOKEN = 0  # stands in an input until the token is drawn


class Batch(NamedTuple):
    """What the device gets next; sequences and parts belong together one by one."""

    sequences: SequenceOf[Sequence]
    parts: SequenceOf[Part]
    inputs: dict[str, Array]
    executable: Executable


class Engine:
    """Sequences of one allocated model.  `run` serves until `stop`; `open` adds a sequence."""

    def __init__(self, model: Model, max_queue: int) -> None:
        self._model = model
        self._tokenizer = model.tokenizer  # a prompt may still be tokenised while the model is closed
        self._max_queue = max_queue
        self._cache = CausalCache(model.n_pages, model.page_size)
        self._queue: deque[Sequence] = deque()  # bounded by max_queue
        self._active: dict[int, Sequence] = {}  # bounded by the model's n_parallel
        self._n_opening = 0  # prompts that are being tokenised
        self._next_id = 1
        self._start = 0
        self._wake = trio.Event()
        self._device = device_of(model.backends, self._tokenizer)
        self._ahead: Batch | None = None  # prepared while another computes
        self._untold: list[Sequence] = []  # have tokens whose text is not sent; at most those of a batch
        self._life = trio.CancelScope()
        self.stopped = trio.Event()
        self.n_batches = 0
        self.n_inputs = 0

    def gauges(self) -> dict[str, float]:
        """Counters for GetStats."""
        return {
            "sequences_active": len(self._active),
            "sequences_queued": len(self._queue),
            "cache_pages": self._cache.n_pages,
            "cache_pages_held": self._cache.n_held,
            "batches_total": self.n_batches,
            "inputs_total": self.n_inputs,
        }

    @asynccontextmanager
    async def open(self, request: Generate, offer: Offer = refuse) -> AsyncGenerator[Sequence]:
        """A sequence that is being served while the block runs; leaving the block cancels it.

        What `offer` takes is not received any more.
        RequestError for a prompt that is empty, unknown to the vocabulary or too long; QueueFull; PeerGone
        when the engine has stopped.
        """
        n_free = self._model.n_parallel - len(self._active)
        if len(self._queue) + self._n_opening >= self._max_queue + n_free:
            raise QueueFull("server busy, please try again.  maximum pending requests exceeded")
        seq_id, self._next_id = self._next_id, self._next_id + 1
        self._n_opening += 1
        try:
            # tokenising a long text takes a while; the loop must not wait for it
            sequence = await trio.to_thread.run_sync(
                sequence_of, request, seq_id, offer, self._tokenizer, self._model.n_ctx, self._model.n_vocab
            )
        finally:
            self._n_opening -= 1
        if self.stopped.is_set():
            raise self._parting()
        reason = sequence.end_before(self._model.n_ctx)
        if reason is not None:
            sequence.end(reason)
        else:
            self._queue.append(sequence)
            self._wake.set()
        try:
            yield sequence
        finally:
            self._remove(sequence)

    def resume(self) -> None:
        """A reader took something: its sequence may run again."""
        self._wake.set()

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Serve until `stop`, or cancelled; then `stopped` is set and every sequence has ended."""
        try:
            with self._life:
                task_status.started()
                while True:
                    await trio.lowlevel.checkpoint_if_cancelled()  # a step cannot be cut short
                    self._wake = trio.Event()
                    batch = self._follow_up() or self._compose()
                    if batch is not None:
                        await self._step(batch)
                    else:
                        self._hand_out()
                        await self._wake.wait()
        finally:
            self._hand_out()
            for sequence in (*self._active.values(), *self._queue):
                sequence.fail(self._parting())
            self.stopped.set()

    async def stop(self) -> None:
        """End `run`, which has been started; returns when the last batch has left the device."""
        self._life.cancel()
        await self.stopped.wait()

    def _parting(self) -> PeerGone:
        what = "the model was unloaded" if self._life.cancel_called else "the runner is ending"
        return PeerGone(what, where="runner", mend="send the request again")

    async def _step(self, batch: Batch) -> None:
        meanwhile = partial(self._while_computing, batch)
        drawn = await self._device.step(batch.executable, batch.inputs, batch.parts, meanwhile)
        self.n_batches += 1
        self.n_inputs += len(batch.inputs["tokens"])
        wanted = [s for s, part in zip(batch.sequences, batch.parts, strict=True) if part.draw is not None]
        for sequence, token in zip(wanted, drawn, strict=True):
            if self._active.get(sequence.seq_id) is sequence:  # else cancelled while the batch ran
                self._take(sequence, token)

    def _while_computing(self, batch: Batch) -> None:
        """Send the text of the tokens before, and prepare the next batch."""
        for part in batch.parts:
            # batches run in order: what reads these cells is later
            self._cache.advance(part.slot, part.tokens)
        self._hand_out()
        self._ahead = self._look_ahead(batch)

    def _look_ahead(self, batch: Batch) -> Batch | None:
        """The batch after this one, but for its tokens; None unless this one draws for every sequence."""
        if len(batch.parts) < len(self._active) or any(part.draw is None for part in batch.parts):
            return None
        parts: list[Part] = []
        for sequence, (seq_id, slot, _, _) in zip(batch.sequences, batch.parts, strict=True):
            if slot.n_cells >= self._model.n_ctx or not self._cache.extend(slot, 1):
                return None
            parts.append(Part(seq_id, slot, (UNKNOWN_TOKEN,), sequence.draw(n_ahead=1)))
        return self._batch(batch.sequences, parts)

    def _follow_up(self) -> Batch | None:
        """The batch that was prepared, its tokens filled in; None unless exactly its sequences go on."""
        ahead, self._ahead = self._ahead, None
        if ahead is None or len(ahead.sequences) != len(self._active):
            return None
        if self._queue and len(self._active) < self._model.n_parallel:
            return None
        tokens: list[int] = []
        for sequence, part in zip(ahead.sequences, ahead.parts, strict=True):
            is_here = self._active.get(part.seq_id) is sequence and sequence.slot is part.slot
            if not (is_here and sequence.can_run):
                return None
            tokens.append(sequence.history[-1])
        ahead.inputs["tokens"][:] = tokens
        parts = [
            Part(p.seq_id, p.slot, (token,), p.draw) for p, token in zip(ahead.parts, tokens, strict=True)
        ]
        return ahead._replace(parts=parts)

    def _hand_out(self) -> None:
        """Send what the last batch drew."""
        for sequence in self._untold:
            sequence.tell()
        self._untold.clear()

    def _take(self, sequence: Sequence, drawn: Drawn) -> None:
        if drawn.error:
            sequence.fail(
                ModelError(f"the model computed no usable probabilities: {drawn.error}", where="runner")
            )
        elif sequence.n_limit <= sequence.n_drawn:
            sequence.end(DoneReason.LIMIT)  # nothing was to be predicted
        else:
            sequence.take(drawn, self._tokenizer.eog_ids)
            self._untold.append(sequence)
            if not sequence.is_done and len(sequence.history) > self._model.n_ctx:
                self._make_room(sequence)
        if sequence.is_done:  # its reader may be slow; others need not wait for that
            del self._active[sequence.seq_id]
            self._free(sequence)

    def _make_room(self, sequence: Sequence) -> None:
        """The context is full: stop, or drop the oldest half after n_keep and compute the rest again."""
        if not sequence.request.shift:
            sequence.end(DoneReason.CONTEXT)
            return
        sequence.history = shift(sequence.history, self._model.n_ctx, sequence.request.n_keep)
        self._free(sequence)
        sequence.slot = self._cache.open(sequence.history)

    def _compose(self) -> Batch | None:
        """Whoever has inputs to compute and keeps up; None when nobody has."""
        self._admit()
        parts = self._next_parts()
        return self._batch([self._active[part.seq_id] for part in parts], parts) if parts else None

    def _batch(self, sequences: SequenceOf[Sequence], parts: SequenceOf[Part]) -> Batch:
        inputs = index_arrays(parts, self._cache)
        executable = self._model.executable(len(inputs["tokens"]), len(inputs["outputs"]))
        return Batch(sequences, parts, inputs, executable)

    def _next_parts(self) -> list[Part]:
        runnable = {s.seq_id: s for s in self._active.values() if s.can_run}
        waiting = [Waiting(s.seq_id, s.n_pending) for s in runnable.values()]
        shares, self._start = compose(waiting, self._model.n_batch, self._start)
        parts: list[Part] = []
        for share in shares:
            sequence = runnable[share.seq_id]
            slot = sequence.slot
            assert slot is not None
            if not self._cache.extend(slot, share.n_inputs):
                raise AssertionError("the pool holds n_ctx cells for each of n_parallel sequences")
            tokens = sequence.history[slot.n_cells : slot.n_cells + share.n_inputs]
            parts.append(Part(share.seq_id, slot, tokens, sequence.draw() if share.is_last else None))
        return parts

    def _admit(self) -> None:
        """Give slots to the sequences that wait longest."""
        while self._queue and len(self._active) < self._model.n_parallel:
            sequence = self._queue.popleft()
            sequence.slot = self._cache.open(sequence.history)
            sequence.n_cached = sequence.slot.n_cells
            sequence.start()
            self._active[sequence.seq_id] = sequence

    def _remove(self, sequence: Sequence) -> None:
        """The reader is gone or satisfied; slot and place come back on every path."""
        if sequence in self._queue:
            self._queue.remove(sequence)
        self._active.pop(sequence.seq_id, None)
        self._free(sequence)
        self._wake.set()

    def _free(self, sequence: Sequence) -> None:
        if sequence.slot is not None:
            self._cache.release(sequence.slot)
            sequence.slot = None
