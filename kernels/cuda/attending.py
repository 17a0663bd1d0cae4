"""Launches of attention: pieces of a row's cells where rows are few, tiles of rows where they are many."""

from collections.abc import Sequence

import numpy as np

from kernels.cuda.driver import Pointer, Work
from kernels.cuda.fuse import merges
from kernels.cuda.launches import (
    ABSENT,
    N_THREADS,
    WARP,
    Place,
    acts_bytes,
    blocks,
    dim_of,
    dims_of,
    end_of,
    launch,
    optional,
    up,
)
from kernels.cuda.sources import BIASED
from kernels.dtype import DType
from kernels.ops.attention import Attention
from kernels.tensor import Bounds, value_of

SPLIT_ROWS = 64  # with more rows, each attends to its cells in one piece: there is enough to do
PIECE_CELLS = 128  # of one piece otherwise
MAX_PIECES = 64
WARPS_PER_BLOCK = 16
TILED_ROWS = 17  # from so many on attention goes by tiles
TILED_TYPES = (DType.F16, DType.Q8_0)
TILED_DIMS = (64, 128, 256)  # of a head, that there is a kernel for
TILE_CELLS, LINES_PER_WARP, WARPS_OF_TILE = 32, 16, 4  # in the kernels as STEP, LINES
MAX_HEAD_DIM = 256
MAX_SHARED_BYTES = 48 << 10  # of a block, that no device has to be asked for


def attention(op: Attention, place: Place, values: Bounds, acts: Sequence[Pointer]) -> Sequence[Work]:
    """acts: where the int8 form of the result goes."""
    n_head, n_kv = op.q.width // op.head_dim, op.k_state.width // op.head_dim
    n_piece, piece_cells = _pieces(op, place.bounds)
    n = value_of(op.q.shape[0], values)
    is_merged = merges(op, place.bounds)
    partials = place.scratch if is_merged or n_piece > 1 else ABSENT
    tensors = [
        *map(place.address, (op.q, op.k_state, op.v_state, op.tables, op.rows, op.n_visible, op.out)),
        partials,
    ]
    numbers = [
        *map(
            np.int32, (op.k_state.dtype.ggml_id, n_head, n_kv, op.head_dim, op.page_size, op.window, op.chunk)
        ),
        *map(np.float32, (op.scale, op.softcap, op.temperature)),
        *map(np.int32, (op.temperature_length, piece_cells, n_piece)),
        optional(place, op.bias),
        optional(place, op.positions),
        np.int32(op.reach),
    ]
    sizes = [dim_of(place, op.q.shape[0]), *dims_of(place, op.tables.shape[1])]
    tile_rows = _tile_rows(op, place.bounds)
    if tile_rows:
        n_slot = min(tile_rows, max(1, value_of(op.tables.shape[0], values)))
        grid = (n_piece, n_kv, blocks(n, tile_rows) * n_slot)
        works = [_tiled(op, grid, [*tensors, *numbers], tile_rows, n_slot, sizes)]
    else:
        merging = [place.counters if is_merged else ABSENT, *acts]
        works = [_row_by_row(op, (n_piece, n_kv, n), [*tensors, *merging, *numbers], sizes)]
    if n_piece > 1 and not is_merged:
        merging = [
            partials,
            *map(place.address, (op.n_visible, op.out)),
            *map(np.int32, (n_head, op.head_dim, op.window, op.chunk, piece_cells, n_piece)),
            *dims_of(place, op.q.shape[0]),
        ]
        works.append(launch("merge", "", (n_head, n, 1), min(N_THREADS, up(op.head_dim, WARP)), merging))
    return works


