"""The loop that serves many sequences from one model.

One task owns every sequence and the cache; it composes a batch, has the device's thread run it, and hands the
drawn tokens out.  Nothing it does waits for a reader.  An error that is not one sequence's own goes up and
ends the process: its last words are the traceback.

While a batch computes, the text of the one before is made, and the next one is prepared as far as it can be
known: where every sequence goes on, only the drawn tokens have to be filled in between two batches.
"""

import time
from collections.abc import AsyncGenerator, Callable
from collections.abc import Sequence as SequenceOf
from contextlib import asynccontextmanager
from functools import partial
from typing import NamedTuple

import trio

from actors.errors import ModelError, PeerGone, QueueFull
from actors.protocol import DoneReason, Generate
from actors.runner.batch import Share, Waiting, compose
from actors.runner.cache.cache import Cache
from actors.runner.forward import Drawn, Part, device_of, index_arrays
from actors.runner.groups import NO_GROUPS
from actors.runner.intake import Limits, sequence_of
from actors.runner.model import N_DRAFT_ROWS, Model
from actors.runner.pace import Pace
from actors.runner.roster import Roster
from actors.runner.sequence import Offer, Sequence, refuse
from kernels.executable import Executable
from kernels.ops.op import Array

N_SHORT = 1000  # characters or tokens that are looked at in less time than a thread needs to begin
UNKNOWN_TOKEN = 0  # stands in an input until the token is drawn


class Batch(NamedTuple):
    """What the device gets next; sequences and parts belong together one by one."""

    sequences: SequenceOf[Sequence]
    parts: SequenceOf[Part]
    inputs: dict[str, Array]
    executable: Executable
    n_pending: dict[int, int]  # what it was composed of: inputs of everybody who could run
    start: int  # of the next batch's round over prompts

    @property
    def n_inputs(self) -> int:
        """All that are computed, an encoder's too."""
        return len(self.inputs["tokens"]) + len(self.inputs.get("source_tokens", ()))

    @property
    def n_stream(self) -> int:
        """Inputs of running streams, drafted ones not."""
        return sum(len(part.tokens) - part.n_drafted == 1 for part in self.parts)

    @property
    def leaves_streams_out(self) -> bool:
        """Whether running streams wait for a group that fills it."""
        return self.n_stream == 0 and 1 in self.n_pending.values()

    @property
    def n_drafted(self) -> int:
        """Inputs that were guessed."""
        return sum(part.n_drafted for part in self.parts)


