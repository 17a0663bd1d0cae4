"""What backends with compiled kernels check alike, so that no kernel has to: ops, scratch, sizes of a run."""

from collections.abc import Sequence

from kernels.backend import Backend, Binding
from kernels.dtype import DType
from kernels.ops.attention import Attention, StoreKV
from kernels.ops.conv import ShortConv
from kernels.ops.experts import MAX_EXPERTS, ExpertMatmul, Route, SlotSum
from kernels.ops.gate import Gate
from kernels.ops.matmul import Matmul
from kernels.ops.norm import RmsNorm
from kernels.ops.op import Op
from kernels.ops.rope import Rope
from kernels.ops.rows import Rows
from kernels.ops.softcap import SoftCap
from kernels.tensor import Bounds

WEIGHT_DTYPES = frozenset(d for d in DType if d.is_quantized) | {DType.F32, DType.F16, DType.BF16}
STATE_DTYPES = frozenset({DType.F32, DType.F16, DType.Q8_0})
MAX_WIDTH = 1 << 30  # of a window or chunk: a kernel adds two of them and a cell without looking


def refusal_of(op: Op, *, max_taps: int) -> str | None:
    """Why kernels of every op for these dtypes cannot do this one; None when they can."""
    match op:
        case Rows():
            return None if op.table.dtype in WEIGHT_DTYPES else f"no kernel reads rows of {op.table}"
        case Matmul() | ExpertMatmul():
            return None if op.weight.dtype in WEIGHT_DTYPES else f"no kernel multiplies with {op.weight}"
        case StoreKV():
            return _refusal_of_cache(op)
        case Attention():
            return _refusal_of_cache(op) or _refusal_of_mask(op)
        case ShortConv():
            n_taps = op.weight.width
            return None if n_taps <= max_taps else f"{n_taps} taps are over {max_taps}"
        case Route():
            return None if op.n_expert <= MAX_EXPERTS else f"{op.n_expert} experts are over {MAX_EXPERTS}"
        case RmsNorm() | Rope() | Gate() | SoftCap() | SlotSum():
            return None
        case _:
            return f"no kernel for {type(op).__name__}"


def _refusal_of_cache(op: StoreKV | Attention) -> str | None:
    k, v = op.k_state, op.v_state
    is_known = k.dtype is v.dtype and k.shape == v.shape and k.dtype in STATE_DTYPES
    return None if is_known else f"no kernel for a cache of {k} and {v}"


def _refusal_of_mask(op: Attention) -> str | None:
    for name, width in (("window", op.window), ("chunk", op.chunk)):
        if not 0 <= width <= MAX_WIDTH:
            return f"a {name} of {width} cells is outside 0..{MAX_WIDTH}"
    if not 0 <= op.temperature_length <= MAX_WIDTH:
        return f"a temperature that changes every {op.temperature_length} cells is outside 0..{MAX_WIDTH}"
    return None


def check_ops(backend: Backend, binding: Binding) -> None:
    """ValueError names an op that the backend refuses, or whose scratch the workspace does not hold."""
    for op in binding.ops:
        refusal = backend.refuses(op)
        if refusal is not None:
            raise ValueError(f"{type(op).__name__} in layer {op.layer}: {refusal}")
        needed = backend.workspace_bytes(op, binding.bounds)
        if binding.workspace.n_bytes < needed:
            raise ValueError(f"{op}: workspace has {binding.workspace.n_bytes} bytes, needs {needed}")


def values_within(symbols: Sequence[str], values: Bounds, bounds: Bounds) -> list[int]:
    """The symbols' values in order; KeyError names one that is missing, ValueError one over its bound."""
    return [_within(name, values[name], bounds[name]) for name in symbols]


def _within(name: str, value: int, bound: int) -> int:
    if not 0 <= value <= bound:
        raise ValueError(f"{name} is {value}, this plan was made for 0..{bound}")
    return value
