"""Attention of many rows on CUDA, by tiles and tensor cores."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kernels.backend import Backend
from kernels.cuda.attending import MAX_SHARED_BYTES, TILED_ROWS
from kernels.cuda.driver import Launch
from kernels.cuda.launches import Place
from kernels.cuda.works import works_of
from kernels.dtype import DType
from kernels.ops.attention import first_seen
from kernels.ops.op import F32, I32
from tests.kernels.caches import CacheShape
from tests.kernels.conftest import OneOp, each_cuda, seeds
from tests.kernels.test_attention import Case, anywhere, line_case, make_case, nmse, reaches, texts_case

UNIT = 2.0**-11  # of a number rounded to f16: its largest relative error
CACHED = (DType.F16, DType.Q8_0)
# queries and weights are rounded, of q8_0 also keys and values; each adds UNIT^2 / 3 to what is squared
MAX_NMSE = {DType.F16: 2 * UNIT**2 / 3, DType.Q8_0: 4 * UNIT**2 / 3}

each_cache = pytest.mark.parametrize("dtype", CACHED)


def most_wrong(case: Case) -> F32:
    """How far numbers of a row may be off [n, 1]: queries and weights become f16, q8_0 caches as well.

    A score is then off by at most d, UNIT times the sum of the products' sizes; a weight by a factor of
    exp(2 d) for its score and the sum's, and by UNIT for itself, twice where all are rounded the same way.
    """
    cache = case.cache
    keys, values = (
        np.abs(np.nan_to_num(cache.read(state, is_keys).astype(np.float64), posinf=0.0))
        for state, is_keys in ((case.k_state, True), (case.v_state, False))
    )
    n_roundings = 1 if cache.dtype is DType.F16 else 2
    heads = np.abs(case.q.astype(np.float64)).reshape(len(case.rows), cache.n_kv, -1, cache.head_dim)
    bounds = np.empty((len(case.rows), 1))
    for i, n_seen in enumerate(case.n_visible):
        first = first_seen(n_seen - 1, case.window, case.chunk)
        cells = cache.cells_of(case.tables[case.rows[i]], n_seen)[first:]
        scale = case.op.scale_of(n_seen - 1)
        largest = np.einsum("ghd,cgd->ghc", heads[i], keys[cells]).max() * scale
        d = n_roundings * UNIT * largest
        if case.bias is not None:  # its product with log2(e), the sum, and that less the largest are rounded
            d += 2.0**-24 * (5 * np.abs(case.bias).max() + 3 * largest)
        bounds[i] = values[cells].max() * (np.expm1(2 * d) + (1 + n_roundings) * UNIT + len(cells) * 2.0**-24)
    return bounds.astype(np.float32)


def expect(case: Case, got: F32) -> None:
    """Fail unless got is what the reference gives, but for rounding to f16."""
    off = np.abs(got - case.expected())
    assert np.all(off <= most_wrong(case)), float((off / most_wrong(case)).max())


def kernels_for(case: Case, rows: slice = slice(None)) -> list[str]:
    """What would be launched."""
    g = OneOp()
    case.build(g, rows)
    place = Place(lambda _: 0, 0, (), {}, 0, 0, {}, has_gemm=False)
    return [work.kernel for work in works_of(g.program._ops, place, {}) if isinstance(work, Launch)]


def batch_case(
    counts: Sequence[tuple[int, int]],
    dtype: DType = DType.F16,
    head_dim: int = 32,
    n_group: int = 4,
    **more: float,
) -> Case:
    """Sequences one after the other, each (rows, cells before the first): prompts and decoded tokens."""
    n_pages = max(-(-(n + before) // 32) for n, before in counts)
    tables = np.random.default_rng(5).permutation(len(counts) * n_pages).astype(np.int32)
    rows = np.concatenate([np.full(n, i, np.int32) for i, (n, _) in enumerate(counts)])
    n_visible = np.concatenate(
        [np.arange(before + 1, before + n + 1, dtype=np.int32) for n, before in counts]
    )
    cache = CacheShape(len(tables), 32, 2, head_dim, dtype)
    return make_case(cache, tables.reshape(len(counts), n_pages), rows, n_visible, n_group, 6, **more)


@st.composite
def crowds(draw: st.DrawFn) -> Case:
    """Any shape that tiles serve: sequences in any order, each row sees what it likes."""
    dtype = draw(st.sampled_from(CACHED))
    head_dim = draw(st.sampled_from([32, 64, 96, 160] if dtype is DType.Q8_0 else [16, 32, 48, 80, 144]))
    n_kv, n_group = draw(st.integers(1, 2)), draw(st.integers(1, 9) | st.sampled_from([32]))
    page_size, n_pages = draw(st.sampled_from([8, 16, 24, 32, 64])), draw(st.integers(1, 4))
    n_seqs, n = draw(st.integers(1, 4)), draw(st.integers(TILED_ROWS, 50))
    rng = np.random.default_rng(draw(seeds))
    tables = rng.permutation(n_seqs * n_pages + 2)[: n_seqs * n_pages].reshape(n_seqs, n_pages)
    cache = CacheShape(n_seqs * n_pages + 2, page_size, n_kv, head_dim, dtype)
    rows = rng.integers(0, n_seqs, n, dtype=np.int32)
    if draw(st.booleans()):
        rows.sort()
    n_visible: I32 = rng.integers(1, n_pages * page_size + 1, n, dtype=np.int32)
    if draw(st.booleans()):  # of a sequence all see alike
        n_visible = n_visible[rows]
    case = make_case(
        cache, tables.astype(np.int32), rows, n_visible, n_group, draw(seeds),
        window=draw(st.sampled_from([0, 1, 5, 33])), softcap=draw(st.sampled_from([0.0, 2.0, 50.0])),
        chunk=draw(st.sampled_from([0, 0, 1, 7, 32, 50])), **draw(reaches()),
    )  # fmt: skip
    return anywhere(case, draw(seeds))


def shared_bytes(case: Case) -> int:
    """What a tile of four warps takes: keys, values, scores of halves of heads, biases of a group."""
    head_dim, n_group = case.cache.head_dim, case.q.shape[1] // case.cache.shape[1]
    n_bytes = 2 * (40 * head_dim + 32 * (head_dim + 8)) + (head_dim > 128) * 4 * 16 * 128
    return n_bytes + n_group * 4 * (2 * case.op.reach + 64)


@each_cuda
@given(case=crowds())
def test_rows_attend_to_what_they_see_and_nothing_else(backend: Backend, case: Case) -> None:
    fits = case.bias is None or shared_bytes(case) <= MAX_SHARED_BYTES
    assert kernels_for(case)[0].startswith("tiled_attention" if fits else "attention")
    expect(case, case.run(backend))


@each_cuda
@each_cache
@pytest.mark.parametrize("head_dim", [64, 128, 256])
@pytest.mark.parametrize("n_group", [1, 3, 4, 7, 32])
def test_prompts_agree_at_every_width_and_group(
    backend: Backend, dtype: DType, head_dim: int, n_group: int
) -> None:
    case = line_case(dtype, 37, 70, head_dim=head_dim, n_group=n_group)
    got = case.run(backend)
    expect(case, got)
    assert nmse(got, case.expected()) <= MAX_NMSE[dtype]


@each_cuda
@pytest.mark.parametrize("n", [20, 66])  # cells cut in pieces, and in one
@pytest.mark.parametrize("window", [0, 7, 40, 500])
@pytest.mark.parametrize("more", [{}, {"reach": 128}])
def test_long_sequences_agree(backend: Backend, n: int, window: int, more: dict[str, int]) -> None:
    case = line_case(DType.F16, n, 700, window=window, **more)
    assert len(kernels_for(case)) == (2 if n == 20 else 1)
    expect(case, case.run(backend))


@each_cuda
@each_cache
@pytest.mark.parametrize("head_dim", [64, 128, 256])
@pytest.mark.parametrize("more", [{}, {"reach": 9}, {"reach": 128}])
def test_texts_agree_at_every_width(
    backend: Backend, dtype: DType, head_dim: int, more: dict[str, int]
) -> None:
    case = texts_case(dtype, [(40, 40), (5, 70), (1, 33)], head_dim=head_dim, **more)
    assert kernels_for(case)[0].startswith("tiled_attention")
    expect(case, case.run(backend))


@each_cuda
@pytest.mark.parametrize("more", [{}, {"reach": 128}])
def test_long_texts_agree(backend: Backend, more: dict[str, int]) -> None:
    case = texts_case(DType.F16, [(70, 700), (30, 450)], head_dim=64, **more)
    expect(case, case.run(backend))


@each_cuda
@each_cache
@pytest.mark.parametrize("chunk", [0, 24])
def test_queries_of_a_tile_are_tempered_each_by_its_position(
    backend: Backend, dtype: DType, chunk: int
) -> None:
    case = replace(line_case(dtype, 40, 70, chunk=chunk), temperature=0.7, temperature_length=12)
    expect(case, case.run(backend))


@each_cuda
@each_cache
def test_prompts_and_decoded_tokens_share_a_batch(backend: Backend, dtype: DType) -> None:
    case = batch_case([(1, 30), (1, 31), (1, 0), (33, 5), (1, 32), (1, 90), (20, 60), (1, 64)], dtype)
    expect(case, case.run(backend))


@each_cuda
@each_cache
def test_a_row_is_the_same_bits_whatever_shares_its_tile(backend: Backend, dtype: DType) -> None:
    case = batch_case([(40, 25), (1, 3), (30, 0)], dtype, window=50)
    whole = case.run(backend)
    for rows in (slice(0, 70), slice(0, 66), slice(5, 71)):
        np.testing.assert_array_equal(whole[rows], case.run(backend, rows))


@each_cuda
def test_a_row_that_sees_one_cell_is_its_value(backend: Backend) -> None:
    case = batch_case([(1, 0)] * TILED_ROWS)
    cells = case.cache.read(case.v_state, is_keys=False)[case.tables[:, 0] * 32]
    want = np.repeat(cells, 4, axis=1).reshape(TILED_ROWS, -1)  # once for each query head of the group
    np.testing.assert_array_equal(case.run(backend), want)


@each_cuda
def test_queries_in_the_thousands_neither_overflow_nor_vanish(backend: Backend) -> None:
    case = batch_case([(30, 20)], softcap=30.0)
    for factor in (1e6, 1e-6):
        other = replace(case, q=case.q * np.float32(factor))
        off = np.abs(other.run(backend) - other.expected())
        assert np.all(off <= 8 * UNIT * np.nanmax(np.abs(case.v_state.astype(np.float32))))


@each_cuda
@each_cache
@pytest.mark.parametrize("head_dim", [32, 160])
def test_a_query_that_is_no_number_touches_its_row_alone(
    backend: Backend, dtype: DType, head_dim: int
) -> None:
    case = batch_case([(30, 20), (5, 5)], dtype, head_dim)
    clean = case.run(backend)
    case.q[7, 3 * head_dim + 2] = np.nan  # of head 3
    got = case.run(backend)
    lost = np.zeros(got.shape, bool)
    lost[7, 3 * head_dim : 4 * head_dim] = True
    np.testing.assert_array_equal(np.isnan(got), lost)
    np.testing.assert_array_equal(got[~lost], clean[~lost])


@each_cuda
@pytest.mark.parametrize("is_keys", [True, False])
@pytest.mark.parametrize(("dtype", "head_dim"), [(DType.F16, 32), (DType.F16, 160), (DType.Q8_0, 32)])
@pytest.mark.parametrize("window", [0, 9])
def test_a_cell_that_is_no_number_touches_the_rows_that_see_it(
    backend: Backend, is_keys: bool, dtype: DType, head_dim: int, window: int
) -> None:
    case = line_case(dtype, 40, 60, head_dim=head_dim, window=window)
    clean = case.run(backend)
    poisoned = case.cache.cells_of(case.tables[0], 60)[33:34]  # its row is 13
    state = case.k_state if is_keys else case.v_state
    case.cache.write(state, poisoned, np.full((1, 2 * head_dim), np.nan, np.float32), is_keys)
    if dtype is DType.Q8_0:  # a scale without levels
        case.cache.write(state, poisoned, np.ones((1, 2 * head_dim), np.float32), is_keys)
        _spoil_scales(case, state, int(poisoned[0]))
    got = case.run(backend)
    sees = (case.n_visible > 33) & (case.n_visible <= 33 + 1 + (window or 60))
    assert np.all(np.isnan(got[sees]))
    np.testing.assert_array_equal(got[~sees], clean[~sees])


def _spoil_scales(case: Case, state: np.ndarray, cell: int) -> None:  # pyright: ignore[reportMissingTypeArgument]
    """The scales of a cell in a q8_0 state of pages of 32 and one block a head become NaN."""
    regions = state.reshape(-1, case.cache.n_kv, 32 * 34)
    regions[cell // 32, :, 32 * 32 :].view(np.float16)[:, cell % 32] = np.nan


@each_cuda
def test_a_page_that_no_row_sees_is_not_looked_up(backend: Backend) -> None:
    case = line_case(DType.F16, 40, 200, page_size=8, window=4)
    case.n_visible[:20] = np.arange(5, 25)
    case.n_visible[20:] = np.arange(170, 190)
    want = case.run(backend)
    case.tables[0, 3:20] = 10**9
    case.tables[0, 24:] = 10**9
    np.testing.assert_array_equal(case.run(backend), want)


def test_what_tiles_do_not_serve_goes_row_by_row() -> None:
    for more in ({}, {"reach": 1000}):
        served = line_case(DType.F16, TILED_ROWS, 40, **more)
        assert kernels_for(served) == ["tiled_attention_64"]
    others = [
        line_case(DType.F16, TILED_ROWS - 1, 40),
        line_case(DType.F32, 40, 40),
        line_case(DType.F16, 40, 40, head_dim=40),
        line_case(DType.F16, 40, 40, page_size=12),
        line_case(DType.F16, 40, 40, n_group=65),
        line_case(DType.F16, 40, 40, head_dim=144, n_group=33),
        line_case(DType.F16, 40, 40, reach=2000),  # of which shared memory has not room for four heads
    ]
    assert [kernels_for(case)[0] for case in others] == ["attention"] * len(others)