class Engine:
    """Sequences of one allocated model.  `run` serves until `stop`; `open` adds a sequence."""

    def __init__(
        self,
        model: Model,
        max_queue: int,
        *,
        is_speculating: bool = True,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        """clock: seconds; by it batches are timed, nothing else."""
        self._model = model
        self._tokenizer = model.tokenizer  # a prompt may still be tokenised while the model is closed
        self._limits = Limits(
            model.n_ctx, model.n_batch, model.n_vocab, model.hparams.start_token, model.page_size
        )
        self._max_queue = max_queue
        self._clock = clock
        self._cache = Cache(model.cache_shape)
        self._is_speculating = is_speculating and self._cache.can_rewind
        self._roster = Roster(self._cache, model.n_parallel)  # at most max_queue wait in it
        self._n_opening = 0  # prompts that are being tokenised
        self._next_id = 1
        self._start = 0
        self._may_be_alone = True  # a group that does not fit beside streams
        self._pace = Pace(model.n_batch)
        self._wake = trio.Event()
        self._device = device_of(model.backends, self._tokenizer)
        self._ahead: Batch | None = None  # prepared while another computes
        self._untold: list[Sequence] = []  # have tokens whose text is not sent; at most those of a batch
        self._life = trio.CancelScope()
        self._ended_s: float | None = None  # the last batch, while more are waiting
        self.stopped = trio.Event()
        self.n_batches = 0
        self.n_ahead = 0
        self.n_inputs = 0
        self.n_drafted = 0
        self.n_right = 0
        self._n_ended = dict.fromkeys(DoneReason, 0)
        self.gap_s = 0.0

    def gauges(self) -> dict[str, float]:
        """Counters for GetStats."""
        return {
            "sequences_active": len(self._roster.active),
            "sequences_queued": self._roster.n_waiting,
            "sequences_paused_total": self._roster.n_paused_total,
            "cache_pages": self._cache.n_pages,
            "cache_pages_held": self._cache.n_held,
            "batches_total": self.n_batches,
            "batches_prepared_total": self.n_ahead,
            "batch_gap_seconds_total": self.gap_s,
            "inputs_total": self.n_inputs,
            "drafted_tokens_total": self.n_drafted,
            "drafted_tokens_right_total": self.n_right,
            **{f"sequences_ended_total:{reason.value}": n for reason, n in self._n_ended.items()},
        }

    @asynccontextmanager
    async def open(self, request: Generate, offer: Offer = refuse) -> AsyncGenerator[Sequence]:
        """A sequence that is being served while the block runs; leaving the block cancels it.

        What `offer` takes is not received any more.
        RequestError for a prompt that is empty, unknown to the vocabulary, too long or wrongly grouped;
        QueueFull; PeerGone when the engine has stopped.
        """
        if self._roster.n_waiting + self._n_opening >= self._max_queue + self._roster.n_free:
            raise QueueFull("server busy, please try again.  maximum pending requests exceeded")
        seq_id, self._next_id = self._next_id, self._next_id + 1
        self._n_opening += 1
        try:
            make = partial(sequence_of, request, seq_id, offer, self._tokenizer, self._limits)
            # tokenising a long text takes a while; the loop must not wait for it
            is_short = len(request.prompt) + len(request.resume) + len(request.groups) <= N_SHORT
            sequence = make() if is_short else await trio.to_thread.run_sync(make)
        finally:
            self._n_opening -= 1
        if self.stopped.is_set():
            raise self._parting()
        reason = sequence.end_before()
        if reason is not None:
            sequence.end(reason)
        else:
            self._roster.add(sequence)
            self._wake.set()
        try:
            yield sequence
        finally:  # the reader is gone or satisfied
            self._roster.remove(sequence)
            self._n_ended[sequence.reason or DoneReason.CANCELLED] += 1
            self._wake.set()

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
                        self._ended_s = None
                        await self._wake.wait()
        finally:
            self._hand_out()
            for sequence in self._roster:
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
        self._start, self._may_be_alone = batch.start, not batch.leaves_streams_out
        began_s = self._clock()
        if self._ended_s is not None:
            self.gap_s += began_s - self._ended_s
        meanwhile = partial(self._while_computing, batch)
        drawn = await self._device.step(batch.executable, batch.inputs, batch.parts, meanwhile)
        self._ended_s = self._clock()
        n_inputs = batch.n_inputs
        n_stream = batch.n_stream
        n_prompt = n_inputs - n_stream - batch.n_drafted
        self._pace.observe(n_stream, n_prompt, self._ended_s - began_s, batch.n_drafted)
        self.n_batches += 1
        self.n_inputs += n_inputs
        left = iter(drawn)
        for sequence, part in zip(batch.sequences, batch.parts, strict=True):
            mine = [next(left) for _ in part.draws]
            if mine and self._roster.holds(sequence):  # else cancelled while the batch ran
                self._take(sequence, part, mine)

    def _while_computing(self, batch: Batch) -> None:
        """Send the text of the tokens before, and prepare the next batch."""
        for part in batch.parts:
            if not part.n_drafted:
                # batches run in order: what reads these cells is later
                self._cache.advance(part.slot, part.tokens)
        self._hand_out()
        self._ahead = self._look_ahead(batch)

    def _take(self, sequence: Sequence, part: Part, drawn: SequenceOf[Drawn]) -> None:
        """Take the tokens drawn, of drafted ones as many as were guessed right and the one after."""
        if not part.n_drafted:
            self._take_token(sequence, drawn[0])
            return
        guesses = part.tokens[len(part.tokens) - part.n_drafted :]
        n_right = 0
        for guess, one in zip(guesses, drawn, strict=False):
            if one.error or one.token != guess:
                break
            n_right += 1
        self.n_drafted += part.n_drafted
        self.n_right += n_right
        sequence.lookup.judge(part.n_drafted, n_right)
        # the cells of wrong guesses are written again by what comes next
        self._cache.advance(part.slot, part.tokens[: len(part.tokens) - part.n_drafted + n_right])
        for one in drawn[: n_right + 1]:
            if self._roster.holds(sequence):
                self._take_token(sequence, one)

    def _take_token(self, sequence: Sequence, drawn: Drawn) -> None:
        if drawn.error:
            sequence.fail(
                ModelError(f"the model computed no usable probabilities: {drawn.error}", where="runner")
            )
        elif sequence.n_limit <= sequence.n_drawn:
            sequence.end(DoneReason.LIMIT)  # nothing was to be predicted
        else:
            sequence.take(drawn, self._tokenizer.eog_ids)
            if sequence not in self._untold:
                self._untold.append(sequence)
            if not sequence.is_done and len(sequence.history) > sequence.n_most:
                self._roster.make_room(sequence)
        if sequence.is_done:  # its reader may be slow; others need not wait for that
            self._roster.remove(sequence)

    def _hand_out(self) -> None:
        """Send what the last batch drew."""
        for sequence in self._untold:
            sequence.tell()
        self._untold.clear()

    def _compose(self) -> Batch | None:
        """Whoever has inputs to compute and keeps up; None when nobody has."""
        self._roster.admit()
        while n_pending := self._n_pending():
            shares, start = self._shares(n_pending, self._start, may_be_alone=self._may_be_alone)
            n_inputs = {share.seq_id: share.n_inputs for share in shares}
            # the oldest first: whoever has to give way is younger
            for seq_id in sorted(n_inputs):
                sequence = self._roster.active.get(seq_id)
                # without a place it was paused for one of those before
                n_inputs[seq_id] = self._roster.grow(sequence, n_inputs[seq_id]) if sequence else 0
            parts = [self._part(seq_id, n, n_pending[seq_id]) for seq_id, n in n_inputs.items() if n]
            if parts:
                return self._batch(self._with_drafts(parts), n_pending, start)
            # all whose turn it was had to be paused for those whose turn it was not
        return None

    def _n_pending(self) -> dict[int, int]:
        """Inputs of everybody who can run."""
        return {seq_id: s.n_pending for seq_id, s in self._roster.active.items() if s.can_run}

    def _shares(
        self, n_pending: dict[int, int], start: int, *, may_be_alone: bool
    ) -> tuple[list[Share], int]:
        waiting = [self._waiting(self._roster.active[seq_id], n) for seq_id, n in n_pending.items()]
        n_batch, n_prompt = self._model.n_batch, self._pace.n_prompt
        shares, start = compose(waiting, n_batch, start, n_prompt, may_be_alone=may_be_alone)
        return [self._cut(share, n_pending[share.seq_id]) for share in shares], start

    def _waiting(self, sequence: Sequence, n_pending: int) -> Waiting:
        assert sequence.slot is not None, "who has none cannot run"
        is_stream = n_pending == 1
        groups = NO_GROUPS if is_stream else sequence.groups.since(sequence.slot.n_cells)
        return Waiting(sequence.seq_id, n_pending, groups)

    def _cut(self, share: Share, n_pending: int) -> Share:
        """Of a share what the cache wants in one batch, unless that would cut its first group."""
        sequence = self._roster.active[share.seq_id]
        slot = sequence.slot
        assert slot is not None
        n_wanted = self._cache.n_inputs(slot, share.n_inputs, n_pending)
        n_inputs = sequence.n_uncut(n_wanted) or share.n_inputs
        return Share(share.seq_id, n_inputs, n_inputs == n_pending)

    def _part(self, seq_id: int, n_inputs: int, n_pending: int) -> Part:
        """The next n_inputs of a sequence, for which its slot has room."""
        sequence = self._roster.active[seq_id]
        slot = sequence.slot
        assert slot is not None
        tokens = sequence.history[slot.n_cells : slot.n_cells + n_inputs]
        return Part(sequence.seq_id, slot, tokens, [sequence.draw()] if n_inputs == n_pending else ())

    def _batch(self, parts: SequenceOf[Part], n_pending: dict[int, int], start: int) -> Batch:
        inputs = index_arrays(parts, self._cache)
        n_source = len(inputs.get("source_tokens", ()))
        executable = self._model.executable(len(inputs["tokens"]), len(inputs["outputs"]), n_source)
        sequences = [self._roster.active[part.seq_id] for part in parts]
        return Batch(sequences, parts, inputs, executable, n_pending, start)

    # --- speculation ---------------------------------------------------------------------------------------

    def _with_drafts(self, parts: list[Part]) -> list[Part]:
        """The parts, those of running streams with what may follow, as far as batch and cells have room."""
        n_left = min(N_DRAFT_ROWS, self._model.n_batch - sum(len(part.tokens) for part in parts))
        if not self._is_speculating:
            return parts
        result: list[Part] = []
        for part in parts:
            drafted = self._draft(part, n_left)
            n_left -= len(drafted)
            result.append(self._drafted(part, drafted) if drafted else part)
        return result

    def _draft(self, part: Part, n_most: int) -> SequenceOf[int]:
        """What may follow a stream's next input."""
        sequence = self._roster.active[part.seq_id]
        if not part.draws or len(part.tokens) != 1:
            return ()
        n_most = min(
            n_most,
            sequence.n_limit - sequence.n_drawn - 1,  # each draw but the last is followed by another
            sequence.n_most - part.slot.n_cells - 1,
            self._cache.n_room(part.slot) - 1,
        )
        return sequence.lookup.draft(sequence.history, n_most, self._pace.input_cost)

    def _drafted(self, part: Part, drafted: SequenceOf[int]) -> Part:
        sequence = self._roster.active[part.seq_id]
        if not self._cache.extend(part.slot, 1 + len(drafted)):
            return part
        draws = [sequence.draw(drafted=drafted[:n]) for n in range(len(drafted) + 1)]
        return Part(part.seq_id, part.slot, [*part.tokens, *drafted], draws)

    # --- the batch after this one --------------------------------------------------------------------------

    def _look_ahead(self, batch: Batch) -> Batch | None:
        """The batch after this one, but for the tokens that this one draws; None where those decide it."""
        if batch.n_drafted:
            return None
        drawing = {part.seq_id for part in batch.parts if part.draws}
        n_pending = {seq_id: n + (seq_id in drawing) for seq_id, n in self._n_pending().items()}
        may_be_alone = not batch.leaves_streams_out
        shares, start = self._shares(n_pending, batch.start, may_be_alone=may_be_alone)
        parts: list[Part] = []
        for seq_id, n_inputs, is_last in shares:
            sequence = self._roster.active[seq_id]
            slot = sequence.slot
            assert slot is not None
            if slot.n_cells + n_inputs > sequence.n_most or not self._cache.extend(slot, n_inputs):
                return None
            tokens = sequence.history[slot.n_cells : slot.n_cells + n_inputs] or (UNKNOWN_TOKEN,)
            draws = [sequence.draw(n_ahead=seq_id in drawing)] if is_last else ()
            parts.append(Part(seq_id, slot, tokens, draws))
        return self._batch(parts, n_pending, start) if parts else None

    def _follow_up(self) -> Batch | None:
        """The batch that was prepared, its tokens filled in; None where another would be composed now."""
        ahead, self._ahead = self._ahead, None
        if ahead is None:
            return None
        self._roster.admit()
        if self._n_pending() != ahead.n_pending:
            return None
        parts: list[Part] = []
        begin = 0
        for sequence, part in zip(ahead.sequences, ahead.parts, strict=True):
            if sequence.slot is not part.slot:
                return None
            tokens = sequence.history[part.slot.n_cells : part.slot.n_cells + len(part.tokens)]
            n_skipped = part.slot.n_to_encode  # those are known before
            n_inputs = len(tokens) - n_skipped
            ahead.inputs["tokens"][begin : begin + n_inputs] = tokens[n_skipped:]
            parts.append(part._replace(tokens=tokens))
            begin += n_inputs
        with_drafts = self._with_drafts(parts)
        if with_drafts != parts:
            return self._batch(with_drafts, ahead.n_pending, ahead.start)
        self.n_ahead += 1
        return ahead._replace(parts=parts)
