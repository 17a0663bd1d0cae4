"""Attention over a paged cache, and the writes into it."""

from dataclasses import dataclass, replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kernels.backend import Backend
from kernels.cpu.backend import CpuBackend
from kernels.ops.attention import Attention, attention_ref, store_kv_ref
from kernels.ops.op import F32, I32, Array
from kernels.ops.rope import Rotation
from kernels.tensor import Tensor
from tests.kernels.conftest import OneOp, each_backend, each_cpu, normal, run_one_op, run_ops, seeds

# float32 scores and sums against float64: relative to the largest value a row mixes
MAX_ERROR = 2e-6

state_types = st.sampled_from([np.float16, np.float32])


@dataclass(frozen=True)
class Case:
    """Sequences with pages scattered over a cache."""

    q: F32
    k_state: Array
    v_state: Array
    tables: I32
    rows: I32
    n_visible: I32
    head_dim: int
    page_size: int
    window: int = 0
    softcap: float = 0.0

    def build(self, g: OneOp, rows: slice = slice(None)) -> Tensor:
        """The op, of all rows or some."""
        return g.program.attention(
            g.input(self.q[rows]),
            g.state(self.k_state),
            g.state(self.v_state),
            g.input(self.tables),
            g.input(self.rows[rows]),
            g.input(self.n_visible[rows]),
            head_dim=self.head_dim,
            page_size=self.page_size,
            scale=self.head_dim**-0.5,
            window=self.window,
            softcap=self.softcap,
        )

    def expected(self) -> F32:
        """By the reference, straight."""
        g = OneOp()
        self.build(g)
        op = g.program._ops[0]
        assert isinstance(op, Attention)
        return attention_ref(self.q, self.k_state, self.v_state, self.tables, self.rows, self.n_visible, op)


