"""From ops to kernel launches: grids, arguments, scratch.  Pure but for the addresses that it is given.

Sizes that change from run to run reach kernels through `dims` in device memory; grids are made for the sizes
of one run, or for the bounds where what is recorded has to serve every run.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from kernels.cuda.driver import Gemm, Launch, Pointer, Work
from kernels.cuda.fuse import ACT_GROUP, MAX_PRODUCTS, Step, fused, merges, type_name_of
from kernels.dtype import DType
from kernels.ops.attention import Attention, StoreKV
from kernels.ops.conv import ShortConv
from kernels.ops.experts import GATINGS, ExpertMatmul, Route, SlotSum
from kernels.ops.gate import Gate
from kernels.ops.matmul import Matmul
from kernels.ops.norm import RmsNorm
from kernels.ops.op import Op
from kernels.ops.rope import Rope, Rotation
from kernels.ops.rows import Rows
from kernels.ops.softcap import SoftCap
from kernels.tensor import Bounds, Dim, Sym, Tensor, value_of

WARP = 32
N_THREADS = 256
WARPS_OF_PRODUCT, ROWS_PER_WARP = 4, 2  # of few columns; in the kernels as WARPS and kRows
MAX_COLS = 8  # that one reading of a weight serves
GEMM_ROWS = 24  # from so many on the library's product is taken; see docs/performance.md
SPLIT_ROWS = 64  # with more rows, each attends to its cells in one piece: there is enough to do
PIECE_CELLS = 128  # of one piece otherwise
MAX_PIECES = 64
WARPS_PER_BLOCK = 16
TILED_ROWS = 17  # from so many on attention goes by tiles
TILED_TYPES = (DType.F16, DType.Q8_0)
TILED_DIMS = (64, 128, 256)  # of a head, that there is a kernel for
TILE_CELLS, LINES_PER_WARP, WARPS_OF_TILE = 32, 16, 4  # in the kernels as STEP, LINES
MAX_HEAD_DIM = 256
MAX_TAPS = 16
ALIGNMENT = 256
ABSENT: Pointer = 0


@dataclass(frozen=True, slots=True)
class Place:
    """Where everything lies on the device."""

    address: Callable[[Tensor], Pointer]
    dims: Pointer
    symbols: Sequence[str]
    inv_freq: Mapping[Rotation, Pointer]
    counters: Pointer  # `fuse.MAX_COUNTERS` zeros of 32 bits
    scratch: Pointer
    bounds: Bounds
    has_gemm: bool

    def bytes_of(self, tensor: Tensor) -> range:
        """The addresses of its bytes."""
        start = self.address(tensor)
        return range(start, start + tensor.n_bytes(self.bounds))


@dataclass(frozen=True, slots=True)
class Acts:
    """The int8 form of a value, in the scratch: addresses of numbers, scales and sums."""

    tensor: Tensor
    at: tuple[Pointer, ...]


NO_ACTS = (ABSENT, ABSENT, ABSENT)


def scratch_bytes(op: Op, bounds: Bounds, *, has_gemm: bool) -> int:
    """What the op's kernels need besides their tensors."""
    match op:
        case Matmul():
            n = value_of(op.x.shape[0], bounds)
            needed = 0
            if op.weight.dtype.is_quantized:
                needed = _end(_acts(n, op.x.width))
            if has_gemm and n >= GEMM_ROWS:
                needed = max(needed, _end(_halves(op, n)))
            return needed
        case ExpertMatmul():
            n = value_of(op.x.shape[0], bounds)
            return _end(_acts(n, op.x.width)) if op.weight.dtype.is_quantized else 0
        case Attention():
            acts = _end(_acts(value_of(op.q.shape[0], bounds), op.q.width)) if merges(op, bounds) else 0
            return _partial_bytes(op, bounds) + acts
        case _:
            return 0


def works_of(ops: Sequence[Op], place: Place, values: Bounds) -> Sequence[Work]:
    """What does the ops, in order, for sizes up to `values`."""
    found: list[Work] = []
    acts: Acts | None = None  # in the scratch: what made it left it there, or the first product that reads it
    for step in fused(ops, place.bounds, place.bytes_of):
        match step.ops[0]:
            case Matmul():
                works, acts = _products(step.ops, place, values, acts)
            case ExpertMatmul() as op:
                works, acts = _expert_matmul(op, place, values, acts)
            case op:
                made = _acts_of(step, place)
                acts = made if made is not None or isinstance(op, Attention) else acts
                works = _works_of(step.ops, place, values, NO_ACTS if made is None else made.at)
        found += works
    return found


