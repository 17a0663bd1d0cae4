"""Attention over a paged cache.  arXiv:2309.06180 (pages), arXiv:2205.14135 (online softmax).

Keys and values live in cells, cells in pages of `page_size`; a table names each sequence's pages in order.
The i-th cell of sequence s is `tables[s, i // page_size] * page_size + i % page_size`.  A row sees the first
`n_visible[row]` cells of its sequence, of them only the last `window + 1` when window > 0 (a window is
counted without the row itself), and only those from `p - p % chunk` on when chunk > 0.  p is the last cell
that it sees, the row's own but in encoders and in attention to another sequence.

A state is declared as [n_cells, n_head_kv * head_dim]; its bytes lie page by page, within a page head by
head, and in a head's part as attention reads them:

    f32, f16   keys [head_dim, page_size], so that a vector holds one dimension of neighbouring cells;
               values [page_size, head_dim]
    q8_0       32 dimensions of a cell share a scale, d = max |x| / 127; x is d * level.
               keys: levels i8 [head_dim / 4, page_size, 4]; values: levels i8 [page_size, head_dim];
               after either, scales f16 [head_dim / 32, page_size]

`read_cells` and `write_cells` translate.
"""

import math
from dataclasses import dataclass

import numpy as np

from kernels.ops.op import F32, I32, Array, Op
from kernels.ops.rope import Rotation, rope_ref
from kernels.tensor import Tensor

LEVELS = 127.0  # a q8_0 level is -127..127
BLOCK = 32  # dimensions that share a scale


