"""The machine's own limits, measured like everything else, in the same minutes.

Reading: all threads stream through a buffer far larger than the caches.  Arithmetic: chains of the best
multiply-accumulate the instruction set has on bytes, and of fused multiply-adds on floats, in registers.
"""

import statistics
from collections.abc import Callable
from dataclasses import dataclass

from kernels.cpu import _cpu

OPS_PER_PRODUCT = 2
N_PASSES = 5
FIRST_ROUNDS = 1 << 14


@dataclass(frozen=True, slots=True)
class Limits:
    """What this machine can do at most, by all threads together."""

    read_bytes_per_s: float
    int8_ops_per_s: float
    f32_ops_per_s: float

    def attainable_ops_per_s(self, intensity: float, is_int8: bool) -> float:
        """The roof above work that does `intensity` operations for each byte it reads."""
        peak = self.int8_ops_per_s if is_int8 else self.f32_ops_per_s
        return min(peak, intensity * self.read_bytes_per_s)


def between(before: Limits, after: Limits) -> Limits:
    """What the machine could do meanwhile: the means of both ends."""
    return Limits(
        (before.read_bytes_per_s + after.read_bytes_per_s) / 2,
        (before.int8_ops_per_s + after.int8_ops_per_s) / 2,
        (before.f32_ops_per_s + after.f32_ops_per_s) / 2,
    )


class LimitProbe:
    """Measures the limits again and again.  pass_s: about how long one pass of arithmetic takes."""

    def __init__(self, n_threads: int, isa: str, buffer_bytes: int, pass_s: float) -> None:
        buffer = _cpu.allocate(buffer_bytes)
        if buffer is None:
            raise MemoryError(f"no {buffer_bytes} bytes to measure the read bandwidth with")
        self._buffer = buffer
        self._pool = _cpu.Pool(n_threads)
        self._isa = isa
        self._pass_s = pass_s

    def measure(self) -> Limits:
        """The medians of a few passes each."""
        reads = [_cpu.timed_read(self._pool, self._isa, self._buffer)[0] for _ in range(N_PASSES)]
        return Limits(
            len(self._buffer) / statistics.median(reads),
            self._peak(_cpu.timed_int8),
            self._peak(_cpu.timed_f32),
        )

    def _peak(self, chain: Callable[[_cpu.Pool, str, int], tuple[float, int]]) -> float:
        seconds, _ = chain(self._pool, self._isa, FIRST_ROUNDS)
        n_rounds = max(1, int(FIRST_ROUNDS * self._pass_s / seconds))
        rates: list[float] = []
        for _ in range(N_PASSES):
            seconds, n_products = chain(self._pool, self._isa, n_rounds)
            rates.append(OPS_PER_PRODUCT * n_products / seconds)
        return statistics.median(rates)
