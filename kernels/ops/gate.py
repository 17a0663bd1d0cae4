"""Activation of the feed-forward part, gated or not.  arXiv:2002.05202 (SwiGLU, GeGLU)."""

import math
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

from kernels.ops.op import F32, Op
from kernels.tensor import Tensor

# Two are x * sigmoid(z).  silu: z = x.  gelu: z = sqrt(8 / pi) * (x + 0.044715 x^3), the approximation
# 0.5 x (1 + tanh(z / 2)) of arXiv:1606.08415, section 2.  relu: max(x, 0).
Activation = Literal["silu", "gelu", "relu"]
ACTIVATIONS: tuple[Activation, ...] = get_args(Activation)  # as kernels number them


@dataclass(frozen=True, slots=True, eq=False)
class Gate(Op):
    """gate, up [n, n_ff] f32 -> out [n, n_ff] f32 = activation(gate) * up, or activation(gate) without `up`.

    `out` may share memory with either.
    """

    gate: Tensor
    up: Tensor | None
    out: Tensor
    activation: Activation


def gate_ref(gate: F32, up: F32 | None, activation: Activation) -> F32:
    """Reference of `Gate` in float64; exact zero where the sigmoid underflows, NaN where x is."""
    wide = gate.astype(np.float64)
    if activation == "relu":
        wide = np.maximum(wide, 0.0)
    else:
        wide = wide / (1.0 + np.exp(np.minimum(-sigmoid_argument(gate, activation), 700.0)))
    return (wide if up is None else wide * up).astype(np.float32)


def sigmoid_argument(gate: F32, activation: Activation) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
    """What the sigmoid is taken of; of silu and gelu."""
    wide = gate.astype(np.float64)
    return wide if activation == "silu" else math.sqrt(8 / math.pi) * (wide + 0.044715 * wide**3)
