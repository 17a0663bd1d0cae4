"""Soft-capping."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kernels.backend import Backend
from kernels.ops.op import F32
from kernels.ops.softcap import softcap_ref
from kernels.program import ShapeError
from tests.kernels.conftest import OneOp, each_backend, normal, run_one_op, seeds

MAX_ERROR = 4 * 2.0**-23  # of the cap


def capped(backend: Backend, x: F32, cap: float) -> F32:
    return run_one_op(backend, lambda g: g.program.softcap(g.input(x), cap))


@each_backend
@given(n=st.integers(0, 5), k=st.integers(1, 300), cap=st.sampled_from([0.5, 30.0]), seed=seeds)
def test_values_agree_with_the_reference(backend: Backend, n: int, k: int, cap: float, seed: int) -> None:
    x = normal(seed, n, k) * np.float32(30)
    np.testing.assert_allclose(capped(backend, x, cap), softcap_ref(x, cap), rtol=0, atol=MAX_ERROR * cap)


@each_backend
def test_nothing_leaves_the_cap_and_nan_stays_where_it_is(backend: Backend) -> None:
    x = np.array([[-np.inf, -1e30, np.nan, 1e30, np.inf]], np.float32)
    np.testing.assert_array_equal(capped(backend, x, 30.0), [[-30, -30, np.nan, 30, 30]])


@pytest.mark.parametrize("cap", [0.0, -1.0, float("nan")])
def test_a_cap_that_is_none_is_refused(cap: float) -> None:
    g = OneOp()
    with pytest.raises(ShapeError, match="softcap of"):
        g.program.softcap(g.input(normal(1, 1, 4)), cap)
