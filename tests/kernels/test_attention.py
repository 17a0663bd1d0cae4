"""Attention over a paged cache."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kernels.backend import Backend
from kernels.cpu.backend import CpuBackend, available_isas
from kernels.dtype import DType
from kernels.ops.attention import Attention, attention_ref
from kernels.ops.op import F32, I32, Array
from kernels.program import ShapeError
from kernels.tensor import Tensor
from tests.kernels.caches import CacheShape
from tests.kernels.conftest import BACKENDS, OneOp, each_backend, each_cpu, run_one_op, seeds

# float32 scores and sums against float64: relative to the largest value a row mixes
MAX_ERROR = 2e-6
# normalised mean square; the reference reads a q8_0 cache exactly, kernels quantise the query as well
MAX_Q8_NMSE = 1e-4
# against the reference over a cache that was not rounded at all
MAX_CACHE_NMSE = {DType.F16: 1e-6, DType.Q8_0: 2e-4}

PLAIN = (DType.F16, DType.F32)
ALL = (*PLAIN, DType.Q8_0)


@dataclass(frozen=True)
class Case:
    """Sequences with pages scattered over a cache."""

    q: F32
    k_state: Array
    v_state: Array
    tables: I32
    rows: I32
    n_visible: I32
    cache: CacheShape
    window: int = 0
    softcap: float = 0.0
    chunk: int = 0
    temperature: float = 0.0
    temperature_length: int = 0
    bias: F32 | None = None
    positions: I32 | None = None

    def build(self, g: OneOp, rows: slice = slice(None)) -> Tensor:
        """The op, of all rows or some."""
        return g.program.attention(
            g.input(self.q[rows]),
            g.state(self.k_state, self.cache.shape),
            g.state(self.v_state, self.cache.shape),
            g.input(self.tables),
            g.input(self.rows[rows]),
            g.input(self.n_visible[rows]),
            head_dim=self.cache.head_dim,
            page_size=self.cache.page_size,
            scale=self.cache.head_dim**-0.5,
            window=self.window,
            softcap=self.softcap,
            chunk=self.chunk,
            temperature=self.temperature,
            temperature_length=self.temperature_length,
            bias=None if self.bias is None else g.weight(self.bias),
            positions=None if self.positions is None else g.input(self.positions[rows]),
        )

    def run(self, backend: Backend, rows: slice = slice(None)) -> F32:
        """What a backend makes of all rows or some."""
        return run_one_op(backend, lambda g: self.build(g, rows))

    @property
    def op(self) -> Attention:
        """Of all rows."""
        g = OneOp()
        self.build(g)
        op = g.program._ops[0]
        assert isinstance(op, Attention)
        return op

    def expected(self) -> F32:
        """By the reference, straight."""
        bias = None
        if self.bias is not None and self.positions is not None:
            bias = self.bias, self.positions
        return attention_ref(
            self.q, self.k_state, self.v_state, self.tables, self.rows, self.n_visible, self.op, bias
        )

    def most_by_bias(self) -> float:
        """How far a result may be off for what a bias adds: its product with log2(e) and the sum are rounded.

        So is the sum less the largest, which may be twice as large as the largest score or bias.  A weight
        is off by that factor, and so is the sum that it is divided by.
        """
        if self.bias is None:
            return 0.0
        keys, values = (
            np.nan_to_num(self.cache.read(state, is_keys).astype(np.float64))
            for state, is_keys in ((self.k_state, True), (self.v_state, False))
        )
        n_group = self.q.shape[1] // self.cache.shape[1]
        heads = self.q.astype(np.float64).reshape(-1, self.cache.n_kv, n_group, self.cache.head_dim)
        scores = np.einsum("nghd,cgd->nghc", heads, keys) * self.op.scale
        most, largest = np.abs(self.bias).max(), np.abs(scores).max(initial=0.0)
        return float(2 * 2.0**-24 * (5 * most + 3 * largest) * np.abs(values).max())

    def expect(self, got: F32, atol: float) -> None:
        """Fail unless got is what the reference gives, within the bound of the cache's type."""
        want = self.expected()
        if self.cache.dtype is not DType.Q8_0:
            np.testing.assert_allclose(got, want, rtol=0, atol=atol + self.most_by_bias())
        elif want.size:
            assert nmse(got, want) <= MAX_Q8_NMSE


