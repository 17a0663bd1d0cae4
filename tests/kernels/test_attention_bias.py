"""Attention with a bias by distance, and of rows that all see as much: texts, and other sequences."""

import itertools
from dataclasses import replace

import numpy as np
import pytest

from kernels.backend import Backend
from kernels.cpu.backend import CpuBackend
from kernels.dtype import DType
from kernels.program import ShapeError
from tests.kernels.conftest import OneOp, each_backend, each_cpu
from tests.kernels.test_attention import ALL, MAX_ERROR, line_case, texts_case


@each_backend
def test_a_bias_is_that_of_the_cells_distance(backend: Backend) -> None:
    # equal keys: cells weigh what the bias says, 1 two and more before, 2 one before, 4 at the row, 8 behind
    case = texts_case(DType.F32, [(4, 4)], reach=2)
    cells = case.cache.cells_of(case.tables[0], 4)
    case.cache.write(case.k_state, cells, np.zeros((4, 64), np.float32), is_keys=True)
    values = np.repeat(np.array([[1], [10], [100], [1000]], np.float32), 64, axis=1)
    case.cache.write(case.v_state, cells, values, is_keys=False)
    weights = np.array([1, 2, 4, 8, 8], np.float32)
    biased = replace(case, bias=np.repeat(np.log(weights)[:, None], 2, axis=1))
    want = [(4 + 80 + 800 + 8000) / 28, (2 + 40 + 800 + 8000) / 22, (1 + 20 + 400 + 8000) / 15,
            (1 + 10 + 200 + 4000) / 8]  # fmt: skip
    np.testing.assert_allclose(biased.run(backend)[:, 0], want, rtol=1e-6)


@each_backend
def test_each_head_has_a_bias_of_its_own(backend: Backend) -> None:
    case = texts_case(DType.F32, [(3, 3)], n_group=2, reach=1)
    assert case.bias is not None
    case.bias[:] = -80.0
    for head, distance in enumerate((0, 1, 2, 1)):  # before, at, behind, at: all the weight
        case.bias[distance, head] = 0.0
    values = case.cache.read(case.v_state, is_keys=False)[case.cache.cells_of(case.tables[0], 3)]
    got = case.run(backend)[1].reshape(4, 32)
    want = np.stack([values[0, 0], values[1, 0], values[2, 1], values[1, 1]])
    np.testing.assert_allclose(got, want, rtol=1e-6)


@each_backend
@pytest.mark.parametrize("dtype", ALL)
@pytest.mark.parametrize("window", [0, 20])
@pytest.mark.parametrize("more", [{}, {"reach": 5}, {"reach": 128}])
def test_rows_of_texts_see_what_is_behind_them(
    backend: Backend, dtype: DType, window: int, more: dict[str, int]
) -> None:
    case = texts_case(dtype, [(1, 1), (5, 40), (3, 70), (7, 7)], n_group=2, window=window, **more)
    case.expect(case.run(backend), MAX_ERROR)


@each_backend
@pytest.mark.parametrize("dtype", ALL)
def test_single_rows_attend_to_other_sequences(backend: Backend, dtype: DType) -> None:
    case = texts_case(dtype, [(1, 64), (1, 3), (1, 130), (1, 31)])
    case.expect(case.run(backend), MAX_ERROR)


@each_cpu
@pytest.mark.parametrize("dtype", ALL)
@pytest.mark.parametrize("more", [{}, {"reach": 5}, {"reach": 128}, {"reach": 2000}])
def test_long_texts_over_several_partial_sums_agree(
    backend: CpuBackend, dtype: DType, more: dict[str, int]
) -> None:
    case = texts_case(dtype, [(130, 1170)], **more)
    case.expect(case.run(backend), MAX_ERROR)


@each_cpu
@pytest.mark.parametrize("dtype", ALL)
@pytest.mark.parametrize(("page_size", "n_group", "window"), [(32, 1, 0), (16, 3, 0), (64, 4, 11)])
@pytest.mark.parametrize("more", [{}, {"reach": 20}])
def test_a_text_gives_the_same_bits_whole_in_parts_and_row_by_row(
    backend: CpuBackend, dtype: DType, page_size: int, n_group: int, window: int, more: dict[str, int]
) -> None:
    case = texts_case(dtype, [(110, 110)], page_size, n_group=n_group, window=window, **more)
    whole = case.run(backend)
    parts = [case.run(backend, slice(a, b)) for a, b in itertools.pairwise([0, 1, 30, 33, 110])]
    single = [case.run(backend, slice(i, i + 1)) for i in range(110)]
    np.testing.assert_array_equal(whole, np.concatenate(parts))
    np.testing.assert_array_equal(whole, np.concatenate(single))


@each_backend
def test_a_bias_of_zeros_is_none(backend: Backend) -> None:
    case = line_case(DType.F32, 8, 90, reach=30)
    assert case.bias is not None
    without = replace(case, bias=None, positions=None)
    zeros = replace(case, bias=np.zeros_like(case.bias))
    np.testing.assert_array_equal(zeros.run(backend), without.run(backend))


@each_cpu
@pytest.mark.parametrize("position", [-1, 2**30])
def test_a_position_that_no_kernel_can_count_with_is_refused(backend: CpuBackend, position: int) -> None:
    case = line_case(DType.F16, 4, 40, reach=3)
    assert case.positions is not None
    case.positions[2] = position
    with pytest.raises(ValueError, match=rf"input input7: value {position} at 2 is outside 0\.\.{2**30 - 1}"):
        case.run(backend)


@each_backend
def test_positions_may_be_far_from_all_cells(backend: Backend) -> None:
    case = line_case(DType.F32, 4, 40, reach=3)
    assert case.positions is not None
    case.positions[:] = 2**30 - 1, 0, 2**29, 39
    case.expect(case.run(backend), MAX_ERROR)


@pytest.mark.parametrize(
    ("shape", "n_positions", "softcap", "message"),
    [
        ((6, 3), 1, 0.0, r"bias weight\d: F32\[6, 3\] is not F32\[2 r \+ 1, 3\]"),
        ((7, 2), 1, 0.0, r"bias weight\d: F32\[7, 2\] is not F32\[2 r \+ 1, 3\]"),
        ((7, 3), 1, 2.0, "with scores capped at 2.0"),
        ((7, 3), 2, 0.0, r"I32\[2\] of .*F32\[1, 96\]"),
        ((7, 3), None, 0.0, "needs positions, None"),
    ],
)
def test_a_bias_that_does_not_fit_is_refused(
    shape: tuple[int, int], n_positions: int | None, softcap: float, message: str
) -> None:
    g = OneOp()
    state = g.program.state("k", (32, 96), DType.F16)
    index, q = np.zeros(1, np.int32), np.zeros((1, 96), np.float32)
    positions = None if n_positions is None else g.input(np.zeros(n_positions, np.int32))
    with pytest.raises(ShapeError, match=message):
        g.program.attention(
            g.input(q), state, state, g.input(index[None]), g.input(index), g.input(index + 1),
            head_dim=32, page_size=32, scale=1.0, softcap=softcap,
            bias=g.weight(np.zeros(shape, np.float32)), positions=positions,
        )  # fmt: skip
