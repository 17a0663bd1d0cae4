"""What is measured: cases, the metrics they give, and who measures them."""

import enum
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from bench.files import ModelFile
from bench.work import Work, work_of

SHORT_DEPTH = 32  # cells that each sequence of a batch has at the start


class Kind(enum.Enum):
    """The groups of `--only`."""

    PROMPT = "prompt"
    DECODE = "decode"
    BATCH = "batch"
    START = "start"
    OVERHEAD = "overhead"


@dataclass(frozen=True, slots=True)
class Metric:
    """A number that a case gives."""

    name: str
    unit: str
    is_more_better: bool


TOKENS_PER_S = Metric("throughput", "tok/s", True)
SERVED_TOKENS_PER_S = Metric("served throughput", "tok/s", True)
FIRST_TOKEN_S = Metric("first token", "s", False)
ANON_BYTES = Metric("anonymous memory", "bytes", False)
BEYOND_BYTES = Metric("anonymous beyond cache and buffers", "bytes", False)
SECOND_PSS_BYTES = Metric("second runner, proportional", "bytes", False)
SECOND_RSS_BYTES = Metric("second runner, resident", "bytes", False)
OUTSIDE_S = Metric("outside kernels, per step", "s", False)
OUTSIDE_SHARE = Metric("outside kernels, share", "1", False)


@dataclass(frozen=True, slots=True)
class Case:
    """One thing to measure with one model file."""

    kind: Kind
    n_tokens: int  # of the prompt; else steps that are decoded
    depth: int = 0  # cells that are filled before
    n_seq: int = 1

    @property
    def title(self) -> str:
        """Unique among the cases of a run."""
        match self.kind:
            case Kind.PROMPT:
                return f"prompt {self.n_tokens}"
            case Kind.DECODE:
                return f"decode at {self.depth}" if self.depth else "decode"
            case Kind.BATCH:
                return f"decode x{self.n_seq}"
            case Kind.START:
                return "start"
            case Kind.OVERHEAD:
                return f"engine x{self.n_seq}"

    def work(self, file: ModelFile) -> Work | None:
        """What one pass has to do; None where time is not a matter of passes."""
        match self.kind:
            case Kind.PROMPT:
                return work_of(file.shape, file.file_type, self.n_tokens, 1, 0)
            case Kind.DECODE | Kind.BATCH:
                n_visible = self.n_seq * (self.depth + self.n_tokens // 2)
                return work_of(file.shape, file.file_type, self.n_seq, self.n_seq, n_visible)
            case Kind.START | Kind.OVERHEAD:
                return None


class Skipped(Exception):
    """This contender cannot measure this case; the message says why."""


class Contender(Protocol):
    """Ours, or a peer."""

    @property
    def name(self) -> str:
        """As it stands in tables."""
        ...

    def measure(self, case: Case, file: ModelFile) -> Mapping[Metric, float]:
        """One sample of everything the case gives.  Skipped when it cannot."""
        ...