def nmse(got: F32, want: F32) -> float:
    """Mean square error over mean square, in float64."""
    wide = want.astype(np.float64)
    return float(np.mean((got - wide) ** 2) / np.mean(wide**2))


def make_case(
    cache: CacheShape, tables: I32, rows: I32, n_visible: I32, n_group: int, seed: int, **more: float
) -> Case:
    """Random queries, keys and values; cells that no row sees hold NaN.

    more: reach, of a random bias, is there for none; rows then stand at the last cell that they see.
    """
    rng = np.random.default_rng(seed)
    k, v = cache.empty(), cache.empty()
    for seq in np.unique(rows):
        cells = cache.cells_of(tables[seq], int(n_visible[rows == seq].max()))
        for state, is_keys in ((k, True), (v, False)):
            values = rng.standard_normal((len(cells), cache.shape[1]), np.float32)
            cache.write(state, cells, values, is_keys)
    q = rng.standard_normal((len(rows), n_group * cache.shape[1]), np.float32)
    window, chunk = int(more.get("window", 0)), int(more.get("chunk", 0))
    case = Case(q, k, v, tables, rows, n_visible, cache, window, more.get("softcap", 0.0), chunk)
    if "reach" not in more:
        return case
    bias = rng.standard_normal((2 * int(more["reach"]) + 1, q.shape[1] // cache.head_dim), np.float32)
    return replace(case, bias=2 * bias, positions=n_visible - 1, softcap=0.0)


@st.composite
def reaches(draw: st.DrawFn) -> dict[str, int]:
    """What makes a case with a bias, or without."""
    reach = draw(st.none() | st.integers(0, 40) | st.sampled_from([128, 300]))
    return {} if reach is None else {"reach": reach}


def anywhere(case: Case, seed: int) -> Case:
    """Rows that see as before, at any position; where there is a bias."""
    if case.positions is None:
        return case
    n_cells = case.tables.shape[1] * case.cache.page_size
    rng = np.random.default_rng(seed)
    return replace(case, positions=rng.integers(0, n_cells + 50, len(case.rows), dtype=np.int32))


@st.composite
def cases(draw: st.DrawFn, dtypes: tuple[DType, ...] = ALL) -> Case:
    """Any shape."""
    dtype = draw(st.sampled_from(dtypes))
    head_dims = st.sampled_from([32, 64, 96]) if dtype is DType.Q8_0 else st.integers(1, 70)
    head_dim, n_kv, n_group = draw(head_dims), draw(st.integers(1, 3)), draw(st.integers(1, 7))
    page_size, n_pages = draw(st.integers(1, 40) | st.sampled_from([32, 64])), draw(st.integers(1, 4))
    n_seqs, n = draw(st.integers(1, 3)), draw(st.integers(0, 5))
    seed = draw(seeds)
    rng = np.random.default_rng(seed)
    tables = rng.permutation(n_seqs * n_pages + 2)[: n_seqs * n_pages].reshape(n_seqs, n_pages)
    cache = CacheShape(n_seqs * n_pages + 2, page_size, n_kv, head_dim, dtype)
    rows = rng.integers(0, n_seqs, n, dtype=np.int32)
    n_visible = rng.integers(1, n_pages * page_size + 1, n, dtype=np.int32)
    if n and draw(st.booleans()):  # neighbours that see alike
        rows[:], n_visible[:-1] = rows[0], n_visible[0]
    case = make_case(
        cache, tables.astype(np.int32), rows, n_visible, n_group, seed,
        window=draw(st.sampled_from([0, 1, 5, 33])), softcap=draw(st.sampled_from([0.0, 2.0, 50.0])),
        chunk=draw(st.sampled_from([0, 0, 1, 2, 7, 32, 50])), **draw(reaches()),
    )  # fmt: skip
    return anywhere(case, seed)


def line_case(
    dtype: DType,
    n: int,
    n_cells: int,
    page_size: int = 32,
    head_dim: int = 32,
    n_group: int = 4,
    **more: float,
) -> Case:
    """The last n positions of one sequence of n_cells, as a prompt is processed; two key/value heads."""
    n_pages = -(-n_cells // page_size)
    tables = np.random.default_rng(11).permutation(n_pages + 3)[:n_pages].astype(np.int32)[None, :]
    n_visible = np.arange(n_cells - n + 1, n_cells + 1, dtype=np.int32)
    cache = CacheShape(n_pages + 3, page_size, 2, head_dim, dtype)
    return make_case(cache, tables, np.zeros(n, np.int32), n_visible, n_group, 12, **more)


def texts_case(
    dtype: DType,
    counts: Sequence[tuple[int, int]],
    page_size: int = 32,
    head_dim: int = 32,
    n_group: int = 1,
    **more: float,
) -> Case:
    """Sequences one after the other, each (rows, cells that all of them see), as encoders have their texts.

    Rows stand among the cells at the same distances.  Without a reach it is what attention to another
    sequence is, such as a decoder's to a text.
    """
    n_pages = max(-(-n_cells // page_size) for _, n_cells in counts)
    tables = np.random.default_rng(5).permutation(len(counts) * n_pages).astype(np.int32)
    rows = np.concatenate([np.full(n, i, np.int32) for i, (n, _) in enumerate(counts)])
    n_visible = np.concatenate([np.full(n, n_cells, np.int32) for n, n_cells in counts])
    cache = CacheShape(len(tables), page_size, 2, head_dim, dtype)
    case = make_case(cache, tables.reshape(len(counts), n_pages), rows, n_visible, n_group, 6, **more)
    if case.bias is None:
        return case
    places = [np.linspace(0, n_cells - 1, n).astype(np.int32) for n, n_cells in counts]
    return replace(case, positions=np.concatenate(places))


def long_case(dtype: DType = DType.F16, n: int = 6) -> Case:
    """Rows that see up to 300 cells of one sequence in pages of 16."""
    tables = np.random.default_rng(11).permutation(20).astype(np.int32)[None, :]
    n_visible = np.linspace(1, 300, n).astype(np.int32)
    cache = CacheShape(20, 16, 2, 32, dtype)
    return make_case(cache, tables, np.zeros(n, np.int32), n_visible, 4, 13)


@each_backend
@given(case=cases())
def test_rows_attend_to_what_they_see_and_nothing_else(backend: Backend, case: Case) -> None:
    case.expect(case.run(backend), MAX_ERROR * 5)


@each_backend
def test_rows_see_from_the_begin_of_their_chunk_on(backend: Backend) -> None:
    # chunk 2, positions 0 to 3 see {0}, {0, 1}, {2}, {2, 3} (BEHAVIOUR T7); equal keys weigh cells alike
    case = replace(line_case(DType.F32, 4, 4, n_group=1), chunk=2)
    cells = case.cache.cells_of(case.tables[0], 4)
    case.cache.write(case.k_state, cells, np.zeros((4, 64), np.float32), is_keys=True)
    values = np.repeat(np.array([[1], [10], [100], [1000]], np.float32), 64, axis=1)
    case.cache.write(case.v_state, cells, values, is_keys=False)
    np.testing.assert_allclose(case.run(backend)[:, 0], [1, 5.5, 100, 550], rtol=1e-6)


@each_backend
@pytest.mark.parametrize("dtype", ALL)
def test_queries_are_tempered_by_how_many_lengths_they_are_on(backend: Backend, dtype: DType) -> None:
    case = line_case(dtype, 16, 40, n_group=3)
    hot = replace(case, temperature=0.7, temperature_length=7)
    steps = np.array([(1 + position) // 7 for position in range(24, 40)])
    factors = (1 + 0.7 * np.log(1 + steps)).astype(np.float32)
    assert len(set(steps)) == 3
    by_hand = replace(case, q=case.q * factors[:, None])
    hot.expect(hot.run(backend), MAX_ERROR * 5)
    np.testing.assert_allclose(hot.expected(), by_hand.expected(), rtol=0, atol=1e-5)


@each_backend
def test_what_lies_before_a_chunk_does_not_even_reach_a_row_as_nan(backend: Backend) -> None:
    case = line_case(DType.F32, 40, 96, chunk=24)
    before = case.cache.cells_of(case.tables[0], 48)  # of rows 56 to 95, none sees these
    for state, is_keys in ((case.k_state, True), (case.v_state, False)):
        case.cache.write(state, before, np.full((48, 64), np.nan, np.float32), is_keys)
    case.expect(case.run(backend), MAX_ERROR)


@each_backend
@pytest.mark.parametrize("dtype", ALL)
def test_long_rows_agree(backend: Backend, dtype: DType) -> None:
    case = long_case(dtype)
    case.expect(case.run(backend), MAX_ERROR)


@each_cpu
@pytest.mark.parametrize("dtype", ALL)
@pytest.mark.parametrize(("window", "chunk"), [(0, 0), (40, 0), (700, 0), (0, 20), (0, 560), (600, 1130)])
@pytest.mark.parametrize("more", [{}, {"reach": 128}])
def test_prompts_over_several_partial_sums_agree(
    backend: CpuBackend, dtype: DType, window: int, chunk: int, more: dict[str, int]
) -> None:
    case = line_case(dtype, 70, 1170, window=window, chunk=chunk, **more)
    case.expect(case.run(backend), MAX_ERROR)


@each_backend
@pytest.mark.parametrize("dtype", MAX_CACHE_NMSE)
@pytest.mark.parametrize("head_dim", [32, 64, 128, 256])
def test_a_rounded_cache_changes_the_result_little(backend: Backend, dtype: DType, head_dim: int) -> None:
    exact, rounded = (line_case(d, 5, 600, head_dim=head_dim) for d in (DType.F32, dtype))
    assert nmse(rounded.run(backend), exact.expected()) <= MAX_CACHE_NMSE[dtype]


@each_backend
def test_scores_in_the_thousands_do_not_overflow(backend: Backend) -> None:
    case = long_case(DType.F32)
    loud = replace(case, q=case.q * 1000)
    np.testing.assert_allclose(loud.run(backend), loud.expected(), rtol=0, atol=2e-3)


@each_cpu
@pytest.mark.parametrize("dtype", ALL)
@pytest.mark.parametrize("page_size", [16, 32, 64])
@pytest.mark.parametrize(
    ("n_group", "window", "chunk"), [(1, 0, 0), (4, 0, 0), (7, 50, 0), (4, 0, 20), (3, 30, 40)]
)
def test_a_prompt_gives_the_same_bits_whole_in_parts_and_token_by_token(
    backend: CpuBackend, dtype: DType, page_size: int, n_group: int, window: int, chunk: int
) -> None:
    case = line_case(dtype, 75, 75, page_size, n_group=n_group, window=window, chunk=chunk)
    whole = case.run(backend)
    cuts = [0, 1, 30, 33, 75]
    parts = [case.run(backend, slice(a, b)) for a, b in itertools.pairwise(cuts)]
    single = [case.run(backend, slice(i, i + 1)) for i in range(75)]
    np.testing.assert_array_equal(whole, np.concatenate(parts))
    np.testing.assert_array_equal(whole, np.concatenate(single))


@each_cpu
@given(case=cases())
def test_a_row_is_the_same_bits_alone_and_in_a_batch(backend: CpuBackend, case: Case) -> None:
    together = case.run(backend)
    for i in range(len(case.rows)):
        np.testing.assert_array_equal(together[i : i + 1], case.run(backend, slice(i, i + 1)))


@pytest.mark.parametrize("isa", available_isas())
@pytest.mark.parametrize("dtype", ALL)
@pytest.mark.parametrize(
    "more", [{}, {"window": 700}, {"chunk": 900}, {"reach": 128}, {"reach": 3, "window": 700}]
)
def test_any_number_of_threads_gives_the_same_bits(isa: str, dtype: DType, more: dict[str, int]) -> None:
    one, three, eight = (CpuBackend(n_threads, isa, small_bytes=0) for n_threads in (1, 3, 8))
    case = line_case(dtype, 9, 1600, **more)
    whole = case.run(one)
    np.testing.assert_array_equal(whole, case.run(three))
    for i in (0, 8):  # alone, so that each chunk is an item of its own
        np.testing.assert_array_equal(whole[i : i + 1], case.run(three, slice(i, i + 1)))
        np.testing.assert_array_equal(whole[i : i + 1], case.run(eight, slice(i, i + 1)))


@each_backend
@pytest.mark.parametrize("dtype", PLAIN)
def test_an_infinite_value_reaches_only_the_rows_that_see_it(backend: Backend, dtype: DType) -> None:
    case = line_case(dtype, 40, 40)
    clean = case.run(backend)
    cell = case.cache.cells_of(case.tables[0], 40)[20:21]
    case.cache.write(case.v_state, cell, np.full((1, 64), np.inf, np.float32), is_keys=False)
    got = case.run(backend)
    np.testing.assert_array_equal(got[:20], clean[:20])
    assert np.all(np.isinf(got[20:]))


@pytest.mark.parametrize("backend", [backend for name, backend in BACKENDS.items() if name != "reference"])
@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("window", "a window of {} cells"),
        ("chunk", "a chunk of {} cells"),
        ("temperature_length", "a temperature that changes every {} cells"),
    ],
)
@pytest.mark.parametrize("width", [-1, 2**30 + 1, 2**31, 2**63])
def test_a_width_that_no_kernel_can_count_with_is_refused(
    backend: Backend, name: str, said: str, width: int
) -> None:
    g = OneOp()
    replace(long_case(), **{name: width}).build(g)
    refusal = f"{said.format(width)} is outside 0..{2**30}"
    assert backend.refuses(g.program._ops[0]) == refusal  # pyright: ignore[reportPrivateUsage]


BAD_INDICES = [
    ("rows", 1, r"input input4: value 1 at 2 is outside 0\.\.0"),
    ("rows", -1, r"input input4: value -1 at 2 is outside 0\.\.0"),
    ("n_visible", 0, r"input input5: value 0 at 2 is outside 1\.\.320"),
    ("n_visible", 321, r"input input5: value 321 at 2 is outside 1\.\.320"),
    ("tables", 20, r"input input3: value 20 at 2 is outside 0\.\.19"),
    ("tables", -1, r"input input3: value -1 at 2 is outside 0\.\.19"),
]


@each_cpu
@pytest.mark.parametrize(("array", "value", "message"), BAD_INDICES)
def test_an_index_out_of_range_is_refused(backend: CpuBackend, array: str, value: int, message: str) -> None:
    case = long_case()
    getattr(case, array).reshape(-1)[2] = value
    with pytest.raises(ValueError, match=message):
        case.run(backend)


@each_cpu
def test_a_table_entry_that_no_row_uses_may_be_anything(backend: CpuBackend) -> None:
    case = long_case()
    case.tables[0, 19] = 10**9
    case.run(backend)


@pytest.mark.parametrize(
    ("dtype", "head_dim", "page_size", "message"),
    [
        (DType.Q8_0, 48, 32, "a cache of Q8_0 needs heads of whole blocks of 32, head_dim is 48"),
        (DType.F16, 48, 3, r"k: F16\[32, 96\] is not whole pages of 3 cells"),
        (DType.F16, 36, 32, r"k: F16\[32, 96\] is not whole heads of 36"),
    ],
)
def test_a_cache_that_does_not_fit_its_heads_or_pages_is_refused(
    dtype: DType, head_dim: int, page_size: int, message: str
) -> None:
    g = OneOp()
    k_state, v_state = (g.program.state(name, (32, 96), dtype) for name in "kv")
    index, q = np.zeros(1, np.int32), np.zeros((1, 288), np.float32)
    with pytest.raises(ShapeError, match=message):
        g.program.attention(
            g.input(q), k_state, v_state, g.input(index[None]), g.input(index), g.input(index + 1),
            head_dim=head_dim, page_size=page_size, scale=1.0,
        )  # fmt: skip
