"""`python -m bench.experts`: a layer of experts on the CPU beside a dense one that multiplies as much.

The shape is that of Qwen3-30B-A3B: 8 of 128 experts of 768 units for each row.  Rows choose by random logits,
other ones in each pass, so that no cache holds what is read; the dense layers, of as many units as a row's
experts have together, stand for one another in turn.
"""

import argparse
import math
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

import numpy as np

from bench.limits import LimitProbe
from bench.machine import describe
from bench.weights import random_weight
from kernels.backend import Binding, Segment
from kernels.cpu.backend import CpuBackend
from kernels.dtype import DType
from kernels.memory import Memory, host_array
from kernels.ops.op import Op
from kernels.program import ProgramBuilder
from kernels.tensor import Role, Tensor

N_EMBD, N_FF, N_EXPERT, N_USED = 2048, 768, 128, 8
N_DENSE = 16
READ_BYTES = 512 << 20
GIGA, MILLI = 1e9, 1e-3


@dataclass(frozen=True, slots=True)
class Layers:
    """Ops over memory that exists, and the logits by which rows choose, where they do."""

    segment: Segment
    logits: Memory | None
    n_layers: int

    def seconds(self, n_passes: int) -> float:
        """Of one layer, the median of passes; other experts in each."""
        rng = np.random.default_rng(3)
        found: list[float] = []
        for _ in range(n_passes + 1):
            if self.logits is not None:
                array = host_array(self.logits).view(np.float32)
                array[...] = rng.standard_normal(len(array), np.float32)
            begin = time.perf_counter()
            self.segment.run({})
            found.append((time.perf_counter() - begin) / self.n_layers)
        return median(found[1:])


def main(arguments: Sequence[str]) -> int:
    """Process entry; the exit code."""
    parser = argparse.ArgumentParser(prog="bench.experts", description=__doc__)
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 4, 16, 64, 128, 512])
    parser.add_argument("--type", type=DType.__getitem__, default=DType.Q4_K)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--passes", type=int, default=15)
    options = parser.parse_args(arguments)
    backend = CpuBackend(options.threads, small_bytes=0)
    limits = LimitProbe(options.threads, backend.isa, READ_BYTES, 20 * MILLI).measure()
    machine = describe(options.threads, backend.isa)
    print(f"{machine.description}, {machine.n_threads} threads, {machine.date}")
    print(f"streamed read: {limits.read_bytes_per_s / GIGA:.1f} GB/s\n")
    print("| rows | experts read | dense ms | experts ms | of dense | GB/s |\n|---|---|---|---|---|---|")
    for n in options.rows:
        dense = _bound(backend, _dense(n, options.type), N_DENSE).seconds(options.passes // 5 + 1)
        experts = _bound(backend, _experts(n, options.type), 1).seconds(options.passes)
        n_read = N_EXPERT * (1 - (1 - N_USED / N_EXPERT) ** n)  # of which some row is sent there
        rate = n_read * options.type.n_bytes(3 * N_FF * N_EMBD) / experts
        times = f"{dense / MILLI:.2f} | {experts / MILLI:.2f} | {experts / dense:.2f}"
        print(f"| {n} | {n_read:.0f} | {times} | {rate / GIGA:.1f} |", flush=True)
    return 0


def _experts(n: int, dtype: DType) -> Sequence[Op]:
    g = ProgramBuilder(1)
    x, logits = g.input("x", (n, N_EMBD), DType.F32), g.input("logits", (n, N_EXPERT), DType.F32)
    route = g.route(logits, N_USED, "chosen_softmax")
    gate, up = (
        g.expert_matmul(x, g.weight(name, (N_EXPERT, N_FF, N_EMBD), dtype), route) for name in ("gate", "up")
    )
    down = g.weight("down", (N_EXPERT, N_EMBD, N_FF), dtype)
    given = g.expert_matmul(g.gate(gate, up, "silu"), down, route, is_scaled=True)
    g.output("out", g.slot_sum(given, N_USED))
    return g.build().ops


def _dense(n: int, dtype: DType) -> Sequence[Op]:
    g = ProgramBuilder(1)
    x, n_ff = g.input("x", (n, N_EMBD), DType.F32), N_USED * N_FF
    for i in range(N_DENSE):
        gate, up = (g.matmul(x, g.weight(f"{name}{i}", (n_ff, N_EMBD), dtype)) for name in ("gate", "up"))
        down = g.weight(f"down{i}", (N_EMBD, n_ff), dtype)
        g.output(f"out{i}", g.matmul(g.gate(gate, up, "silu"), down))
    return g.build().ops


def _bound(backend: CpuBackend, ops: Sequence[Op], n_layers: int) -> Layers:
    rng = np.random.default_rng(1)
    tensors = dict.fromkeys(t for op in ops for t in (*op.reads, *op.writes))
    memory: dict[Tensor, Memory] = {t: backend.allocate(t.n_bytes({}), t.name).memory for t in tensors}
    for tensor, place in memory.items():
        _fill(tensor, place, rng)
    n_scratch = max(backend.workspace_bytes(op, {}) for op in ops)
    workspace = backend.allocate(n_scratch, "workspace").memory
    logits = next((place for tensor, place in memory.items() if tensor.name == "logits"), None)
    return Layers(backend.bind(Binding(ops, memory, {}, workspace)), logits, n_layers)


def _fill(tensor: Tensor, place: Memory, rng: np.random.Generator) -> None:
    array = host_array(place)
    if tensor.role is Role.INPUT:
        array.view(np.float32)[...] = rng.standard_normal(array.nbytes // 4, np.float32)
    elif tensor.role is Role.WEIGHT:
        at = 0
        for piece in random_weight(tensor.dtype, math.prod(_sizes(tensor)), tensor.width**-0.5, rng):
            array[at : at + piece.nbytes] = piece
            at += piece.nbytes


def _sizes(tensor: Tensor) -> Sequence[int]:
    return [size for size in tensor.shape if isinstance(size, int)]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
