"""Rotary position embedding.  arXiv:2104.09864.

Scaling variants: linear (arXiv:2306.15595), YaRN (arXiv:2309.00071), and llama 3.1's per-dimension factors.
Every variant comes down to one inverse frequency per rotated pair and one magnitude, both known when the
program is built, so the op has no variants: `models/rope.py` of the runner computes the numbers.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np

from kernels.ops.op import F32, I32, Op
from kernels.tensor import Tensor

# "norm" rotates neighbours (0,1), (2,3)...; "neox" rotates i with i + n_rot/2.
RopeStyle = Literal["norm", "neox"]


@dataclass(frozen=True, slots=True)
class Rotation:
    """How a head is rotated: radians per position of each pair, and the factor on cos and sin.

    The first 2 * len(inv_freq) values of a head are rotated, the rest pass unchanged.
    """

    style: RopeStyle
    inv_freq: tuple[float, ...]
    magnitude: float = 1.0

    @property
    def n_rot(self) -> int:
        """Rotated values per head."""
        return 2 * len(self.inv_freq)


@dataclass(frozen=True, slots=True, eq=False)
class Rope(Op):
    """x [n, n_head * head_dim] f32, positions [n] i32 -> out like x, each head rotated by its row's position.

    `out` may share memory with `x`.
    """

    x: Tensor
    positions: Tensor
    out: Tensor
    head_dim: int
    rotation: Rotation


def rope_ref(x: F32, positions: I32, head_dim: int, rotation: Rotation) -> F32:
    """Reference of `Rope`, angles and products in float64."""
    heads = x.astype(np.float64).reshape(x.shape[0], x.shape[1] // head_dim, head_dim)
    angle = positions.astype(np.float64)[:, None] * np.asarray(rotation.inv_freq, np.float32).astype(
        np.float64
    )
    cos, sin = (f(angle)[:, None, :] * rotation.magnitude for f in (np.cos, np.sin))
    half, n_rot = len(rotation.inv_freq), rotation.n_rot
    first = slice(0, n_rot, 2) if rotation.style == "norm" else slice(0, half)
    second = slice(1, n_rot, 2) if rotation.style == "norm" else slice(half, n_rot)
    turned = heads.copy()
    turned[..., first] = heads[..., first] * cos - heads[..., second] * sin
    turned[..., second] = heads[..., first] * sin + heads[..., second] * cos
    return turned.astype(np.float32).reshape(x.shape)
