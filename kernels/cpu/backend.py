"""The CPU backend: chooses an instruction set, owns the threads, turns ops into native segments.

Everything that a kernel relies on is checked once, when a segment is bound: dtypes, sizes, alignment, who may
be written.  What can change from run to run (dimensions, index arrays) is checked by `CpuSegment.run`.
"""

from collections import Counter
from collections.abc import Sequence

from kernels.backend import Binding
from kernels.checks import check_ops, refusal_of, values_within
from kernels.cpu import _cpu
from kernels.cpu.memory import allocate, round_to_pages
from kernels.cpu.segment import VECTOR_BYTES, WORD_BYTES, ExpertScratch, SegmentBuilder, native_cache
from kernels.host import HostBackend, HostBuffer
from kernels.memory import OutOfMemory
from kernels.ops.attention import Attention, StoreKV
from kernels.ops.experts import ExpertMatmul
from kernels.ops.matmul import Matmul
from kernels.ops.op import Op
from kernels.ops.rope import Rope, Rotation
from kernels.tensor import Bounds, Dim, value_of

ALIGNMENT = VECTOR_BYTES  # a cache line, and the widest vector
MAX_THREADS = 1024
EMULATED = "avx512-emulated"
# What one thread reads while several would wait for one another, and for the cores that other processes want,
# as long as they save.  No model that anybody uses reads so little for a token; see docs/performance.md.
SMALL_BYTES = 64 << 20
ROWS_AT_ONCE = 4  # that one reading of the weights serves in about the time of one row


def available_isas() -> list[str]:
    """Instruction sets this machine runs, best first, and the emulated 512-bit path for tests, last."""
    return _cpu.available_isas()


