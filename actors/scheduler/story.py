"""What is remembered of one load: figures it saw, rounds of its layout, evictions it considered."""

from collections import deque
from collections.abc import Collection, Sequence
from typing import Literal

from actors.protocol import (
    Device,
    EvictionCandidate,
    EvictionRound,
    LayoutRound,
    LoadDecision,
    LoadOptions,
    MemoryReport,
    ModelSpec,
)
from actors.scheduler.eviction import Candidate, cost
from actors.scheduler.layout import Placement
from actors.scheduler.sizes import held_by
from actors.scheduler.steps import Accept, Evict, Refuse, Step, Try, step_text

N_ROUNDS = 64  # a layout settles well before; a load that waits for room fits again and again
N_EVICTIONS = 32

Outcome = Literal["loading", "loaded", "refused", "cancelled"]


class Story:
    """Grows while the load goes on; bounded, the oldest rounds are forgotten.  Times: seconds since 1970."""

    def __init__(self, model: ModelSpec, options: LoadOptions, began_at: float) -> None:
        self._model = model
        self._options = options
        self._began_at = began_at
        self._ended_at: float | None = None
        self._outcome: Outcome = "loading"
        self._message = "about to load"
        self._devices: tuple[Device, ...] = ()
        self._rounds: deque[LayoutRound] = deque(maxlen=N_ROUNDS)
        self._evictions: deque[EvictionRound] = deque(maxlen=N_EVICTIONS)

    def waits(self, message: str) -> None:
        """What it is at, or waits for."""
        self._message = message

    def round(
        self,
        question: Literal["fit", "alloc"],
        placement: Placement,
        devices: Sequence[Device],
        report: MemoryReport,
        step: Step,
    ) -> None:
        """The runner answered a question about this placement, and this follows."""
        self._devices = tuple(devices)
        self._rounds.append(
            LayoutRound(
                question=question,
                placement=placement,
                n_ctx=report.n_ctx,
                free_bytes={device.id: device.free_bytes for device in devices},
                need_bytes={device: held.bytes for device, held in held_by(report).items()},
                outcome=_outcome(step),
                reason=step_text(step),
            )
        )

    def eviction(
        self,
        device: str,
        shortage_bytes: int,
        candidates: Sequence[Candidate],
        chosen: Collection[str],
        outcome: str,
        now_s: float,
    ) -> None:
        """A look for room; `chosen` are digests.  The same look again replaces the one before."""
        made = EvictionRound(
            device=device,
            shortage_bytes=shortage_bytes,
            candidates=tuple(_candidate(one, one.digest in chosen, now_s) for one in candidates),
            outcome=outcome,
        )
        last = self._evictions[-1] if self._evictions else None
        if last is not None and (last.device, last.outcome) == (device, outcome):
            self._evictions.pop()
        self._evictions.append(made)

    def end(self, outcome: Outcome, message: str, now: float) -> None:
        """How it went."""
        self._outcome, self._message, self._ended_at = outcome, message, now

    def told(self, now: float) -> LoadDecision:
        """As it crosses the socket."""
        return LoadDecision(
            model=self._model,
            options=self._options,
            began_at=self._began_at,
            took_s=(now if self._ended_at is None else self._ended_at) - self._began_at,
            outcome=self._outcome,
            message=self._message,
            devices=self._devices,
            rounds=tuple(self._rounds),
            evictions=tuple(self._evictions),
        )


def _outcome(step: Step) -> Literal["try", "accept", "evict", "refuse"]:
    match step:
        case Try():
            return "try"
        case Accept():
            return "accept"
        case Evict():
            return "evict"
        case Refuse():
            return "refuse"


def _candidate(candidate: Candidate, is_chosen: bool, now_s: float) -> EvictionCandidate:
    return EvictionCandidate(
        name=candidate.name,
        idle_s=max(0.0, now_s - candidate.last_used_s) if candidate.is_idle else 0.0,
        reload_s=candidate.reload_s,
        held_bytes=dict(candidate.held_bytes),
        cost=cost(candidate, now_s),
        is_idle=candidate.is_idle,
        is_pinned=candidate.is_pinned,
        is_chosen=is_chosen,
    )
