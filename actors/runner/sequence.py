"""One sequence: a prompt, what was generated after it, and where it stands."""

import time
from collections import deque
from dataclasses import dataclass, field

import trio

from actors.errors import RuntimeFault
from actors.protocol import Chunk, DoneReason, Finished, Generate
from actors.runner.cache.causal import Slot
from actors.runner.forward import Draw, Drawn
from actors.runner.output import Output
from kernels.ops.sampling import SamplingParams

MAX_UNSENT = 32  # chunks a reader may lag behind before its sequence is left out of batches
MAX_PREDICT_CONTEXTS = 10  # an unlimited answer ends after this many context lengths, as Ollama's does


@dataclass(slots=True, eq=False)
class Sequence:
    """Owned by the engine; a reader takes from `unsent`."""

    seq_id: int
    request: Generate
    params: SamplingParams  # with a definite seed
    history: list[int]  # every input in order: computed ones, pending ones, generated ones
    n_prompt: int
    n_dropped: int
    n_limit: int
    output: Output
    slot: Slot | None = None
    n_cached: int = 0
    n_predicted: int = 0
    n_drawn: int = 0  # tokens ever drawn, also by runners before this one: the position of the next draw
    is_done: bool = False
    error: RuntimeFault | None = None
    unsent: deque[Chunk | Finished] = field(default_factory=deque["Chunk | Finished"])
    changed: trio.Event = field(default_factory=trio.Event)
    opened_s: float = field(default_factory=time.monotonic)
    started_s: float = 0.0
    first_s: float = 0.0

    @property
    def n_pending(self) -> int:
        """Inputs that are not computed yet."""
        return len(self.history) - (self.slot.n_cells if self.slot else 0)

    @property
    def can_run(self) -> bool:
        """Whether the next batch may take it: it has a slot, and its reader keeps up."""
        return self.slot is not None and not self.is_done and len(self.unsent) < MAX_UNSENT

    def end_before(self, n_ctx: int) -> DoneReason | None:
        """Why a resumed sequence has nothing left to draw: the runner before died on its last words."""
        if not self.request.resume:
            return None
        if self.output.stop_string:
            return DoneReason.STOP_STRING
        if self.n_drawn >= self.n_limit:
            return DoneReason.LIMIT
        return DoneReason.CONTEXT if len(self.history) > n_ctx else None

    def start(self) -> None:
        """It has a slot from now on; waiting ends here."""
        self.started_s = time.monotonic()

    def draw(self) -> Draw:
        """How the next token is to be drawn."""
        return Draw(self.params, self.history, self.n_prompt + self.n_drawn, self.request.n_logprobs)

    def take(self, drawn: Drawn, eog_ids: frozenset[int]) -> None:
        """A token was drawn: append it, or end."""
        now_s = time.monotonic()
        self.first_s = self.first_s or now_s
        self.n_predicted += 1
        self.n_drawn += 1
        if drawn.token in eog_ids:
            self.end(DoneReason.EOS)
            return
        self.history.append(drawn.token)
        self._send(self.output.push(drawn.token, drawn.logprob))
        if self.output.stop_string:
            self.end(DoneReason.STOP_STRING)
        elif self.n_drawn >= self.n_limit:
            self.end(DoneReason.LIMIT)

    def end(self, reason: DoneReason) -> None:
        """Send what is held and the counts; the last allowed token may complete a stop string meanwhile."""
        self._send(self.output.flush())
        if self.output.stop_string:
            reason = DoneReason.STOP_STRING
        now_s = time.monotonic()
        started_s = self.started_s or now_s
        first_s = self.first_s or now_s
        self._send(
            Finished(
                reason=reason,
                prompt_tokens=self.n_prompt,
                cached_tokens=self.n_cached,
                dropped_tokens=self.n_dropped,
                predicted_tokens=self.n_predicted,
                queue_s=started_s - self.opened_s,
                prompt_s=first_s - started_s,
                predict_s=now_s - first_s,
                stop_string=self.output.stop_string,
                context=tuple(self.history),
            )
        )
        self.is_done = True

    def fail(self, error: RuntimeFault) -> None:
        """End with an error that concerns this sequence alone."""
        self.error = error
        self.is_done = True
        self._tell()

    async def receive(self) -> Chunk | Finished:
        """The next item; raises the sequence's error once everything before it was taken."""
        while not self.unsent:
            if self.error is not None:
                raise self.error
            await self.changed.wait()
        return self.unsent.popleft()

    def _send(self, item: Chunk | Finished | None) -> None:
        if item is not None:
            self.unsent.append(item)
            self._tell()

    def _tell(self) -> None:
        self.changed.set()
        self.changed = trio.Event()
