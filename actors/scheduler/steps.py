"""What a load knows when it decides, and what it can decide.  See `rounds` for how."""

from collections.abc import Mapping
from dataclasses import dataclass

from actors.protocol import Device, MemoryReport
from actors.scheduler.attempts import Attempt, Round, known_costs
from actors.scheduler.layout import Costs, Placement, Policy
from actors.scheduler.sizes import size_text


@dataclass(frozen=True, slots=True)
class History:
    """A load up to the answer that `next_step` judges."""

    name: str  # of the model, for messages
    attempts: tuple[Attempt, ...]  # of both rounds, the latest last; never empty
    devices: tuple[Device, ...]  # free bytes as they were before this load took any
    policy: Policy
    others: Mapping[str, int]  # bytes that other models hold, by device id: what eviction could win
    other_names: tuple[tuple[str, int], ...] = ()  # (name, bytes) of those models, for advice
    is_content: bool = False  # others were asked to make room for more layers on GPUs, in vain

    @property
    def latest(self) -> Attempt:
        """The attempt to judge."""
        return self.attempts[-1]

    @property
    def allocs(self) -> tuple[Attempt, ...]:
        """The attempts of the alloc round."""
        return tuple(attempt for attempt in self.attempts if attempt.round is Round.ALLOC)

    def costs(self) -> Costs:
        """What is known of sizes."""
        return known_costs(self.attempts)


@dataclass(frozen=True, slots=True)
class Try:
    """Ask the runner again, with this placement."""

    placement: Placement
    reason: str


@dataclass(frozen=True, slots=True)
class Accept:
    """The best there is, and the memory suffices.  `report` is the one of this placement."""

    placement: Placement
    report: MemoryReport
    reason: str


@dataclass(frozen=True, slots=True)
class Evict:
    """Other models must leave memory of one of some devices first."""

    shortages: Mapping[str, int]  # bytes that have to come free, by device id: any one of them suffices
    reason: str
    is_preferred: bool = False  # the load works without, too, with fewer layers on GPUs


@dataclass(frozen=True, slots=True)
class Refuse:
    """It cannot work."""

    message: str
    mend: str


Step = Try | Accept | Evict | Refuse


def step_text(step: Step) -> str:
    """A decision in words, with its numbers."""
    match step:
        case Evict():
            lacking = (f"{device} lacks {size_text(n_bytes)}" for device, n_bytes in step.shortages.items())
            return f"{step.reason}; {' or '.join(lacking)}"
        case Refuse():
            return f"{step.message}; {step.mend}"
        case Accept() | Try():
            return step.reason


def verdict_text(step: Accept | Evict | Refuse) -> str:
    """Whether a load would fit, in words, with the numbers."""
    match step:
        case Accept():
            return f"fits: {step_text(step)}"
        case Evict():
            return f"fits once others are unloaded: {step_text(step)}, which other models hold"
        case Refuse():
            return f"does not fit: {step_text(step)}"
