"""From ops to kernel launches: grids, arguments, scratch.  Pure but for the addresses that it is given.

Sizes that change from run to run reach kernels through `dims` in device memory; grids are made for the sizes
of one run, or for the bounds where what is recorded has to serve every run.
"""

from collections.abc import Sequence

import numpy as np

from kernels.cuda import attending
from kernels.cuda.driver import Gemm, Launch, Pointer, Work
from kernels.cuda.fuse import ACT_GROUP, MAX_PRODUCTS, Step, fused, type_name_of
from kernels.cuda.launches import (
    ABSENT,
    N_THREADS,
    NO_ACTS,
    WARP,
    Acts,
    Place,
    acts_bytes,
    blocks,
    dims_of,
    end_of,
    launch,
    optional,
    parts_at,
    up,
)
from kernels.dtype import DType
from kernels.ops.attention import Attention, StoreKV
from kernels.ops.conv import ShortConv
from kernels.ops.experts import GATINGS, ExpertMatmul, Route, SlotSum
from kernels.ops.gate import ACTIVATIONS, Gate
from kernels.ops.matmul import Matmul
from kernels.ops.norm import RmsNorm
from kernels.ops.op import Op
from kernels.ops.rope import Rope, Rotation
from kernels.ops.rows import Rows
from kernels.ops.softcap import SoftCap
from kernels.tensor import Bounds, Dim, Tensor, value_of

WARPS_OF_PRODUCT, ROWS_PER_WARP = 4, 2  # of few columns; in the kernels as WARPS and kRows
MAX_COLS = 8  # that one reading of a weight serves
GEMM_ROWS = 24  # from so many on the library's product is taken; see docs/performance.md
MAX_TAPS = 16


def scratch_bytes(op: Op, bounds: Bounds, *, has_gemm: bool) -> int:
    """What the op's kernels need besides their tensors."""
    match op:
        case Matmul():
            n = value_of(op.x.shape[0], bounds)
            needed = 0
            if op.weight.dtype.is_quantized:
                needed = end_of(acts_bytes(n, op.x.width))
            if has_gemm and n >= GEMM_ROWS:
                needed = max(needed, end_of(_halves(op, n)))
            return needed
        case ExpertMatmul():
            n = value_of(op.x.shape[0], bounds)
            return end_of(acts_bytes(n, op.x.width)) if op.weight.dtype.is_quantized else 0
        case Attention():
            return attending.scratch_bytes(op, bounds)
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
            return attending.attention(op, place, values, acts)
        case [ShortConv() as op]:
            return _short_conv(op, place, values)
        case [Gate() as op]:
            size = value_of(op.gate.shape[0], values) * op.gate.width
            args = [place.address(op.gate), optional(place, op.up), place.address(op.out), *acts]
            numbers = (ACTIVATIONS.index(op.activation), op.gate.width)
            return _elements("gate", size, place, args, numbers, op.gate.shape[0])
        case [SoftCap() as op]:
            size = value_of(op.x.shape[0], values) * op.x.width
            args = [*map(place.address, (op.x, op.out))]
            return _elements("softcap", size, place, args, (op.cap, op.x.width), op.x.shape[0])
        case [Route() as op]:
            return _route(op, place, values)
        case [SlotSum() as op]:
            n = value_of(op.out.shape[0], values) * op.out.width
            args = [place.address(op.x), optional(place, op.residual), place.address(op.out)]
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
    start = place.scratch + (attending.partial_bytes(op, place.bounds) if isinstance(op, Attention) else 0)
    return Acts(out, parts_at(start, acts_bytes(value_of(out.shape[0], place.bounds), out.width)))


def _elements(
    kernel: str, n: int, place: Place, pointers: Sequence[Pointer], numbers: Sequence[float], dim: Dim
) -> Sequence[Work]:
    """A thread for each number."""
    args = [*pointers, *map(_number, numbers), *dims_of(place, dim)]
    return [launch(kernel, "", (blocks(n, N_THREADS), 1, 1), N_THREADS, args)]