def _works_of(ops: Sequence[Op], place: Place, values: Bounds, acts: Sequence[Pointer]) -> Sequence[Work]:
    """Of a step that is no product; acts: where the int8 form of its result goes."""
    match ops:
        case [Rows() as op]:
            return _rows(op, place, values)
        case [RmsNorm() as op]:
            return _rms_norm(op, place, values, acts)
        case [Rope() as op]:
            return _rope(op, place, values)
        case [StoreKV() as op]:
            return _store_kv(op, None, place, values)
        case [Rope() as rope, StoreKV() as op]:
            return _store_kv(op, rope, place, values)
        case [Attention() as op]:
            return _attention(op, place, values, acts)
        case [ShortConv() as op]:
            return _short_conv(op, place, values)
        case [Gate() as op]:
            size = value_of(op.gate.shape[0], values) * op.gate.width
            args = [*map(place.address, (op.gate, op.up, op.out)), *acts]
            numbers = (op.activation == "gelu", op.gate.width)
            return _elements("gate", size, place, args, numbers, op.gate.shape[0])
        case [SoftCap() as op]:
            size = value_of(op.x.shape[0], values) * op.x.width
            args = [*map(place.address, (op.x, op.out))]
            return _elements("softcap", size, place, args, (op.cap, op.x.width), op.x.shape[0])
        case [Route() as op]:
            return _route(op, place, values)
        case [SlotSum() as op]:
            n = value_of(op.out.shape[0], values) * op.out.width
            args = [place.address(op.x), _optional(place, op.residual), place.address(op.out)]
            numbers = (op.x.width // op.out.width, op.out.width)
            return _elements("slot_sum", n, place, args, numbers, op.out.shape[0])
        case _:
            raise TypeError(f"no kernel for {' and '.join(type(op).__name__ for op in ops)}")


def _acts_of(step: Step, place: Place) -> Acts | None:
    """Where the step leaves the int8 form of what it makes."""
    if not step.makes_acts:
        return None
    (op,) = step.ops
    (out,) = op.writes
    start = place.scratch + (_partial_bytes(op, place.bounds) if isinstance(op, Attention) else 0)
    return Acts(out, _at(start, _acts(value_of(out.shape[0], place.bounds), out.width)))


def _launch(
    kernel: str,
    type_name: str,
    grid: tuple[int, int, int],
    n_threads: int,
    args: Sequence[Pointer | np.generic],
    shared_bytes: int = 0,
) -> Launch:
    """A launch whose addresses are as wide as kernels take them."""
    sized = tuple(np.uint64(arg) if isinstance(arg, int) else arg for arg in args)
    return Launch(kernel, type_name, grid, n_threads, sized, shared_bytes)


def _elements(
    kernel: str, n: int, place: Place, pointers: Sequence[Pointer], numbers: Sequence[float], dim: Dim
) -> Sequence[Work]:
    """A thread for each number."""
    args = [*pointers, *map(_number, numbers), *_dims(place, dim)]
    return [_launch(kernel, "", (_blocks(n, N_THREADS), 1, 1), N_THREADS, args)]


def _rows(op: Rows, place: Place, values: Bounds) -> Sequence[Work]:
    width = op.table.width
    args = [
        *map(place.address, (op.table, op.ids, op.out)),
        np.float32(op.scale),
        *map(np.int32, (op.table.dtype.ggml_id, width)),
        np.int64(op.table.dtype.n_bytes(width)),
        *_dims(place, op.ids.shape[0]),
    ]
    return [_launch("rows", "", (value_of(op.ids.shape[0], values), 1, 1), N_THREADS, args)]


def _rms_norm(op: RmsNorm, place: Place, values: Bounds, acts: Sequence[Pointer]) -> Sequence[Work]:
    chunk = op.chunk
    n_chunk = op.x.width // chunk
    n_threads = min(1024, max(WARP, _up(chunk // 4, WARP)))
    args = [
        place.address(op.x),
        _optional(place, op.weight),
        _optional(place, op.residual),
        place.address(op.out),
        *acts,
        np.int32(chunk),
        np.int32(n_chunk),
        np.float32(op.eps),
        *_dims(place, op.x.shape[0]),
    ]
    n = value_of(op.x.shape[0], values) * n_chunk
    return [_launch("rms_norm", "", (n, 1, 1), n_threads, args)]


def _rope(op: Rope, place: Place, values: Bounds) -> Sequence[Work]:
    n_head = op.x.width // op.head_dim
    n_pair = len(op.rotation.inv_freq)
    n = value_of(op.x.shape[0], values) * n_head * (op.head_dim - n_pair)
    args = [
        *map(place.address, (op.x, op.positions, op.out)),
        *_rotation(place, op.rotation),
        *map(np.int32, (n_head, op.head_dim)),
        *_dims(place, op.x.shape[0]),
    ]
    return [_launch("rope", "", (_blocks(n, N_THREADS), 1, 1), N_THREADS, args)]


def _store_kv(op: StoreKV, rope: Rope | None, place: Place, values: Bounds) -> Sequence[Work]:
    """rope: of the same rotation, done in the same launch."""
    n_kv, n_head = op.k.width // op.head_dim, 0 if rope is None else rope.x.width // op.head_dim
    n_heads = value_of(op.k.shape[0], values) * (n_kv + n_head)
    args = [
        *((ABSENT, ABSENT) if rope is None else map(place.address, (rope.x, rope.out))),
        *map(place.address, (op.k, op.v, op.positions, op.cells, op.k_state, op.v_state)),
        *_rotation(place, op.rotation),
        *map(np.int32, (op.k_state.dtype.ggml_id, n_head, n_kv, op.head_dim, op.page_size)),
        *_dims(place, op.k.shape[0]),
    ]
    return [_launch("store_kv", "", (_blocks(n_heads * WARP, N_THREADS), 1, 1), N_THREADS, args)]


def _attention(op: Attention, place: Place, values: Bounds, acts: Sequence[Pointer]) -> Sequence[Work]:
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
    ]
    sizes = [_dim(place, op.q.shape[0]), *_dims(place, op.tables.shape[1])]
    tile_rows = _tile_rows(op, place.bounds)
    if tile_rows:
        n_slot = min(tile_rows, max(1, value_of(op.tables.shape[0], values)))
        grid = (n_piece, n_kv, _blocks(n, tile_rows) * n_slot)
        works = [_tiled(op, grid, [*tensors, *numbers], tile_rows, n_slot, sizes)]
    else:
        merging = [place.counters if is_merged else ABSENT, *acts]
        works = [_row_by_row(op, (n_piece, n_kv, n), [*tensors, *merging, *numbers], sizes)]
    if n_piece > 1 and not is_merged:
        merging = [
            partials,
            *map(place.address, (op.n_visible, op.out)),
            *map(np.int32, (n_head, op.head_dim, op.window, op.chunk, piece_cells, n_piece)),
            *_dims(place, op.q.shape[0]),
        ]
        works.append(_launch("merge", "", (n_head, n, 1), min(N_THREADS, _up(op.head_dim, WARP)), merging))
    return works


def _tile_rows(op: Attention, bounds: Bounds) -> int:
    """Rows of a tile; 0 where a warp for each row and head does it.

    That is so in plans of few rows, which are recorded and cut their cells into the more pieces; for caches
    of f32, whose exactness f16 factors would take; and for heads, pages and groups that the tiles' sixteen
    dimensions, eight cells and lines do not fit.
    """
    n_group = op.q.width // op.k_state.width
    is_tiled = (
        value_of(op.q.shape[0], bounds) >= TILED_ROWS
        and op.k_state.dtype in TILED_TYPES
        and op.head_dim % 16 == 0
        and op.page_size % 8 == 0
        and n_group <= _tile_lines(op)
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
    n_warps = _blocks(tile_rows * op.q.width // op.k_state.width, LINES_PER_WARP) * _warps_per_line(op)
    most = next(dims for dims in TILED_DIMS if op.head_dim <= dims)
    keys, cells = op.head_dim * (TILE_CELLS + 8), TILE_CELLS * (op.head_dim + 8)
    shared_bytes = 2 * (keys + cells)
    if _warps_per_line(op) > 1:
        shared_bytes += LINES_PER_WARP * n_warps * WARP * 4
    args = [*args, np.int32(tile_rows), np.int32(n_slot), *sizes]
    return _launch(f"tiled_attention_{most}", "", grid, n_warps * WARP, args, shared_bytes)


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
    return _launch("attention", "", grid, n_warps * WARP, args, shared_bytes)


def _partial_bytes(op: Attention, bounds: Bounds) -> int:
    """Of what blocks found that each have a piece of a row's cells."""
    n_piece, _ = _pieces(op, bounds)
    if n_piece == 1 and not merges(op, bounds):
        return 0
    n_rows = value_of(op.q.shape[0], bounds) * (op.q.width // op.head_dim)
    return _end([n_rows * n_piece * (op.head_dim + 2) * 4])


def _pieces(op: Attention, bounds: Bounds) -> tuple[int, int]:
    """Pieces of a row's cells, and cells of a piece: the plan's, so that every run cuts sums alike."""
    n_cells = max(1, value_of(op.tables.shape[1], bounds) * op.page_size)
    if value_of(op.q.shape[0], bounds) > SPLIT_ROWS:
        return 1, _up(n_cells, WARP)
    piece_cells = _up(max(PIECE_CELLS, -(-n_cells // MAX_PIECES)), WARP)
    return -(-n_cells // piece_cells), piece_cells


def _short_conv(op: ShortConv, place: Place, values: Bounds) -> Sequence[Work]:
    del values
    width = op.out.width
    tensors = (op.x, op.weight, op.state, op.rows, op.sources, op.targets, op.out)
    args = [
        *map(place.address, tensors),
        *map(np.int32, (width, op.weight.width)),
        *_dims(place, op.x.shape[0]),
    ]
    return [_launch("short_conv", "", (_blocks(width, 64), 1, 1), 64, args)]


def _products(
    ops: Sequence[Op], place: Place, values: Bounds, acts: Acts | None
) -> tuple[Sequence[Work], Acts | None]:
    """Products that share x, and what is left in the scratch after them; acts: what is there before."""
    products = [op for op in ops if isinstance(op, Matmul)]
    first = products[0]
    x, n = first.x, value_of(first.x.shape[0], values)
    if place.has_gemm and n >= GEMM_ROWS:
        return _by_library(first, place, n), None
    if not first.weight.dtype.is_quantized:
        return [_matvec(products, place, n, NO_ACTS)], acts
    if acts is not None and acts.tensor is x:
        return [_matvec(products, place, n, acts.at)], acts
    made, quantizing = _quantized(x, place, values)
    return [quantizing, _matvec(products, place, n, made.at)], made


def _matvec(products: Sequence[Matmul], place: Place, n: int, acts: Sequence[Pointer]) -> Launch:
    x, dtype = products[0].x, products[0].weight.dtype
    n_cols = next(cols for cols in (1, 2, 4, MAX_COLS) if n <= cols or cols == MAX_COLS)
    args: list[Pointer | np.generic] = [*acts, place.address(x)]
    for op in products:
        pointers = _optional(place, op.bias), _optional(place, op.residual), place.address(op.out)
        args += [place.address(op.weight), *pointers, np.int32(op.out.width)]
    args += [ABSENT, ABSENT, ABSENT, ABSENT, np.int32(0)] * (MAX_PRODUCTS - len(products))
    others = sum(1 << i for i, op in enumerate(products) if op.weight.dtype is not dtype)
    args += [np.int32(others), np.int32(x.width), *_dims(place, x.shape[0])]
    n_rows = WARPS_OF_PRODUCT * (1 if n_cols == MAX_COLS or not dtype.is_quantized else ROWS_PER_WARP)
    grid = (sum(_blocks(op.out.width, n_rows) for op in products), -(-n // n_cols), 1)
    return _launch(f"matvec_{n_cols}", type_name_of(products), grid, WARPS_OF_PRODUCT * WARP, args)


def _quantized(x: Tensor, place: Place, values: Bounds) -> tuple[Acts, Launch]:
    """Where activations lie as int8, and what brings them there."""
    made = Acts(x, _at(place.scratch, _acts(value_of(x.shape[0], place.bounds), x.width)))
    n_groups = value_of(x.shape[0], values) * (x.width // ACT_GROUP)
    args = [place.address(x), *made.at, np.int32(x.width), *_dims(place, x.shape[0])]
    grid = (_blocks(n_groups * WARP, N_THREADS), 1, 1)
    return made, _launch("quantize", "", grid, N_THREADS, args)


def _route(op: Route, place: Place, values: Bounds) -> Sequence[Work]:
    args = [
        *map(place.address, (op.logits, op.ids, op.weights)),
        *map(np.int32, (op.n_expert, op.n_used, GATINGS.index(op.gating))),
        *_dims(place, op.logits.shape[0]),
    ]
    n = value_of(op.logits.shape[0], values)
    return [_launch("route", "", (_blocks(n * WARP, N_THREADS), 1, 1), N_THREADS, args)]


def _expert_matmul(
    op: ExpertMatmul, place: Place, values: Bounds, acts: Acts | None
) -> tuple[Sequence[Work], Acts | None]:
    """As `_products`."""
    works: list[Work] = []
    at = NO_ACTS
    if op.weight.dtype.is_quantized:
        if acts is None or acts.tensor is not op.x:
            acts, quantizing = _quantized(op.x, place, values)
            works.append(quantizing)
        at = acts.at
    args = [
        place.address(op.weight),
        *at,
        *map(place.address, (op.x, op.ids)),
        _optional(place, op.scales),
        place.address(op.out),
        *map(np.int32, (op.n_in, op.n_out)),
        np.int64(op.expert_bytes),
        *map(np.int32, (op.n_used, op.is_shared)),
        *_dims(place, op.x.shape[0]),
    ]
    n_slots = value_of(op.x.shape[0], values) * op.n_used
    n_rows = WARPS_OF_PRODUCT * (ROWS_PER_WARP if op.weight.dtype.is_quantized else 1)
    grid = (n_slots, _blocks(op.n_out, n_rows), 1)
    works.append(_launch("expert_matvec", op.weight.dtype.name, grid, WARPS_OF_PRODUCT * WARP, args))
    return works, acts


def _by_library(op: Matmul, place: Place, n: int) -> Sequence[Work]:
    """Both factors as f16, the library's product, and what is left to do to its result."""
    n_in, n_out, dtype = op.x.width, op.out.width, op.weight.dtype
    dims = _dims(place, op.x.shape[0])
    bound = value_of(op.x.shape[0], place.bounds)
    weight, acts, scale, product = _at(place.scratch, _halves(op, bound))
    works: list[Work] = []
    if dtype is DType.F16:
        weight = place.address(op.weight)
    else:
        n_units = n_out * n_in // (ACT_GROUP if dtype.is_quantized else 1)
        args = [place.address(op.weight), weight, *map(np.int32, (n_in, n_out))]
        grid = (_blocks(n_units, N_THREADS), 1, 1)
        works.append(_launch("dequantize", dtype.name, grid, N_THREADS, args))
    halving = [place.address(op.x), acts, scale, np.int32(n_in), *dims]
    works.append(_launch("halve", "", (n, 1, 1), N_THREADS, halving))
    works.append(Gemm(acts, weight, product, n, n_in, n_out))
    finishing = [
        product,
        scale,
        _optional(place, op.bias),
        _optional(place, op.residual),
        place.address(op.out),
        np.int32(n_out),
        *dims,
    ]
    works.append(_launch("unhalve", "", (_blocks(n * n_out, N_THREADS), 1, 1), N_THREADS, finishing))
    return works


def _acts(n: int, n_in: int) -> Sequence[int]:
    """Bytes of int8 activations, their scales and their sums."""
    return n * n_in, n * (n_in // ACT_GROUP) * 4, n * (n_in // 16) * 2


def _halves(op: Matmul, n: int) -> Sequence[int]:
    """Bytes of the weight and the activations as f16, of the rows' scales, and of the product."""
    n_in, n_out = op.x.width, op.out.width
    weight_bytes = 0 if op.weight.dtype is DType.F16 else n_in * n_out * 2
    return weight_bytes, n * n_in * 2, n * 4, n * n_out * 4


def _at(start: Pointer, sizes: Sequence[int]) -> tuple[Pointer, ...]:
    """Addresses of parts of these sizes, one after the other."""
    found: list[Pointer] = []
    for n_bytes in sizes:
        found.append(start)
        start += _up(n_bytes, ALIGNMENT)
    return tuple(found)


def _end(sizes: Sequence[int]) -> int:
    return sum(_up(n_bytes, ALIGNMENT) for n_bytes in sizes)


def _rotation(place: Place, rotation: Rotation | None) -> Sequence[Pointer | np.generic]:
    if rotation is None:
        return [ABSENT, np.float32(1), np.int32(0), np.int32(0)]
    n_pair, is_neox = len(rotation.inv_freq), rotation.style == "neox"
    return [place.inv_freq[rotation], np.float32(rotation.magnitude), np.int32(n_pair), np.int32(is_neox)]


def _dim(place: Place, dim: Dim) -> np.int32:
    """A dimension as kernels take it: a number, or which of `dims`."""
    return np.int32(-1 - place.symbols.index(dim.name) if isinstance(dim, Sym) else dim)


def _dims(place: Place, dim: Dim) -> Sequence[Pointer | np.generic]:
    return [_dim(place, dim), place.dims]


def _optional(place: Place, tensor: Tensor | None) -> Pointer:
    return ABSENT if tensor is None else place.address(tensor)


def _number(value: float) -> np.generic:
    return np.float32(value) if isinstance(value, float) else np.int32(value)


def _blocks(n: int, per_block: int) -> int:
    return -(-n // per_block)


def _up(n: int, multiple: int) -> int:
    return -(-n // multiple) * multiple
