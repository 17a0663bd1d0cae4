"""Which ops of few rows one kernel does: neighbours that do not need one another, and int8 forms.

The plan laid out memory for ops one by one: what one op writes may lie where a neighbour's input lay, which
nobody needed any more.  Blocks of one kernel run in any order, so that neighbours are joined only where
nothing that one writes overlaps what another reads or writes; otherwise they stay apart.  Nothing changes
places with another op.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import permutations, takewhile

from kernels.ops.attention import Attention, StoreKV
from kernels.ops.experts import ExpertMatmul
from kernels.ops.gate import Gate
from kernels.ops.matmul import Matmul
from kernels.ops.norm import RmsNorm
from kernels.ops.op import Op
from kernels.ops.rope import Rope
from kernels.tensor import Bounds, Tensor, value_of

FUSED_ROWS = 16  # with more, launches are no longer what is waited for
MAX_PRODUCTS = 3  # of a kernel: queries, keys and values
MAX_TYPES = 2  # of their weights
ACT_GROUP = 32  # activations that share a scale
MAX_COUNTERS = 1024  # of blocks of a row's key/value head

BytesOf = Callable[[Tensor], range]  # a tensor's addresses


@dataclass(frozen=True, slots=True)
class Step:
    """What one kernel does (or the few that follow one another for an op).

    ops: one; or Matmuls that share x; or a Rope and the StoreKV after it.
    makes_acts: it also leaves the int8 form of what it makes in the scratch, where a product reads it next.
    """

    ops: tuple[Op, ...]
    makes_acts: bool = False


def fused(ops: Sequence[Op], bounds: Bounds, bytes_of: BytesOf) -> Sequence[Step]:
    """The ops in order, each in one step."""
    steps: list[Step] = []
    at = 0
    while at < len(ops):
        group = _neighbours(ops[at : at + MAX_PRODUCTS], bounds)
        while not _are_apart(group, bytes_of):
            group = group[:-1]
        at += len(group)
        steps.append(Step(tuple(group), _makes_acts(group[0], ops[at:], bounds)))
    return steps


def is_small(op: Op, bounds: Bounds) -> bool:
    """Whether it has few rows."""
    rows = op.k if isinstance(op, StoreKV) else op.writes[0]
    return value_of(rows.shape[0], bounds) <= FUSED_ROWS


def merges(op: Attention, bounds: Bounds) -> bool:
    """Whether its kernel also puts together what its blocks found."""
    n_kv = op.k_state.width // op.head_dim
    return is_small(op, bounds) and value_of(op.q.shape[0], bounds) * n_kv <= MAX_COUNTERS


def type_name_of(products: Sequence[Matmul]) -> str:
    """What their module is compiled for: the first one's type, and another after a plus."""
    return "+".join(dict.fromkeys(product.weight.dtype.name for product in products))


def _neighbours(ops: Sequence[Op], bounds: Bounds) -> Sequence[Op]:
    """The first op, and those after it that could be done with it."""
    first = ops[0]
    if not is_small(first, bounds):
        return ops[:1]
    match ops:
        case [Matmul(), *_]:
            alike = [op for op in takewhile(lambda op: isinstance(op, Matmul), ops) if isinstance(op, Matmul)]
            alike = list(takewhile(lambda op: op.x is alike[0].x, alike))
            return alike[: _n_joinable(alike)]
        case [Rope() as rope, StoreKV() as store, *_]:
            turned = (store.rotation, store.positions, store.head_dim, store.k.shape[0])
            is_alike = (rope.rotation, rope.positions, rope.head_dim, rope.x.shape[0]) == turned
            return ops[: 2 if is_alike else 1]
        case _:
            return ops[:1]


def _n_joinable(products: Sequence[Matmul]) -> int:
    """How many have weights that one module multiplies: of one type, or of two quantised ones."""
    for n in range(len(products), 1, -1):
        types = {product.weight.dtype for product in products[:n]}
        if len(types) == 1 or (len(types) <= MAX_TYPES and all(dtype.is_quantized for dtype in types)):
            return n
    return 1


def _are_apart(ops: Sequence[Op], bytes_of: BytesOf) -> bool:
    """Whether nothing that one writes overlaps what another reads or writes."""
    return not any(
        _overlap(bytes_of(written), bytes_of(other))
        for a, b in permutations(ops, 2)
        for written in a.writes
        for other in (*b.reads, *b.writes)
    )


def _overlap(a: range, b: range) -> bool:
    return max(a.start, b.start) < min(a.stop, b.stop)


def _makes_acts(op: Op, rest: Sequence[Op], bounds: Bounds) -> bool:
    """Whether a quantised product reads what the op makes, before anything else wants the scratch."""
    if not is_small(op, bounds):
        return False
    match op:
        case RmsNorm():
            n_together = op.chunk
        case Gate():
            n_together = op.out.width
        case Attention() if merges(op, bounds):
            n_together = op.q.width * op.head_dim // op.k_state.width  # a key/value head's queries
        case _:
            return False
    user = next((other for other in rest if isinstance(other, Matmul | ExpertMatmul | Attention)), None)
    is_read = isinstance(user, Matmul) and user.x is op.out and user.weight.dtype.is_quantized
    return is_read and n_together % ACT_GROUP == 0
