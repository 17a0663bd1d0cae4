"""Mixtures of experts: which of many feed-forward parts a row goes through, and products with their weights.

Shazeer et al., arXiv:1701.06538 (top-k gating); Fedus et al., arXiv:2101.03961 (a softmax over all, top-1).

A row has k slots, one for each expert chosen for it.  What slots hold lies side by side in the row: slot j of
a value [n, k * width] is its columns j * width .. (j + 1) * width.  So what is done to each number (a gate)
needs to know nothing of slots, and a backend groups rows by expert within one product and nowhere else.

    ids, weights = route(logits)                       [n, k]
    gated = gate(expert_matmul(x, gate_exps), expert_matmul(x, up_exps))    [n, k * n_ff]
    out = slot_sum(expert_matmul(gated, down_exps, scaled by weights))      [n, n_embd]
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np

from kernels.ops.op import F32, I32, Op
from kernels.tensor import Tensor

# What a chosen expert's weight is made of.  softmax: its share among all; chosen_softmax: among the chosen,
# which is its share among all divided by the sum of theirs; sigmoid: of its logit alone.
Gating = Literal["softmax", "chosen_softmax", "sigmoid"]
MAX_EXPERTS = 1024  # to choose from: a router keeps a bit for each, a lane of a warp 32 of them
GATINGS: tuple[Gating, ...] = ("softmax", "chosen_softmax", "sigmoid")  # as kernels number them


@dataclass(frozen=True, slots=True, eq=False)
class Route(Op):
    """logits [n, n_expert] f32 -> ids [n, k] i32 of the largest in falling order, and weights [n, k] f32.

    Of equal logits the lower id comes first.  A row with a NaN gets experts that exist, each at most once,
    and weights that are all NaN; other rows are not touched by it.
    """

    logits: Tensor
    ids: Tensor
    weights: Tensor
    gating: Gating

    @property
    def reads(self) -> tuple[Tensor, ...]:
        """The logits."""
        return (self.logits,)

    @property
    def writes(self) -> tuple[Tensor, ...]:
        """Which experts, and their weights."""
        return (self.ids, self.weights)

    @property
    def n_expert(self) -> int:
        """Experts to choose from."""
        return self.logits.width

    @property
    def n_used(self) -> int:
        """Experts chosen for a row."""
        return self.ids.width


@dataclass(frozen=True, slots=True, eq=False)
class ExpertMatmul(Op):
    """Multiply what each slot sees with the weight of the slot's expert.

    x [n, n_in] f32, which all slots of a row see, or [n, k * n_in], each its own; weight
    [n_expert, n_out, n_in] any dtype; ids [n, k] i32 that a `Route` among as many experts has made; scales
    [n, k] f32 -> out [n, k * n_out] f32 = x weight[id]^T (* scale).  `x` may not share memory with `out`.
    """

    x: Tensor
    weight: Tensor
    ids: Tensor
    out: Tensor
    scales: Tensor | None = None

    @property
    def n_used(self) -> int:
        """Slots of a row."""
        return self.ids.width

    @property
    def n_in(self) -> int:
        """Columns that a slot sees."""
        return self.weight.width

    @property
    def n_out(self) -> int:
        """Columns that a slot gets."""
        return self.out.width // self.n_used

    @property
    def is_shared(self) -> bool:
        """Whether all slots of a row see the same."""
        return self.x.width == self.n_in

    @property
    def expert_bytes(self) -> int:
        """Bytes of one expert's weight."""
        return self.weight.dtype.n_bytes(self.n_in * self.n_out)


@dataclass(frozen=True, slots=True, eq=False)
class SlotSum(Op):
    """x [n, k * width] f32 -> out [n, width] f32, slots added in order, then the residual [n, width]."""

    x: Tensor
    out: Tensor
    residual: Tensor | None = None


def route_ref(logits: F32, n_used: int, gating: Gating) -> tuple[I32, F32]:
    """Reference of `Route`, in float64."""
    wide = logits.astype(np.float64)
    ids = np.argsort(-np.where(np.isnan(wide), -np.inf, wide), axis=1, kind="stable")[:, :n_used]
    chosen = np.take_along_axis(wide, ids, axis=1)
    if gating == "sigmoid":
        weights = 1.0 / (1.0 + np.exp(-np.maximum(chosen, -700.0)))
    else:
        among, top = wide if gating == "softmax" else chosen, chosen[:, :1]
        with np.errstate(invalid="ignore"):  # infinite logits have no shares
            weights = np.exp(chosen - top) / np.exp(among - top).sum(axis=1, keepdims=True)
    weights[np.isnan(wide).any(axis=1)] = np.nan
    return ids.astype(np.int32), weights.astype(np.float32)


def expert_matmul_ref(x: F32, weight: F32, ids: I32, scales: F32 | None) -> F32:
    """Reference of `ExpertMatmul` in float64, on a dequantised weight [n_expert, n_out, n_in]."""
    n, n_used = ids.shape
    _, n_out, n_in = weight.shape
    seen = x.astype(np.float64).reshape(n, x.shape[1] // n_in, n_in)  # one for all slots, or one for each
    seen = np.broadcast_to(seen, (n, n_used, n_in))
    out = np.empty((n, n_used, n_out))
    for expert in np.unique(ids):
        mine = ids == expert
        out[mine] = seen[mine] @ weight[expert].astype(np.float64).T
    if scales is not None:
        out *= scales[:, :, None]
    return out.astype(np.float32).reshape(n, n_used * n_out)


def slot_sum_ref(x: F32, width: int, residual: F32 | None) -> F32:
    """Reference of `SlotSum`, in float64."""
    total = x.astype(np.float64).reshape(x.shape[0], x.shape[1] // width, width).sum(axis=1)
    return (total if residual is None else total + residual).astype(np.float32)