@dataclass(frozen=True, slots=True, eq=False)
class StoreKV(Op):
    """Rotate k and write k and v into their cells.

    k, v [n, n_head_kv * head_dim] f32, positions [n] i32, cells [n] i32 (distinct), k_state, v_state
    [n_cells, n_head_kv * head_dim] f32, f16 or q8_0 (then 32 divides head_dim), written in place; other cells
    stay as they are.
    """

    k: Tensor
    v: Tensor
    positions: Tensor
    cells: Tensor
    k_state: Tensor
    v_state: Tensor
    head_dim: int
    page_size: int
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

    temperature_length > 0: a row at position p (its own cell) has its scale multiplied by
    1 + temperature * ln(1 + floor((p + 1) / temperature_length)), so that attention stays sharp over long
    contexts; arXiv:2501.19399, as llama 4 has it.

    bias [2 r + 1, n_head] f32 with positions [n] i32 (>= 0), or neither: head h of a row at position p has
    bias[clamp(i - p, -r, r) + r, h] added to its score of cell i, after the scale; arXiv:1910.10683 section
    2.1, with the bucket of each distance looked up before.  Not together with a cap.  A row may stand
    anywhere among the cells that it sees: n_visible says how many those are, in an encoder all of its text's.
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
    chunk: int = 0
    temperature: float = 0.0
    temperature_length: int = 0
    bias: Tensor | None = None
    positions: Tensor | None = None

    @property
    def reach(self) -> int:
        """Of the bias: the distance from which on all cells have the same; 0 without one."""
        n_distances = self.bias.shape[0] if self.bias is not None else 1
        assert isinstance(n_distances, int), "the builder checks it"
        return n_distances // 2

    def scale_of(self, position: int) -> float:
        """What queries are scaled by at a position."""
        if self.temperature_length == 0:
            return self.scale
        return self.scale * (1.0 + self.temperature * math.log1p((position + 1) // self.temperature_length))


def first_seen(position: int, window: int, chunk: int) -> int:
    """The first cell that a row at this position sees; window, chunk: as `Attention` has them."""
    by_window = max(0, position - window) if window else 0
    return max(by_window, position - position % chunk if chunk else 0)


def read_cells(state: Array, n_head_kv: int, head_dim: int, page_size: int, is_keys: bool) -> Array:
    """A copy of a state, laid out by cells: [n_cells, n_head_kv, head_dim], f32 when the state is q8_0.

    state is [n_cells, n_head_kv * head_dim], or the bytes of a q8_0 state.
    """
    if state.dtype != np.uint8:
        if is_keys:
            pages = state.reshape(-1, n_head_kv, head_dim, page_size).transpose(0, 3, 1, 2)
        else:
            pages = state.reshape(-1, n_head_kv, page_size, head_dim).transpose(0, 2, 1, 3)
        return pages.reshape(-1, n_head_kv, head_dim).copy()
    levels, scales = _quantized_parts(state, n_head_kv, head_dim, page_size, is_keys)
    return (levels * scales[..., None]).reshape(-1, n_head_kv, head_dim)


def write_cells(
    state: Array, cells: I32, values: F32, n_head_kv: int, head_dim: int, page_size: int, is_keys: bool
) -> None:
    """Write values [n, n_head_kv * head_dim] into these cells of a state, which changes."""
    n_blocks = head_dim // BLOCK
    page, inside = cells // page_size, cells % page_size
    if state.dtype != np.uint8:
        heads = values.reshape(-1, n_head_kv, head_dim).astype(state.dtype)
        if is_keys:
            state.reshape(-1, n_head_kv, head_dim, page_size)[page, :, :, inside] = heads
        else:
            state.reshape(-1, n_head_kv, page_size, head_dim)[page, :, inside, :] = heads
        return
    blocks = values.reshape(-1, n_head_kv, n_blocks, BLOCK)
    scale = np.abs(blocks).max(axis=-1, keepdims=True) / np.float32(LEVELS)
    level = np.rint(np.divide(blocks, scale, out=np.zeros_like(blocks), where=scale > 0)).astype(np.int8)
    regions = state.reshape(-1, n_head_kv, page_size * n_blocks * (BLOCK + 2))
    levels = regions[..., : page_size * head_dim].view(np.int8)
    scales = regions[..., page_size * head_dim :].view(np.float16)
    scales.reshape(-1, n_head_kv, n_blocks, page_size)[page, :, :, inside] = scale[..., 0]
    if is_keys:
        spread = levels.reshape(-1, n_head_kv, head_dim // 4, page_size, 4)
        spread[page, :, :, inside, :] = level.reshape(-1, n_head_kv, head_dim // 4, 4)
    else:
        spread = levels.reshape(-1, n_head_kv, page_size, head_dim)
        spread[page, :, inside, :] = level.reshape(-1, n_head_kv, head_dim)


def _quantized_parts(
    state: Array, n_head_kv: int, head_dim: int, page_size: int, is_keys: bool
) -> tuple[F32, F32]:
    """Levels [n_pages, page_size, n_head_kv, n_blocks, 32] and scales [.., n_blocks] of q8_0 bytes."""
    n_blocks = head_dim // BLOCK
    regions = state.reshape(-1, n_head_kv, page_size * n_blocks * (BLOCK + 2))
    levels = regions[..., : page_size * head_dim].view(np.int8)
    scales = regions[..., page_size * head_dim :].view(np.float16)
    if is_keys:
        levels = levels.reshape(-1, n_head_kv, head_dim // 4, page_size, 4).transpose(0, 3, 1, 2, 4)
    else:
        levels = levels.reshape(-1, n_head_kv, page_size, head_dim).transpose(0, 2, 1, 3)
    scales = scales.reshape(-1, n_head_kv, n_blocks, page_size).transpose(0, 3, 1, 2)
    shape = (*scales.shape, BLOCK)
    return levels.astype(np.float32).reshape(shape), scales.astype(np.float32)


def store_kv_ref(
    k: F32, v: F32, positions: I32, cells: I32, k_state: Array, v_state: Array, op: StoreKV
) -> None:
    """Reference of `StoreKV`; changes k_state and v_state."""
    turned = rope_ref(k, positions, op.head_dim, op.rotation) if op.rotation is not None else k
    n_head_kv = k.shape[1] // op.head_dim
    write_cells(k_state, cells, turned, n_head_kv, op.head_dim, op.page_size, is_keys=True)
    write_cells(v_state, cells, v, n_head_kv, op.head_dim, op.page_size, is_keys=False)


def attention_ref(
    q: F32,
    k_state: Array,
    v_state: Array,
    tables: I32,
    rows: I32,
    n_visible: I32,
    op: Attention,
    bias: tuple[F32, I32] | None = None,
) -> F32:
    """Reference of `Attention`, softmax and sums in float64, one row at a time; bias: with positions."""
    width = op.k_state.shape[-1]
    assert isinstance(width, int)
    n_kv = width // op.head_dim
    all_keys = read_cells(k_state, n_kv, op.head_dim, op.page_size, is_keys=True)
    all_values = read_cells(v_state, n_kv, op.head_dim, op.page_size, is_keys=False)
    heads = q.astype(np.float64).reshape(q.shape[0], n_kv, q.shape[1] // width, op.head_dim)
    out = np.empty_like(heads)
    for row in range(q.shape[0]):
        n_seen = int(n_visible[row])
        index = np.arange(first_seen(n_seen - 1, op.window, op.chunk), n_seen)
        cells = tables[rows[row], index // op.page_size] * op.page_size + index % op.page_size
        keys, values = all_keys[cells].astype(np.float64), all_values[cells].astype(np.float64)
        scores = np.einsum("ghd,cgd->ghc", heads[row], keys) * op.scale_of(n_seen - 1)
        if op.softcap > 0:
            scores = op.softcap * np.tanh(scores / op.softcap)
        if bias is not None:
            table, positions = bias
            distances = np.clip(index - positions[row], -op.reach, op.reach) + op.reach
            scores += table[distances].T.reshape(scores.shape)
        weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
        weights /= weights.sum(axis=-1, keepdims=True)
        out[row] = np.einsum("ghc,cgd->ghd", weights, values)
    return out.astype(np.float32).reshape(q.shape)