class CpuBackend(HostBackend):
    """Satisfies `kernels.backend.Backend` with native kernels on n_threads threads, the caller's among them.

    isa forces an instruction set; ValueError names those there are.  fail_allocation: the n-th allocation,
    counted from 1, fails; for tests of loading.  small_bytes: runs that read less are done by one thread.
    """

    def __init__(
        self,
        n_threads: int,
        isa: str | None = None,
        fail_allocation: int | None = None,
        name: str = "cpu",
        small_bytes: int = SMALL_BYTES,
    ) -> None:
        known = available_isas()
        if isa is not None and isa not in known:
            raise ValueError(
                f"instruction set {isa!r} is unknown or missing here; there are {', '.join(known)}"
            )
        if not 1 <= n_threads <= MAX_THREADS:
            raise ValueError(f"n_threads is {n_threads}, expected 1..{MAX_THREADS}")
        super().__init__(name)
        self.isa = isa or known[0]
        self._pool = _cpu.Pool(n_threads)
        self._allocations_left = fail_allocation
        self._small_bytes = small_bytes

    @property
    def n_threads(self) -> int:
        """Threads that run an op."""
        return self._pool.n_threads

    @property
    def pool(self) -> _cpu.Pool:
        """The threads, for a worker."""
        return self._pool

    @property
    def alignment(self) -> int:
        """Byte alignment of tensors in an arena."""
        return ALIGNMENT

    def refuses(self, op: Op) -> str | None:
        """Why there is no kernel for the op, or None."""
        refusal = refusal_of(op, max_taps=_cpu.MAX_TAPS)
        if refusal is None and isinstance(op, Rope | StoreKV):
            return _refuses_rotation(op.head_dim, op.rotation)
        return refusal

    def workspace_bytes(self, op: Op, bounds: Bounds) -> int:
        """Scratch: of each thread the panels and sums of a product or of attention, and what all share.

        A product takes for each thread 32 KiB of panels and 256 bytes for each of at most 256 rows of
        activations, and once all activations as int8; a product with experts the same of every slot.
        Attention takes for each thread two rows per query it works on (96 queries, or those of one row where
        that is more) and 32 cells of keys and values as floats: 104 KiB with heads of 64. Where rows are few,
        each chunk of 512 cells of the longest context has a result of its own, for 4 rows and key/value heads
        a thread at most: 256 KiB with 32 heads of 64, 2 threads and 16k cells. A bias takes for each
        thread a float for each distance and query head of a group.
        """
        match op:
            case Matmul():
                n = value_of(op.x.shape[0], bounds)
                n_groups = -(-op.x.width // _cpu.ACT_GROUP_N) if op.weight.dtype.is_quantized else 0
                panels = self.n_threads * _cpu.matmul_scratch(n) * WORD_BYTES
                return panels + n * n_groups * _cpu.ACT_GROUP_BYTES
            case ExpertMatmul():
                return ExpertScratch.of(op, bounds, self.n_threads).n_bytes
            case Attention():
                n_group = op.q.width // op.k_state.width
                return _cpu.attention_workspace_bytes(
                    cache=native_cache(op),
                    n_group=n_group,
                    max_rows=value_of(op.q.shape[0], bounds),
                    max_cells=value_of(op.tables.shape[1], bounds) * op.page_size,
                    has_bias=op.bias is not None,
                    reach=op.reach,
                    n_threads=self.n_threads,
                )
            case _:
                return 0

    def round_up(self, n_bytes: int) -> int:
        """Whole pages."""
        return round_to_pages(n_bytes)

    def allocate(self, n_bytes: int, label: str) -> HostBuffer:
        """Zeroed pages that exist; OutOfMemory when there are none."""
        if self._allocations_left is not None:
            self._allocations_left -= 1
            if self._allocations_left == 0:
                raise OutOfMemory(self._name, n_bytes, label)
        return allocate(self._name, n_bytes, label, self.allocations)

    def bind(self, binding: Binding) -> "CpuSegment":
        """Check and resolve everything; ValueError says which tensor of which op does not fit, and why."""
        check_ops(self, binding)
        builder = SegmentBuilder(_cpu.Segment(self._pool, self.isa), binding)
        for op in binding.ops:
            builder.add(op)
        return CpuSegment(builder.segment, binding, builder.symbols, self._small_bytes)


class CpuSegment:
    """A native segment.  Holds the binding, whose memory the native side points into."""

    def __init__(
        self, segment: _cpu.Segment, binding: Binding, symbols: Sequence[str], small_bytes: int
    ) -> None:
        self._segment = segment
        self._binding = binding
        self._symbols = symbols
        self._small_bytes = small_bytes
        self._weight_bytes: Counter[Dim] = Counter()  # by the number of rows that are multiplied with them
        self._page_bytes: Counter[tuple[Dim, Dim]] = Counter()  # of caches, by the shape of their tables
        for op in binding.ops:
            if isinstance(op, Matmul):
                self._weight_bytes[op.x.shape[0]] += op.weight.n_bytes({})
            elif isinstance(op, ExpertMatmul):
                self._weight_bytes[op.x.shape[0]] += op.n_used * op.expert_bytes
            elif isinstance(op, Attention):
                cells_bytes = op.k_state.n_bytes({}) + op.v_state.n_bytes({})
                n_pages = value_of(op.k_state.shape[0], {}) // op.page_size
                self._page_bytes[op.tables.shape[0], op.tables.shape[1]] += cells_bytes // n_pages

    def run(self, values: Bounds) -> None:
        """Execute without the GIL.

        KeyError names a symbol without value; ValueError a value over its bound, or an index input with an
        entry out of range: then nothing has been written.
        """
        self._segment.run(self.values(values), is_alone=False)

    def is_small(self, values: Bounds) -> bool:
        """Whether so little is read that one thread does it sooner than several agree on it."""
        n_bytes = sum(
            n * -(-value_of(n_rows, values) // ROWS_AT_ONCE) for n_rows, n in self._weight_bytes.items()
        )
        for (n_seqs, n_pages), n in self._page_bytes.items():
            n_bytes += n * value_of(n_seqs, values) * value_of(n_pages, values)
        return n_bytes < self._small_bytes

    @property
    def native(self) -> _cpu.Segment:
        """For a worker."""
        return self._segment

    def values(self, values: Bounds) -> list[int]:
        """The symbols' values in the native order; errors as `run`'s."""
        return values_within(self._symbols, values, self._binding.bounds)


def _refuses_rotation(head_dim: int, rotation: Rotation | None) -> str | None:
    if rotation is None or head_dim <= _cpu.MAX_ROTATED:
        return None
    return f"head_dim {head_dim} is over {_cpu.MAX_ROTATED}"
