"""Mixtures of experts: the choice, products with chosen weights, the sum over slots."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import get_args

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kernels.backend import Backend
from kernels.checks import MAX_EXPERTS
from kernels.cpu.backend import CpuBackend, available_isas
from kernels.dtype import DType
from kernels.memory import Bytes
from kernels.ops.experts import GATINGS, Gating, expert_matmul_ref, route_ref, slot_sum_ref
from kernels.ops.op import F32, I32
from kernels.ops.quant import dequantize
from kernels.program import ProgramBuilder, ShapeError
from kernels.tensor import Tensor
from tests.kernels.conftest import BACKENDS, OneOp, each_backend, each_cpu, normal, run_one_op, run_ops, seeds
from tests.kernels.test_matmul import MAX_ERROR, product_error
from tests.kernels.weights import WEIGHT_DTYPES, random_weight

MAX_WEIGHT_ERROR = 2e-6  # relative: e^x and a sum, in float32

each_dtype = pytest.mark.parametrize("dtype", WEIGHT_DTYPES, ids=lambda d: d.name)
each_gating = pytest.mark.parametrize("gating", GATINGS)


def routed(backend: Backend, logits: F32, n_used: int, gating: Gating) -> tuple[I32, F32]:
    """What a backend chooses, and how it weighs."""

    def build(g: OneOp) -> list[Tensor]:
        route = g.program.route(g.input(logits), n_used, gating)
        return [route.ids, route.weights]

    ids, weights = run_ops(backend, build)
    return ids.astype(np.int32), weights.astype(np.float32)


@dataclass(frozen=True)
class Case:
    """Rows, and the logits by which they are sent to experts."""

    x: F32  # [n, n_in], or [n, n_used * n_in]
    logits: F32  # [n, n_expert]
    raw: Bytes
    dtype: DType
    n_out: int
    n_in: int
    n_used: int
    is_scaled: bool = False

    @property
    def shape(self) -> tuple[int, int, int]:
        """Of the weight."""
        return self.logits.shape[1], self.n_out, self.n_in

    @property
    def weight(self) -> F32:
        """As it is meant."""
        return dequantize(self.raw, self.dtype, int(np.prod(self.shape))).reshape(self.shape)

    @property
    def route(self) -> tuple[I32, F32]:
        """By the reference."""
        return route_ref(self.logits, self.n_used, "sigmoid")

    def build(self, g: OneOp) -> Tensor:
        """The product."""
        route = g.program.route(g.input(self.logits), self.n_used, "sigmoid")
        weight = g.weight(self.raw, self.shape, self.dtype)
        return g.program.expert_matmul(g.input(self.x), weight, route, is_scaled=self.is_scaled)

    def run(self, backend: Backend, rows: slice = slice(None)) -> F32:
        """Of all rows or some."""
        return run_one_op(backend, replace(self, x=self.x[rows], logits=self.logits[rows]).build)

    def error(self, got: F32) -> float:
        """As that of products without experts, the scales taken off."""
        ids, scales = self.route
        slots = got.reshape(-1, self.n_out)
        if self.is_scaled:
            slots = slots / scales.reshape(-1, 1)
        seen = np.broadcast_to(
            self.x.reshape(len(ids), self.x.shape[1] // self.n_in, self.n_in),
            (len(ids), self.n_used, self.n_in),
        ).reshape(-1, self.n_in)
        errors = [
            product_error(slots[mine], seen[mine], self.weight[expert])
            for expert in np.unique(ids)
            if (mine := ids.reshape(-1) == expert).any()
        ]
        return max(errors, default=0.0)


def make_case(
    dtype: DType, n: int, n_expert: int, n_used: int, seed: int, *, n_out: int = 20, n_block: int = 2,
    is_shared: bool = True, is_scaled: bool = False,
) -> Case:  # fmt: skip
    """Random rows that go wherever they like."""
    n_in = n_block * dtype.block_n if dtype.is_quantized else 7 * n_block
    raw = random_weight(dtype, n_expert * n_out * n_in, seed)
    x = normal(seed + 1, n, n_in if is_shared else n_used * n_in)
    return Case(x, normal(seed + 2, n, n_expert), raw, dtype, n_out, n_in, n_used, is_scaled)


# --- the choice


@each_gating
@each_backend
@given(n=st.integers(0, 9), n_expert=st.integers(1, 140), n_used=st.integers(1, 9), seed=seeds)
def test_the_largest_logits_are_chosen_and_weighed(
    backend: Backend, gating: Gating, n: int, n_expert: int, n_used: int, seed: int
) -> None:
    logits = normal(seed, n, n_expert) * 4
    ids, weights = routed(backend, logits, min(n_used, n_expert), gating)
    want_ids, want_weights = route_ref(logits, min(n_used, n_expert), gating)
    np.testing.assert_array_equal(ids, want_ids)
    np.testing.assert_allclose(weights, want_weights, rtol=MAX_WEIGHT_ERROR, atol=1e-30)


def test_shares_are_of_all_or_of_the_chosen() -> None:
    logits = np.log(np.array([[1, 4, 2, 3]], np.float32))
    assert route_ref(logits, 2, "softmax")[0].tolist() == [[1, 3]]
    np.testing.assert_allclose(route_ref(logits, 2, "softmax")[1], [[0.4, 0.3]], rtol=1e-6)
    np.testing.assert_allclose(route_ref(logits, 2, "chosen_softmax")[1], [[4 / 7, 3 / 7]], rtol=1e-6)
    np.testing.assert_allclose(route_ref(logits, 2, "sigmoid")[1], [[4 / 5, 3 / 4]], rtol=1e-6)
    assert set(get_args(Gating)) == set(GATINGS)


@each_backend
def test_of_equal_logits_the_lower_id_comes_first(backend: Backend) -> None:
    logits = np.zeros((3, 70), np.float32)
    logits[1, [3, 40, 41, 69]] = 1
    logits[2, :] = -np.inf
    ids, _ = routed(backend, logits, 5, "softmax")
    assert ids.tolist() == [[0, 1, 2, 3, 4], [3, 40, 41, 69, 0], [0, 1, 2, 3, 4]]


@each_gating
@each_backend
def test_a_nan_costs_its_own_row_only(backend: Backend, gating: Gating) -> None:
    clean = normal(1, 6, 40)
    logits = clean.copy()
    logits[1, 7] = np.nan
    logits[3] = np.nan
    logits[4, 30:] = np.nan
    ids, weights = routed(backend, logits, 8, gating)
    others = [0, 2, 5]
    want_ids, want_weights = routed(backend, clean, 8, gating)
    np.testing.assert_array_equal(ids[others], want_ids[others])
    np.testing.assert_array_equal(weights[others], want_weights[others])
    for row in (1, 3, 4):
        assert len(set(ids[row].tolist())) == 8
        assert 0 <= ids[row].min() <= ids[row].max() < 40
        assert np.isnan(weights[row]).all()


@pytest.mark.parametrize("backend", [backend for name, backend in BACKENDS.items() if name != "reference"])
def test_more_experts_than_a_router_keeps_apart_are_refused(backend: Backend) -> None:
    g = OneOp()
    g.program.route(g.input(np.zeros((1, MAX_EXPERTS + 1), np.float32)), 1, "softmax")
    refusal = backend.refuses(g.program._ops[0])  # pyright: ignore[reportPrivateUsage]
    assert refusal == f"{MAX_EXPERTS + 1} experts are over {MAX_EXPERTS}"


# --- products


@each_dtype
@each_backend
@given(
    n=st.integers(0, 9), n_expert=st.integers(1, 6), n_used=st.integers(1, 3), n_out=st.integers(1, 70),
    n_block=st.integers(1, 9), is_shared=st.booleans(), is_scaled=st.booleans(), seed=seeds,
)  # fmt: skip
def test_each_slot_is_multiplied_with_its_own_expert(
    backend: Backend, dtype: DType, n: int, n_expert: int, n_used: int, n_out: int, n_block: int,
    is_shared: bool, is_scaled: bool, seed: int,
) -> None:  # fmt: skip
    case = make_case(
        dtype, n, n_expert, min(n_used, n_expert), seed, n_out=n_out, n_block=n_block,
        is_shared=is_shared, is_scaled=is_scaled,
    )  # fmt: skip
    got = case.run(backend)
    assert case.error(got) <= MAX_ERROR[dtype]
    exact = expert_matmul_ref(case.x, case.weight, case.route[0], case.route[1] if is_scaled else None)
    assert got.shape == exact.shape


# the expert of each row's first slot, in turns of these lengths: with many columns, few, one and none
CROWDS: Mapping[str, list[int]] = {
    "all to one": [70],
    "many, few, one": [40, 3, 1, 0, 7, 0, 4, 5],
    "each alone": [1] * 9,
}


@each_cpu
@each_dtype
@pytest.mark.parametrize("crowd", CROWDS.values(), ids=CROWDS.keys())
def test_an_expert_may_have_all_rows_or_none(backend: CpuBackend, dtype: DType, crowd: list[int]) -> None:
    case = make_case(dtype, sum(crowd), len(crowd), 1, 5, n_out=130, n_block=3)
    ids = np.random.default_rng(1).permutation(np.repeat(np.arange(len(crowd)), crowd))
    case = replace(case, logits=np.eye(len(crowd), dtype=np.float32)[ids])
    assert case.error(case.run(backend)) <= MAX_ERROR[dtype]


@each_cpu
@each_dtype
@given(n=st.integers(2, 11), is_shared=st.booleans(), is_scaled=st.booleans(), seed=seeds)
def test_a_row_is_the_same_bits_alone_and_in_a_batch(
    backend: CpuBackend, dtype: DType, n: int, is_shared: bool, is_scaled: bool, seed: int
) -> None:
    case = make_case(dtype, n, 3, 2, seed, is_shared=is_shared, is_scaled=is_scaled)
    together = case.run(backend)
    alone = [case.run(backend, slice(i, i + 1)) for i in range(n)]
    np.testing.assert_array_equal(together, np.concatenate(alone))


@each_dtype
@pytest.mark.parametrize("isa", available_isas())
def test_bits_do_not_depend_on_the_number_of_threads(isa: str, dtype: DType) -> None:
    case = make_case(dtype, 40, 5, 2, 7, n_out=150, n_block=4)
    one, four = (case.run(CpuBackend(n_threads, isa, small_bytes=0)) for n_threads in (1, 4))
    np.testing.assert_array_equal(one, four)


@each_backend
@pytest.mark.parametrize("dtype", [DType.F16, DType.Q4_K], ids=lambda d: d.name)
def test_a_nan_reaches_its_own_row_only(backend: Backend, dtype: DType) -> None:
    case = make_case(dtype, 12, 4, 2, 3)
    clean = case.run(backend)
    x, logits = case.x.copy(), case.logits.copy()
    x[3], logits[3] = np.nan, np.nan
    got = replace(case, x=x, logits=logits, is_scaled=False).run(backend)
    others = [i for i in range(12) if i != 3]
    np.testing.assert_array_equal(got[others], clean[others])
    assert np.isnan(got[3]).all()


@each_backend
@pytest.mark.parametrize("dtype", [DType.F32, DType.Q8_0, DType.Q4_K], ids=lambda d: d.name)
def test_a_whole_feed_forward_is_that_of_its_parts(backend: Backend, dtype: DType) -> None:
    """Gate and up share what a backend prepares for one of them, down has rows of its own."""
    n, n_expert, n_used, n_embd, n_ff = 9, 5, 2, 256, 512
    x, logits, residual = normal(1, n, n_embd), normal(2, n, n_expert), normal(3, n, n_embd)
    shapes = {"gate": (n_ff, n_embd), "up": (n_ff, n_embd), "down": (n_embd, n_ff)}
    raw = {
        name: random_weight(dtype, n_expert * a * b, seed)
        for seed, (name, (a, b)) in enumerate(shapes.items())
    }

    def build(g: OneOp) -> Tensor:
        p, left = g.program, g.input(x)
        route = p.route(g.input(logits), n_used, "chosen_softmax")
        weights = {name: g.weight(raw[name], (n_expert, *shape), dtype) for name, shape in shapes.items()}
        gated = p.gate(
            p.expert_matmul(left, weights["gate"], route), p.expert_matmul(left, weights["up"], route), "silu"
        )
        down = p.expert_matmul(gated, weights["down"], route, is_scaled=True)
        return p.slot_sum(down, n_used, g.input(residual))

    got, want = run_one_op(backend, build), run_one_op(BACKENDS["reference"], build)
    error = np.sum((got.astype(np.float64) - want) ** 2) / np.sum((want.astype(np.float64) - residual) ** 2)
    assert error <= (1e-3 if dtype.is_quantized else 1e-10)


# --- the sum


@each_backend
@given(
    n=st.integers(0, 5), n_slot=st.integers(1, 9), width=st.integers(1, 70), has_residual=st.booleans(),
    seed=seeds,
)  # fmt: skip
def test_slots_are_added_to_the_residual(
    backend: Backend, n: int, n_slot: int, width: int, has_residual: bool, seed: int
) -> None:
    x, residual = normal(seed, n, n_slot * width), normal(seed + 1, n, width) if has_residual else None

    def build(g: OneOp) -> Tensor:
        return g.program.slot_sum(g.input(x), n_slot, None if residual is None else g.input(residual))

    want = slot_sum_ref(x, width, residual)
    np.testing.assert_allclose(run_one_op(backend, build), want, rtol=0, atol=1e-5)


# --- what a program may not say


def builder() -> tuple[ProgramBuilder, Tensor, Tensor]:
    """With logits of 4 experts and rows of 32."""
    g = ProgramBuilder(n_layer=2)
    return g, g.input("logits", (3, 4), DType.F32), g.input("x", (3, 32), DType.F32)


@pytest.mark.parametrize("n_used", [0, 5])
def test_as_many_experts_as_there_are_can_be_used(n_used: int) -> None:
    g, logits, _ = builder()
    with pytest.raises(ShapeError, match=f"{n_used} experts of logits"):
        g.route(logits, n_used, "softmax")


def test_a_weight_of_another_number_of_experts_is_refused() -> None:
    g, logits, x = builder()
    route = g.route(logits, 2, "softmax")
    with pytest.raises(ShapeError, match=r"w: F32\[5, 8, 32\] is not of 4 experts"):
        g.expert_matmul(x, g.weight("w", (5, 8, 32), DType.F32), route)


def test_rows_that_are_no_slots_are_refused() -> None:
    g, logits, x = builder()
    route = g.route(logits, 3, "softmax")
    with pytest.raises(ShapeError, match=r"3 slots of x: F32\[3, 32\] with w: F32\[4, 8, 16\]"):
        g.expert_matmul(x, g.weight("w", (4, 8, 16), DType.F32), route)


def test_ids_of_another_layer_are_refused() -> None:
    g, logits, x = builder()
    with g.in_layer(0):
        route = g.route(logits, 2, "softmax")
    with g.in_layer(1), pytest.raises(ShapeError, match="are not of a route in layer 1"):
        g.expert_matmul(x, g.weight("w", (4, 8, 32), DType.F32), route)
