"""One sequence: a prompt, what was generated after it, and where it stands."""

import time
from collections import deque
from collections.abc import Callable
from collections.abc import Sequence as SequenceOf
from dataclasses import dataclass, field

import trio

from actors.errors import RuntimeFault
from actors.protocol import Chunk, DoneReason, Finished, Generate
from actors.runner.cache.cache import Slot
from actors.runner.context import shift
from actors.runner.forward import Draw, Drawn
from actors.runner.groups import NO_GROUPS, Groups
from actors.runner.lookup import Lookup
from actors.runner.output import Output
from actors.runner.repetition import LOOK_EVERY, repeats
from kernels.ops.sampling import SamplingParams

Offer = Callable[["Chunk | Finished"], bool]
"""Takes an item for the reader at once, or gives False: then the reader has to receive it."""

MAX_UNSENT = 32  # chunks a reader may lag behind before its sequence is left out of batches
MAX_PREDICT_CONTEXTS = 10  # an unlimited answer ends after this many context lengths, as Ollama's does


def refuse(item: Chunk | Finished) -> bool:
    """An Offer that takes nothing."""
    del item
    return False


@dataclass(slots=True, eq=False)
class Sequence:
    """Owned by the engine; a reader gets what `offer` takes, and receives the rest."""

    seq_id: int
    request: Generate
    params: SamplingParams  # with a definite seed
    history: list[int]  # every input in order: computed ones, pending ones, generated ones
    groups: Groups  # of the history
    n_prompt: int
    n_dropped: int
    n_limit: int
    n_ctx: int  # positions it may use: what the request asked for, as far as the model has them
    output: Output
    offer: Offer
    n_source: int = 0  # of the prompt, what an encoder reads: all of it or nothing
    n_padded: int = 0  # inputs until the decoder's: with those that fill a page
    lookup: Lookup = field(default_factory=Lookup)
    slot: Slot | None = None
    n_cached: int = 0
    n_predicted: int = 0
    n_drawn: int = 0  # tokens ever drawn, also by runners before this one: the position of the next draw
    error: RuntimeFault | None = None
    drawn: list[Drawn] = field(default_factory=list[Drawn])  # tokens whose text is not made yet
    reason: DoneReason | None = None  # why it is done; it may still have to be told
    is_told: bool = False  # the counts and the reason were sent
    unsent: deque[Chunk | Finished] = field(default_factory=deque["Chunk | Finished"])
    is_in_hand: bool = False  # the reader has received an item that may still wait for room
    is_over: bool = False  # the last item was offered and taken
    changed: trio.Event = field(default_factory=trio.Event)
    opened_s: float = field(default_factory=time.monotonic)
    started_s: float = 0.0
    first_s: float = 0.0

    @property
    def is_done(self) -> bool:
        """Nothing more is computed; the last words may still have to be told."""
        return self.reason is not None

    @property
    def n_most(self) -> int:
        """Inputs that it may have: the context's, behind an encoder of the decoder alone."""
        return self.n_padded + self.n_ctx

    @property
    def n_pending(self) -> int:
        """Inputs that are not computed yet."""
        return len(self.history) - (self.slot.n_cells if self.slot else 0)

    def n_uncut(self, n_inputs: int) -> int:
        """Of the next n_inputs those before a group that would be cut."""
        n_cells = self.slot.n_cells if self.slot else 0
        return self.groups.before(n_cells + n_inputs) - n_cells

    def shift(self) -> None:
        """Drop the oldest half after n_keep: the context is full.  What an encoder reads stays."""
        if not self.n_padded:
            self.history, self.groups = shift(self.history, self.groups, self.n_ctx, self.request.n_keep)
            return
        n_keep = self.request.n_keep or 1  # the token that a decoder begins with
        answer, _ = shift(self.history[self.n_padded :], NO_GROUPS, self.n_ctx, n_keep)
        self.history = [*self.history[: self.n_padded], *answer]

    @property
    def keeps_up(self) -> bool:
        """Whether its reader does, so that it may be computed."""
        return len(self.unsent) < MAX_UNSENT

    @property
    def can_run(self) -> bool:
        """Whether the next batch may take it: it has a slot, and its reader keeps up."""
        return self.slot is not None and not self.is_done and self.keeps_up

    def end_before(self) -> DoneReason | None:
        """Why a resumed sequence has nothing left to draw: the runner before died on its last words."""
        if not self.request.resume:
            return None
        if self.output.stop_string:
            return DoneReason.STOP_STRING
        if self.n_drawn >= self.n_limit:
            return DoneReason.LIMIT
        if self._is_looping():
            return DoneReason.REPETITION
        return DoneReason.CONTEXT if len(self.history) > self.n_most else None

    def start(self, n_cached: int) -> None:
        """It has a slot, with so many inputs computed before; waiting ends here, but for later pauses."""
        if not self.started_s:
            self.started_s = time.monotonic()
            self.n_cached = n_cached

    def draw(self, n_ahead: int = 0, drafted: SequenceOf[int] = ()) -> Draw:
        """How the next token is to be drawn, or the one that comes n_ahead later, after drafted ones."""
        position = self.n_prompt + self.n_drawn + n_ahead + len(drafted)
        return Draw(self.params, self.history, position, self.request.n_logprobs, drafted, self.n_padded)

    def take(self, drawn: Drawn, eog_ids: frozenset[int]) -> None:
        """A token was drawn: append it, or end.  `tell` makes text of it."""
        self.first_s = self.first_s or time.monotonic()
        self.n_predicted += 1
        self.n_drawn += 1
        if drawn.token in eog_ids and not self.request.ignore_eos:
            self._stop(DoneReason.EOS)
            return
        self.history.append(drawn.token)
        self.drawn.append(drawn)
        if self.n_drawn >= self.n_limit:
            self._stop(DoneReason.LIMIT)
        elif self._is_looping():
            self._stop(DoneReason.REPETITION)
        elif self.request.stop:
            self.tell()  # only the text says whether it goes on

    def tell(self) -> None:
        """Make text of the tokens taken and send it; a second call does nothing."""
        for drawn in self.drawn:
            self._send(self.output.push(drawn.token, drawn.logprob))
        self.drawn.clear()
        if self.output.stop_string:
            self._stop(DoneReason.STOP_STRING)
        if self.reason is not None and not self.is_told:
            self.is_told = True
            self._say_finished()

    def _is_looping(self) -> bool:
        """Of what was generated, not of what was asked; looked at now and then, at the same tokens always."""
        n_most = self.request.max_repetition
        return (
            0 < n_most <= self.n_drawn
            and self.n_drawn % LOOK_EVERY == 0
            and repeats(self.history[-n_most:], n_most)
        )

    def end(self, reason: DoneReason) -> None:
        """Nothing more is to be drawn: send what is held and the counts."""
        self._stop(reason)
        self.tell()

    def _stop(self, reason: DoneReason) -> None:
        self.reason = self.reason or reason

    def _say_finished(self) -> None:
        """The last allowed token may complete a stop string while what is held is sent."""
        self._send(self.output.flush())
        if self.output.stop_string:
            self.reason = DoneReason.STOP_STRING
        assert self.reason is not None
        now_s = time.monotonic()
        started_s = self.started_s or now_s
        first_s = self.first_s or now_s
        self._send(
            Finished(
                reason=self.reason,
                prompt_tokens=self.n_prompt,
                cached_tokens=self.n_cached,
                dropped_tokens=self.n_dropped,
                predicted_tokens=self.n_predicted,
                queue_s=started_s - self.opened_s,
                prompt_s=first_s - started_s,
                predict_s=now_s - first_s,
                stop_string=self.output.stop_string,
                context=tuple(self._said()),
            )
        )

    def _said(self) -> SequenceOf[int]:
        """Prompt and answer; behind an encoder without what stands between them."""
        if not self.n_padded:
            return self.history
        return [*self.history[: self.n_source], *self.history[self.n_padded + 1 :]]

    def fail(self, error: RuntimeFault) -> None:
        """End with an error that concerns this sequence alone."""
        self.tell()
        self.error = error
        self._stop(DoneReason.ERROR)
        self.is_told = True
        self._wake_reader()

    async def receive(self) -> Chunk | Finished:
        """The next item; raises the sequence's error once everything before it was taken.

        trio.EndOfChannel when the last item was taken by `offer`.
        """
        self.is_in_hand = False
        while not self.unsent:
            if self.error is not None:
                raise self.error
            if self.is_over:
                raise trio.EndOfChannel
            await self.changed.wait()
        self.is_in_hand = True
        return self.unsent.popleft()

    def _send(self, item: Chunk | Finished | None) -> None:
        if item is None:
            return
        # what the reader has not passed on yet comes first
        if self.unsent or self.is_in_hand or not self.offer(item):
            self.unsent.append(item)
            self._wake_reader()
        elif isinstance(item, Finished):
            self.is_over = True
            self._wake_reader()

    def _wake_reader(self) -> None:
        self.changed.set()
        self.changed = trio.Event()
