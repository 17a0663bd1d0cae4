"""A thread of the CPU's own that runs an executable and samples its logits, outside the interpreter.

The contract of what is drawn is `kernels/ops/sampling.py`; `fd` becomes readable when a step is done.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from kernels.cpu import _cpu
from kernels.cpu.backend import CpuBackend, CpuSegment
from kernels.cpu.sampler import fault_of
from kernels.executable import Executable
from kernels.ops.op import Array
from kernels.ops.sampling import NanLogits, SamplingError


class Draw(NamedTuple):
    """How to sample from one row; `history` is what penalties look at, oldest first.

    position counts the tokens before the one that is drawn, below 2^64; n_logprobs -1: none are wanted.
    """

    params: _cpu.SamplingParams
    position: int
    history: Sequence[int]
    n_logprobs: int


class Drawn(NamedTuple):
    """A token, its log-probability and the likeliest tokens' where wanted; or why there is none."""

    token: int
    logprob: float
    top: Sequence[tuple[int, float]]
    error: SamplingError | None = None


class CpuWorker:
    """One step at a time: `start`, wait until `fd` is readable, `take`."""

    def __init__(self, backend: CpuBackend) -> None:
        self._worker = _cpu.Worker(backend.pool)
        self._executable: Executable | None = None  # kept while its memory is in use
        self._n_vocab = 0
        self._draws: Sequence[Draw] = ()

    @property
    def fd(self) -> int:
        """Readable once the step that was started is done."""
        return self._worker.fd

    @property
    def compute_s(self) -> float:
        """Seconds spent computing so far, without sampling and everything round it."""
        return self._worker.compute_s

    def start(self, executable: Executable, inputs: Mapping[str, Array], draws: Sequence[Draw]) -> None:
        """Run, then sample a token for each row of the output "logits".

        ValueError as `Executable.run` raises it, for a segment of another device, another number of rows.
        """
        values = executable.load(inputs)
        segments: list[tuple[_cpu.Segment, list[int]]] = []
        is_small = True
        for segment in executable.segments:
            if not isinstance(segment, CpuSegment):
                raise ValueError(f"{type(segment).__name__} does not run on the CPU's worker")
            segments.append((segment.native, segment.values(values)))
            is_small = is_small and segment.is_small(values)
        logits = executable.output("logits", values)
        assert logits.dtype == np.float32, "logits are computed in f32"
        self._worker.start(segments, logits.view(np.float32), draws, is_small)
        self._executable, self._draws, self._n_vocab = executable, draws, logits.shape[-1]

    def take(self) -> list[Drawn]:
        """What was drawn, row by row; what the step raised otherwise, as `CpuSegment.run` does."""
        draws, self._draws, self._executable = self._draws, (), None
        drawn: list[Drawn] = []
        for draw, (token, is_finite, logprob, top) in zip(draws, self._worker.take(), strict=True):
            error = None
            if token < 0:
                token, error = 0, fault_of(token, self._n_vocab)
            elif draw.n_logprobs >= 0 and not is_finite:
                error = NanLogits()
            drawn.append(Drawn(token, logprob, top, error))
        return drawn