def _rows(op: Rows, place: Place, values: Bounds) -> Sequence[Work]:
    width = op.table.width
    args = [
        *map(place.address, (op.table, op.ids, op.out)),
        np.float32(op.scale),
        *map(np.int32, (op.table.dtype.ggml_id, width)),
        np.int64(op.table.dtype.n_bytes(width)),
        *dims_of(place, op.ids.shape[0]),
    ]
    return [launch("rows", "", (value_of(op.ids.shape[0], values), 1, 1), N_THREADS, args)]


def _rms_norm(op: RmsNorm, place: Place, values: Bounds, acts: Sequence[Pointer]) -> Sequence[Work]:
    chunk = op.chunk
    n_chunk = op.x.width // chunk
    n_threads = min(1024, max(WARP, up(chunk // 4, WARP)))
    args = [
        place.address(op.x),
        optional(place, op.weight),
        optional(place, op.residual),
        place.address(op.out),
        *acts,
        np.int32(chunk),
        np.int32(n_chunk),
        np.float32(op.eps),
        *dims_of(place, op.x.shape[0]),
    ]
    n = value_of(op.x.shape[0], values) * n_chunk
    return [launch("rms_norm", "", (n, 1, 1), n_threads, args)]


def _rope(op: Rope, place: Place, values: Bounds) -> Sequence[Work]:
    n_head = op.x.width // op.head_dim
    n_pair = len(op.rotation.inv_freq)
    n = value_of(op.x.shape[0], values) * n_head * (op.head_dim - n_pair)
    args = [
        *map(place.address, (op.x, op.positions, op.out)),
        *_rotation(place, op.rotation),
        *map(np.int32, (n_head, op.head_dim)),
        *dims_of(place, op.x.shape[0]),
    ]
    return [launch("rope", "", (blocks(n, N_THREADS), 1, 1), N_THREADS, args)]


def _store_kv(op: StoreKV, rope: Rope | None, place: Place, values: Bounds) -> Sequence[Work]:
    """rope: of the same rotation, done in the same launch."""
    n_kv, n_head = op.k.width // op.head_dim, 0 if rope is None else rope.x.width // op.head_dim
    n_heads = value_of(op.k.shape[0], values) * (n_kv + n_head)
    args = [
        *((ABSENT, ABSENT) if rope is None else map(place.address, (rope.x, rope.out))),
        *map(place.address, (op.k, op.v, op.positions, op.cells, op.k_state, op.v_state)),
        *_rotation(place, op.rotation),
        *map(np.int32, (op.k_state.dtype.ggml_id, n_head, n_kv, op.head_dim, op.page_size)),
        *dims_of(place, op.k.shape[0]),
    ]
    return [launch("store_kv", "", (blocks(n_heads * WARP, N_THREADS), 1, 1), N_THREADS, args)]


def _short_conv(op: ShortConv, place: Place, values: Bounds) -> Sequence[Work]:
    del values
    width = op.out.width
    tensors = (op.x, op.weight, op.state, op.rows, op.sources, op.targets, op.out)
    args = [
        *map(place.address, tensors),
        *map(np.int32, (width, op.weight.width)),
        *dims_of(place, op.x.shape[0]),
    ]
    return [launch("short_conv", "", (blocks(width, 64), 1, 1), 64, args)]


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
        pointers = optional(place, op.bias), optional(place, op.residual), place.address(op.out)
        args += [place.address(op.weight), *pointers, np.int32(op.out.width)]
    args += [ABSENT, ABSENT, ABSENT, ABSENT, np.int32(0)] * (MAX_PRODUCTS - len(products))
    others = sum(1 << i for i, op in enumerate(products) if op.weight.dtype is not dtype)
    args += [np.int32(others), np.int32(x.width), *dims_of(place, x.shape[0])]
    n_rows = WARPS_OF_PRODUCT * (1 if n_cols == MAX_COLS or not dtype.is_quantized else ROWS_PER_WARP)
    grid = (sum(blocks(op.out.width, n_rows) for op in products), -(-n // n_cols), 1)
    return launch(f"matvec_{n_cols}", type_name_of(products), grid, WARPS_OF_PRODUCT * WARP, args)


def _quantized(x: Tensor, place: Place, values: Bounds) -> tuple[Acts, Launch]:
    """Where activations lie as int8, and what brings them there."""
    made = Acts(x, parts_at(place.scratch, acts_bytes(value_of(x.shape[0], place.bounds), x.width)))
    n_groups = value_of(x.shape[0], values) * (x.width // ACT_GROUP)
    args = [place.address(x), *made.at, np.int32(x.width), *dims_of(place, x.shape[0])]
    grid = (blocks(n_groups * WARP, N_THREADS), 1, 1)
    return made, launch("quantize", "", grid, N_THREADS, args)


def _route(op: Route, place: Place, values: Bounds) -> Sequence[Work]:
    args = [
        *map(place.address, (op.logits, op.ids, op.weights)),
        *map(np.int32, (op.n_expert, op.n_used, GATINGS.index(op.gating))),
        *dims_of(place, op.logits.shape[0]),
    ]
    n = value_of(op.logits.shape[0], values)
    return [launch("route", "", (blocks(n * WARP, N_THREADS), 1, 1), N_THREADS, args)]


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
        optional(place, op.scales),
        place.address(op.out),
        *map(np.int32, (op.n_in, op.n_out)),
        np.int64(op.expert_bytes),
        *map(np.int32, (op.n_used, op.is_shared)),
        *dims_of(place, op.x.shape[0]),
    ]
    n_slots = value_of(op.x.shape[0], values) * op.n_used
    n_rows = WARPS_OF_PRODUCT * (ROWS_PER_WARP if op.weight.dtype.is_quantized else 1)
    grid = (n_slots, blocks(op.n_out, n_rows), 1)
    works.append(launch("expert_matvec", op.weight.dtype.name, grid, WARPS_OF_PRODUCT * WARP, args))
    return works, acts


def _by_library(op: Matmul, place: Place, n: int) -> Sequence[Work]:
    """Both factors as f16, the library's product, and what is left to do to its result."""
    n_in, n_out, dtype = op.x.width, op.out.width, op.weight.dtype
    dims = dims_of(place, op.x.shape[0])
    bound = value_of(op.x.shape[0], place.bounds)
    weight, acts, scale, product = parts_at(place.scratch, _halves(op, bound))
    works: list[Work] = []
    if dtype is DType.F16:
        weight = place.address(op.weight)
    else:
        n_units = n_out * n_in // (ACT_GROUP if dtype.is_quantized else 1)
        args = [place.address(op.weight), weight, *map(np.int32, (n_in, n_out))]
        grid = (blocks(n_units, N_THREADS), 1, 1)
        works.append(launch("dequantize", dtype.name, grid, N_THREADS, args))
    halving = [place.address(op.x), acts, scale, np.int32(n_in), *dims]
    works.append(launch("halve", "", (n, 1, 1), N_THREADS, halving))
    works.append(Gemm(acts, weight, product, n, n_in, n_out))
    finishing = [
        product,
        scale,
        optional(place, op.bias),
        optional(place, op.residual),
        place.address(op.out),
        np.int32(n_out),
        *dims,
    ]
    works.append(launch("unhalve", "", (blocks(n * n_out, N_THREADS), 1, 1), N_THREADS, finishing))
    return works


def _halves(op: Matmul, n: int) -> Sequence[int]:
    """Bytes of the weight and the activations as f16, of the rows' scales, and of the product."""
    n_in, n_out = op.x.width, op.out.width
    weight_bytes = 0 if op.weight.dtype is DType.F16 else n_in * n_out * 2
    return weight_bytes, n * n_in * 2, n * 4, n * n_out * 4


def _rotation(place: Place, rotation: Rotation | None) -> Sequence[Pointer | np.generic]:
    if rotation is None:
        return [ABSENT, np.float32(1), np.int32(0), np.int32(0)]
    n_pair, is_neox = len(rotation.inv_freq), rotation.style == "neox"
    return [place.inv_freq[rotation], np.float32(rotation.magnitude), np.int32(n_pair), np.int32(is_neox)]


def _number(value: float) -> np.generic:
    return np.float32(value) if isinstance(value, float) else np.int32(value)
