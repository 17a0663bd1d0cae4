"""Writes of keys and values into cache pages."""

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kernels.backend import Backend
from kernels.cpu.backend import CpuBackend
from kernels.dtype import DType
from kernels.ops.attention import StoreKV, store_kv_ref
from kernels.ops.op import F32, I32, Array
from kernels.ops.rope import Rotation
from kernels.tensor import Tensor
from tests.kernels.caches import CacheShape
from tests.kernels.conftest import OneOp, each_backend, each_cpu, normal, run_ops, seeds

# a rotated key against float64, relative to the largest of a head, in each type's own steps
MAX_ERROR = {DType.F32: 2.0**-20, DType.F16: 2.0**-10, DType.Q8_0: 1.01 / 127}


def storing(
    cache: CacheShape,
    k: F32,
    v: F32,
    positions: I32,
    cells: I32,
    states: list[Array],
    rotation: Rotation | None,
) -> Callable[[OneOp], list[Tensor]]:
    """A builder of the op; its results are the two states."""

    def build(g: OneOp) -> list[Tensor]:
        k_state, v_state = (g.state(state, cache.shape) for state in states)
        g.program.store_kv(
            g.input(k), g.input(v), g.input(positions), g.input(cells), k_state, v_state,
            head_dim=cache.head_dim, page_size=cache.page_size, rotation=rotation,
        )  # fmt: skip
        return [k_state, v_state]

    return build


@each_backend
@given(
    n=st.integers(0, 6), n_kv=st.integers(1, 3), head_dim=st.integers(1, 20), page_size=st.integers(1, 5),
    dtype=st.sampled_from(list(MAX_ERROR)), turned=st.booleans(), seed=seeds,
)  # fmt: skip
def test_keys_are_rotated_and_written_and_other_cells_stay(
    backend: Backend, n: int, n_kv: int, head_dim: int, page_size: int, dtype: DType, turned: bool, seed: int
) -> None:
    head_dim = 32 * (1 + head_dim % 3) if dtype is DType.Q8_0 else head_dim
    cache = CacheShape(9, page_size, n_kv, head_dim, dtype)
    n_cells = cache.shape[0]
    k, v = normal(seed, n, n_kv * head_dim), normal(seed + 1, n, n_kv * head_dim)
    cells = np.random.default_rng(seed).permutation(n_cells)[:n].astype(np.int32)
    positions = np.arange(100, 100 + n, dtype=np.int32)
    rotation = Rotation("neox", tuple(0.5**i for i in range(head_dim // 2))) if turned else None
    before = [cache.empty() for _ in "kv"]
    for i, state in enumerate(before):
        every = np.arange(n_cells, dtype=np.int32)
        cache.write(state, every, normal(seed + 2 + i, *cache.shape), is_keys=i == 0)
    build = storing(cache, k, v, positions, cells, before, rotation)
    got = run_ops(backend, build)

    want = [state.copy() for state in before]
    g = OneOp()
    build(g)
    op = g.program._ops[0]
    assert isinstance(op, StoreKV)
    store_kv_ref(k, v, positions, cells, want[0], want[1], op)
    others = np.setdiff1d(np.arange(n_cells), cells)
    for i in range(2):
        got_cells, want_cells, old_cells = (
            cache.read(state, is_keys=i == 0).astype(np.float32) for state in (got[i], want[i], before[i])
        )
        unit = MAX_ERROR[dtype] * float(np.abs(want_cells).max(initial=1.0))
        np.testing.assert_allclose(got_cells, want_cells, rtol=0, atol=unit)
        np.testing.assert_array_equal(got_cells[others], old_cells[others])
        if i == 1 and dtype is not DType.Q8_0:
            np.testing.assert_array_equal(got_cells, want_cells)


@each_cpu
@given(bits=st.lists(st.integers(0, 2**32 - 1), min_size=1, max_size=40))
def test_halves_round_as_numpy_rounds(backend: CpuBackend, bits: list[int]) -> None:
    v = np.array([bits], np.uint32).view(np.float32)
    v[np.isnan(v)] = np.inf
    zeros, cache = np.zeros(1, np.int32), CacheShape(1, 1, 1, v.shape[1], DType.F16)
    got = run_ops(backend, storing(cache, v, v, zeros, zeros, [cache.empty(), cache.empty()], None))
    with np.errstate(over="ignore"):
        want = v.astype(np.float16)
    for state in got:
        np.testing.assert_array_equal(state.view(np.uint16), want.view(np.uint16))


@each_cpu
@given(
    seed=seeds, scale=st.sampled_from([0.0, 1e-30, 1e-3, 1.0, 1e4]), page_size=st.sampled_from([1, 3, 32])
)  # fmt: skip
def test_quantised_cells_are_within_half_a_level(
    backend: CpuBackend, seed: int, scale: float, page_size: int
) -> None:
    v, cache = normal(seed, 1, 2 * 64) * np.float32(scale), CacheShape(2, page_size, 2, 64, DType.Q8_0)
    cell = np.array([page_size], np.int32)
    states = [cache.empty(), cache.empty()]
    got = run_ops(backend, storing(cache, v, v, np.zeros(1, np.int32), cell, states, None))
    blocks = v.reshape(-1, 32)
    level = np.abs(blocks).max(axis=1, keepdims=True) / 127
    # half a level, and what the scale loses as a half: 2^-11 of it, or all of it under the smallest half
    bound = level * (0.51 + 127 * 2.0**-11) + 127 * 2.0**-24
    for state, is_keys in zip(got, (True, False), strict=True):
        error = np.abs(cache.read(state, is_keys)[page_size].reshape(-1, 32) - blocks)
        assert np.all(error <= bound)


@each_cpu
@pytest.mark.parametrize("bad", [np.inf, -np.inf, np.nan])
def test_a_value_that_is_not_finite_poisons_its_block_and_no_other(backend: CpuBackend, bad: float) -> None:
    v, cache = normal(3, 1, 64), CacheShape(1, 2, 1, 64, DType.Q8_0)
    v[0, 40] = bad
    zero = np.zeros(1, np.int32)
    got = run_ops(backend, storing(cache, v, v, zero, zero, [cache.empty(), cache.empty()], None))
    for state, is_keys in zip(got, (True, False), strict=True):
        row = cache.read(state, is_keys)[0, 0]
        assert np.all(np.isfinite(row[:32]))
        assert np.all(np.isnan(row[32:]))


@each_cpu
def test_a_cell_outside_the_cache_is_refused(backend: CpuBackend) -> None:
    k, zero, cache = normal(1, 1, 8), np.zeros(1, np.int32), CacheShape(2, 2, 1, 8, DType.F16)
    build = storing(cache, k, k, zero, np.array([4], np.int32), [cache.empty(), cache.empty()], None)
    with pytest.raises(ValueError, match=r"input input5: value 4 at 0 is outside 0\.\.3"):
        run_ops(backend, build)
