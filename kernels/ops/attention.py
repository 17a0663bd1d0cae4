"""Attention over a paged cache.  arXiv:2309.06180 (pages), arXiv:2205.14135 (online softmax).

Keys and values live in cells, cells in pages of `page_size`; a table names each sequence's pages in order.
The i-th cell of sequence s is `tables[s, i // page_size] * page_size + i % page_size`.  A row sees the first
`n_visible[row]` cells of its sequence (its own is the last), of them only the last `window + 1` when
window > 0 (BEHAVIOUR T7 counts a window without the row itself).
"""

from dataclasses import dataclass

import numpy as np

from kernels.ops.op import F32, I32, Array, Op
from kernels.ops.rope import Rotation, rope_ref
from kernels.tensor import Tensor


@dataclass(frozen=True, slots=True, eq=False)
class StoreKV(Op):
    """Rotate k and write k and v into their cells.

    k, v [n, n_head_kv * head_dim] f32, positions [n] i32, cells [n] i32 (distinct), k_state, v_state
    [n_cells, n_head_kv * head_dim] f16 or f32, written in place; other cells stay as they are.
    """

    k: Tensor
    v: Tensor
    positions: Tensor
    cells: Tensor
    k_state: Tensor
    v_state: Tensor
    head_dim: int
    rotation: Rotation | None = None

    @property
    def reads(self) -> tuple[Tensor, ...]:
        """Tensors this op reads."""
        return (self.k, self.v, self.positions, self.cells)

    @property
    def writes(self) -> tuple[Tensor, ...]:
        """The states this op writes into."""
        return (self.k_state, self.v_state)


@dataclass(frozen=True, slots=True, eq=False)
class Attention(Op):
    """Let each row's query heads attend to the cells it sees.

    q [n, n_head * head_dim] f32, states as in `StoreKV`, tables [n_seqs, n_pages] i32, rows [n] i32 (which
    table row), n_visible [n] i32 (>= 1) -> out [n, n_head * head_dim] f32.

    Query head h reads key/value head h // (n_head // n_head_kv).  scores = scale * q.k, soft-capped to
    softcap * tanh(scores / softcap) when softcap > 0.  `out` may not share memory with `q`.
    """

    q: Tensor
    k_state: Tensor
    v_state: Tensor
    tables: Tensor
    rows: Tensor
    n_visible: Tensor
    out: Tensor
    head_dim: int
    page_size: int
    scale: float
    window: int = 0
    softcap: float = 0.0


def store_kv_ref(
    k: F32,
    v: F32,
    positions: I32,
    cells: I32,
    k_state: Array,
    v_state: Array,
    head_dim: int,
    rotation: Rotation | None,
) -> None:
    """Reference of `StoreKV`; changes k_state and v_state."""
    turned = rope_ref(k, positions, head_dim, rotation) if rotation is not None else k
    k_state[cells] = turned.astype(k_state.dtype)
    v_state[cells] = v.astype(v_state.dtype)


def attention_ref(
    q: F32, k_state: Array, v_state: Array, tables: I32, rows: I32, n_visible: I32, op: Attention
) -> F32:
    """Reference of `Attention`, softmax and sums in float64, one row at a time."""
    n_kv = k_state.shape[1] // op.head_dim
    heads = q.astype(np.float64).reshape(q.shape[0], n_kv, q.shape[1] // n_kv // op.head_dim, op.head_dim)
    out = np.empty_like(heads)
    for row in range(q.shape[0]):
        n_seen = int(n_visible[row])
        index = np.arange(max(0, n_seen - op.window - 1) if op.window else 0, n_seen)
        cells = tables[rows[row], index // op.page_size] * op.page_size + index % op.page_size
        keys = k_state[cells].astype(np.float64).reshape(len(cells), n_kv, op.head_dim)
        values = v_state[cells].astype(np.float64).reshape(len(cells), n_kv, op.head_dim)
        scores = np.einsum("ghd,cgd->ghc", heads[row], keys) * op.scale
        if op.softcap > 0:
            scores = op.softcap * np.tanh(scores / op.softcap)
        weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
        weights /= weights.sum(axis=-1, keepdims=True)
        out[row] = np.einsum("ghc,cgd->ghd", weights, values)
    return out.astype(np.float32).reshape(q.shape)