def _tile_rows(op: Attention, bounds: Bounds) -> int:
    """Rows of a tile; 0 where a warp for each row and head does it.

    That is so in plans of few rows, which are recorded and cut their cells into the more pieces; for caches
    of f32, whose exactness f16 factors would take; and for heads, pages, groups and biases that the tiles'
    sixteen dimensions, eight cells, lines and shared memory do not fit.
    """
    n_group = op.q.width // op.k_state.width
    is_tiled = (
        value_of(op.q.shape[0], bounds) >= TILED_ROWS
        and op.k_state.dtype in TILED_TYPES
        and op.head_dim % 16 == 0
        and op.page_size % 8 == 0
        and n_group <= _tile_lines(op)
        and _tile_bytes(op, WARPS_OF_TILE) <= MAX_SHARED_BYTES
    )
    return min(WARP, _tile_lines(op) // n_group) if is_tiled else 0


def _tile_lines(op: Attention) -> int:
    """Query heads of rows that four warps take, each 16: of large heads two warps the same."""
    return WARPS_OF_TILE * LINES_PER_WARP // _warps_per_line(op)


def _warps_per_line(op: Attention) -> int:
    return 1 if op.head_dim <= TILED_DIMS[1] else 2


def _tiled(
    op: Attention,
    grid: tuple[int, int, int],
    args: Sequence[Pointer | np.generic],
    tile_rows: int,
    n_slot: int,
    sizes: Sequence[Pointer | np.generic],
) -> Work:
    """n_slot: blocks for the sequences that may be among the `tile_rows` rows of one."""
    n_warps = blocks(tile_rows * op.q.width // op.k_state.width, LINES_PER_WARP) * _warps_per_line(op)
    most = next(dims for dims in TILED_DIMS if op.head_dim <= dims)
    args = [*args, np.int32(tile_rows), np.int32(n_slot), *sizes]
    type_name = "" if op.bias is None else BIASED
    return launch(f"tiled_attention_{most}", type_name, grid, n_warps * WARP, args, _tile_bytes(op, n_warps))


def _tile_bytes(op: Attention, n_warps: int) -> int:
    """Of shared memory: keys and values of a step, scores of parts of heads, biases of a group."""
    n_bytes = 2 * (op.head_dim * (TILE_CELLS + 8) + TILE_CELLS * (op.head_dim + 8))
    if _warps_per_line(op) > 1:
        n_bytes += LINES_PER_WARP * n_warps * WARP * 4
    if op.bias is not None:
        n_bytes += op.q.width // op.k_state.width * 2 * (op.reach + TILE_CELLS) * 4
    return n_bytes


def _row_by_row(
    op: Attention,
    grid: tuple[int, int, int],
    args: Sequence[Pointer | np.generic],
    sizes: Sequence[Pointer | np.generic],
) -> Work:
    n_group = op.q.width // op.k_state.width
    warps_per_head = max(1, WARPS_PER_BLOCK // n_group)
    n_warps = warps_per_head * min(n_group, WARPS_PER_BLOCK)
    shared_bytes = n_warps * (2 * op.head_dim + 2) * 4
    args = [*args, np.int32(warps_per_head), *sizes]
    return launch("attention", "", grid, n_warps * WARP, args, shared_bytes)


def scratch_bytes(op: Attention, bounds: Bounds) -> int:
    """Pieces' results, and the int8 form of the whole where one kernel puts them together."""
    n = value_of(op.q.shape[0], bounds)
    return partial_bytes(op, bounds) + (end_of(acts_bytes(n, op.q.width)) if merges(op, bounds) else 0)


def partial_bytes(op: Attention, bounds: Bounds) -> int:
    """Of what blocks found that each have a piece of a row's cells."""
    n_piece, _ = _pieces(op, bounds)
    if n_piece == 1 and not merges(op, bounds):
        return 0
    n_rows = value_of(op.q.shape[0], bounds) * (op.q.width // op.head_dim)
    return end_of([n_rows * n_piece * (op.head_dim + 2) * 4])


def _pieces(op: Attention, bounds: Bounds) -> tuple[int, int]:
    """Pieces of a row's cells, and cells of a piece: the plan's, so that every run cuts sums alike."""
    n_cells = max(1, value_of(op.tables.shape[1], bounds) * op.page_size)
    if value_of(op.q.shape[0], bounds) > SPLIT_ROWS:
        return 1, up(n_cells, WARP)
    piece_cells = up(max(PIECE_CELLS, -(-n_cells // MAX_PIECES)), WARP)
    return -(-n_cells // piece_cells), piece_cells