@st.composite
def cases(draw: st.DrawFn) -> Case:
    """Any shape; cells that no row sees hold NaN."""
    head_dim, n_kv, n_group = draw(st.integers(1, 70)), draw(st.integers(1, 3)), draw(st.integers(1, 7))
    page_size, n_pages, n_seqs = draw(st.integers(1, 40)), draw(st.integers(1, 4)), draw(st.integers(1, 3))
    n, dtype = draw(st.integers(0, 5)), draw(state_types)
    rng = np.random.default_rng(draw(seeds))
    tables = (
        rng.permutation(n_seqs * n_pages + 2)[: n_seqs * n_pages].reshape(n_seqs, n_pages).astype(np.int32)
    )
    shape = ((n_seqs * n_pages + 2) * page_size, n_kv * head_dim)
    rows = rng.integers(0, n_seqs, n, dtype=np.int32)
    n_visible = rng.integers(1, n_pages * page_size + 1, n, dtype=np.int32)
    k, v = (np.full(shape, np.nan, dtype) for _ in "kv")
    for seq, visible in zip(rows, n_visible, strict=True):
        index = np.arange(visible)
        cells = tables[seq, index // page_size] * page_size + index % page_size
        for state in (k, v):
            state[cells] = rng.standard_normal((visible, shape[1])).astype(dtype)
    q = rng.standard_normal((n, n_kv * n_group * head_dim), np.float32)
    window, softcap = draw(st.sampled_from([0, 1, 5, 33])), draw(st.sampled_from([0.0, 2.0, 50.0]))
    return Case(q, k, v, tables, rows, n_visible, head_dim, page_size, window, softcap)


def long_case(dtype: type[np.floating] = np.float16, n: int = 6) -> Case:
    """Rows that see up to 300 cells of one sequence in pages of 16."""
    rng = np.random.default_rng(11)
    k, v = (rng.standard_normal((320, 2 * 32)).astype(dtype) for _ in "kv")
    tables = rng.permutation(20).astype(np.int32)[None, :]
    q = rng.standard_normal((n, 8 * 32), np.float32)
    n_visible = np.linspace(1, 300, n).astype(np.int32)
    return Case(q, k, v, tables, np.zeros(n, np.int32), n_visible, 32, 16)


@each_backend
@given(case=cases())
def test_rows_attend_to_what_they_see_and_nothing_else(backend: Backend, case: Case) -> None:
    got = run_one_op(backend, case.build)
    np.testing.assert_allclose(got, case.expected(), rtol=0, atol=MAX_ERROR * 5)


@each_backend
@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_long_rows_agree(backend: Backend, dtype: type[np.floating]) -> None:
    case = long_case(dtype)
    np.testing.assert_allclose(run_one_op(backend, case.build), case.expected(), rtol=0, atol=MAX_ERROR)


@each_backend
def test_scores_in_the_thousands_do_not_overflow(backend: Backend) -> None:
    case = long_case(np.float32)
    loud = replace(case, q=case.q * 1000)
    np.testing.assert_allclose(run_one_op(backend, loud.build), loud.expected(), rtol=0, atol=2e-3)


@each_cpu
def test_a_row_is_the_same_bits_alone_and_in_a_batch(backend: CpuBackend) -> None:
    case = long_case()
    together = run_one_op(backend, case.build)
    alone = [run_one_op(backend, lambda g, i=i: case.build(g, slice(i, i + 1))) for i in range(6)]
    np.testing.assert_array_equal(together, np.concatenate(alone))


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
        run_one_op(backend, case.build)


@each_cpu
def test_a_table_entry_that_no_row_uses_may_be_anything(backend: CpuBackend) -> None:
    case = long_case()
    case.tables[0, 19] = 10**9
    run_one_op(backend, case.build)


@each_backend
@given(
    n=st.integers(0, 6), n_kv=st.integers(1, 3), head_dim=st.integers(1, 20), dtype=state_types,
    turned=st.booleans(), seed=seeds,
)  # fmt: skip
def test_keys_are_rotated_and_written_and_other_cells_stay(
    backend: Backend, n: int, n_kv: int, head_dim: int, dtype: type[np.floating], turned: bool, seed: int
) -> None:
    k, v = normal(seed, n, n_kv * head_dim), normal(seed + 1, n, n_kv * head_dim)
    cells = np.random.default_rng(seed).permutation(9)[:n].astype(np.int32)
    positions = np.arange(100, 100 + n, dtype=np.int32)
    rotation = Rotation("neox", tuple(0.5**i for i in range(head_dim // 2))) if turned else None
    before = [normal(seed + 2 + i, 9, n_kv * head_dim).astype(dtype) for i in range(2)]
    want_k, want_v = (state.copy() for state in before)
    store_kv_ref(k, v, positions, cells, want_k, want_v, head_dim, rotation)

    def build(g: OneOp) -> list[Tensor]:
        k_state, v_state = (g.state(state) for state in before)
        g.program.store_kv(
            g.input(k), g.input(v), g.input(positions), g.input(cells), k_state, v_state, head_dim, rotation
        )
        return [k_state, v_state]

    got_k, got_v = run_ops(backend, build)
    np.testing.assert_array_equal(got_v, want_v)
    unit = 2.0**-10 if dtype is np.float16 else 2.0**-20
    np.testing.assert_allclose(got_k.astype(np.float32), want_k.astype(np.float32), rtol=unit, atol=unit)
    others = np.setdiff1d(np.arange(9), cells)
    np.testing.assert_array_equal(got_k[others], before[0][others])


@each_cpu
@given(bits=st.lists(st.integers(0, 2**32 - 1), min_size=1, max_size=40))
def test_halves_round_as_numpy_rounds(backend: CpuBackend, bits: list[int]) -> None:
    v = np.array([bits], np.uint32).view(np.float32)
    v[np.isnan(v)] = np.inf
    zeros, state = np.zeros(1, np.int32), np.zeros((1, v.shape[1]), np.float16)

    def build(g: OneOp) -> list[Tensor]:
        k_state, v_state = g.state(state), g.state(state)
        g.program.store_kv(
            g.input(v), g.input(v), g.input(zeros), g.input(zeros), k_state, v_state, v.shape[1], None
        )
        return [k_state, v_state]

    with np.errstate(over="ignore"):
        want = v.astype(np.float16)
    np.testing.assert_array_equal(run_ops(backend, build)[0].view(np.uint16), want.view(np.uint16))


@each_cpu
def test_a_cell_outside_the_cache_is_refused(backend: CpuBackend) -> None:
    k, state, zero = normal(1, 1, 8), np.zeros((4, 8), np.float16), np.zeros(1, np.int32)

    def build(g: OneOp) -> list[Tensor]:
        k_state, v_state = g.state(state), g.state(state)
        g.program.store_kv(
            g.input(k), g.input(k), g.input(zero), g.input(np.array([4], np.int32)), k_state, v_state, 8, None
        )
        return [k_state, v_state]

    with pytest.raises(ValueError, match=r"input input5: value 4 at 0 is outside 0\.\.3"):
        run_ops(backend, build)
