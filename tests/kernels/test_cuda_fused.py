"""Ops that one kernel does: the bits of ops one by one, apart where memory forbids it, few launches."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest

from bench.shapes import Shape, dtype_of
from kernels.backend import Binding
from kernels.cuda.backend import CudaBackend
from kernels.cuda.driver import Work
from kernels.cuda.emulator.driver import EmulatedDriver, EmulatedGraph
from kernels.cuda.fuse import FUSED_ROWS, fused
from kernels.dtype import DType
from kernels.executable import view
from kernels.ops.gate import ACTIVATIONS, Activation
from kernels.ops.op import F32, Array, Op
from kernels.ops.rope import Rotation
from kernels.tensor import Role, Tensor
from tests.cuda import COMPILED
from tests.golden import tiny as t
from tests.golden.blocks import Kind, random_blocks
from tests.golden.runs import Bound
from tests.kernels.caches import CacheShape
from tests.kernels.conftest import OneOp, normal, tensors_of
from tests.kernels.weights import QUANTIZED_DTYPES, WEIGHT_DTYPES, random_weight

Build = Callable[[OneOp], Sequence[Tensor]]
ROTATION = Rotation("neox", tuple(0.1 / (i + 1) for i in range(12)))  # of 32 dimensions 24
OTHER = {dtype: QUANTIZED_DTYPES[i - 1] for i, dtype in enumerate(QUANTIZED_DTYPES)}


class Recorder(EmulatedDriver):
    """The emulator, which also tells what was recorded."""

    def __init__(self) -> None:
        super().__init__(COMPILED)
        self.recorded: list[str] = []

    def record(self, works: Sequence[Work]) -> EmulatedGraph:
        """See `Driver`."""
        self.recorded += [getattr(work, "kernel", "gemm") for work in works]
        return super().record(works)


def computed(build: Build, *, is_whole: bool) -> tuple[Mapping[Tensor, Array], list[Tensor], list[str]]:
    """Every value and state after all ops in one segment, or in one each; the results; the kernels."""
    one = OneOp()
    results = list(build(one))
    ops: Sequence[Op] = one.program._ops
    driver = Recorder()
    backend = CudaBackend("cuda:0", driver)
    tensors = dict.fromkeys(tensor for op in ops for tensor in (*tensors_of(op), *op.writes))
    with ExitStack() as stack:
        memory = {}
        for tensor in tensors:
            buffer = backend.allocate(tensor.n_bytes({}), tensor.name)
            stack.callback(buffer.free)
            if tensor in one.given:
                buffer.memory.upload(one.given[tensor])
            memory[tensor] = buffer.memory
        scratch = backend.allocate(max(backend.workspace_bytes(op, {}) for op in ops), "workspace")
        stack.callback(scratch.free)
        scratch.memory.upload(np.full(scratch.memory.n_bytes, 0xA5, np.uint8))
        segments = [list(ops)] if is_whole else [[op] for op in ops]
        for segment in segments:
            bound = backend.bind(Binding(segment, memory, {}, scratch.memory))
            for _ in range(2):  # what the first run leaves must not disturb the second
                bound.run({})
        arrays: dict[Tensor, Array] = {}
        for tensor in tensors:
            if tensor.role in (Role.VALUE, Role.STATE):
                raw = np.empty(memory[tensor].n_bytes, np.uint8)
                memory[tensor].download(raw)
                arrays[tensor] = raw if tensor.role is Role.STATE else view(raw, tensor, {}).copy()
    return arrays, results, driver.recorded


def expect_same_bits(build: Build) -> list[str]:
    """Every value and state alike whether ops are bound together or one by one; the kernels of the former."""
    together, _, kernels = computed(build, is_whole=True)
    alone, _, _ = computed(build, is_whole=False)
    for (tensor, got), want in zip(together.items(), alone.values(), strict=True):
        np.testing.assert_array_equal(got.view(np.uint8), want.view(np.uint8), err_msg=tensor.name)
    return kernels


def quantised(g: OneOp, x: Tensor, dtype: DType, n_out: int, seed: int, **extra: Tensor) -> Tensor:
    """x times a random weight."""
    weight = g.weight(random_weight(dtype, n_out * x.width, seed), (n_out, x.width), dtype)
    return g.program.matmul(x, weight, extra.get("bias"), extra.get("residual"))


@pytest.mark.parametrize("n", [1, 2, 3, 5, FUSED_ROWS])
def test_a_norm_leaves_the_int8_form_that_products_read(n: int) -> None:
    def build(g: OneOp) -> list[Tensor]:
        x, residual = g.input(normal(1, n, 256)), g.input(normal(2, n, 256))
        normed = g.program.rms_norm(x, g.weight(normal(3, 256)), 1e-6, residual)
        product = quantised(g, normed, DType.Q4_K, 40, 4, residual=g.input(normal(5, n, 40)))
        return [product, g.program.softcap(normed, 3.0)]  # which something else reads too

    assert expect_same_bits(build) == ["rms_norm", f"matvec_{columns(n)}", "softcap"]


@pytest.mark.parametrize("has_up", [False, True])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_a_gate_leaves_the_int8_form_that_products_read(activation: Activation, has_up: bool) -> None:
    def build(g: OneOp) -> list[Tensor]:
        gate, up = g.input(normal(1, 3, 512)), g.input(normal(2, 3, 512)) if has_up else None
        gated = g.program.gate(gate, up, activation)
        return [quantised(g, gated, DType.Q6_K, 10, 4)]

    assert expect_same_bits(build) == ["gate", "matvec_4"]


def test_a_value_that_is_not_finite_shows_in_its_row_alone() -> None:
    x = normal(1, 3, 64)
    x[1, 40] = np.inf

    def build(g: OneOp) -> list[Tensor]:
        normed = g.program.rms_norm(g.input(x), g.weight(normal(3, 64)), 1e-6)
        return [quantised(g, normed, DType.Q8_0, 5, 4)]

    arrays, (result,), _ = computed(build, is_whole=True)
    assert np.isnan(arrays[result][1]).all()
    assert np.isfinite(arrays[result][[0, 2]]).all()


@pytest.mark.parametrize("n", [1, 2, 4, 9, FUSED_ROWS])
@pytest.mark.parametrize("dtype", WEIGHT_DTYPES, ids=lambda d: d.name)
def test_products_of_one_input_are_one_launch(dtype: DType, n: int) -> None:
    def build(g: OneOp) -> list[Tensor]:
        x = g.input(normal(1, n, 512))
        first = quantised(g, x, dtype, 21, 2, bias=g.weight(normal(3, 21)))
        second = quantised(g, x, dtype, 1, 4, residual=g.input(normal(5, n, 1)))
        return [first, second, quantised(g, x, dtype, 9, 6)]

    quantize = ["quantize"] if dtype.is_quantized else []
    assert expect_same_bits(build) == [*quantize, f"matvec_{columns(n)}"]


@pytest.mark.parametrize("place", [0, 1, 2])
@pytest.mark.parametrize(
    "dtype", [DType.Q4_K, DType.Q6_K, DType.Q5_0, DType.MXFP4], ids=lambda dtype: dtype.name
)
def test_products_of_two_types_are_one_launch(dtype: DType, place: int) -> None:
    def build(g: OneOp) -> list[Tensor]:
        x = g.input(normal(1, 2, 256))
        types = [dtype, dtype, dtype]
        types[place] = OTHER[dtype]
        return [quantised(g, x, kind, 10 + i, i) for i, kind in enumerate(types)]

    assert expect_same_bits(build) == ["quantize", "matvec_2"]


def test_a_third_type_and_a_plain_one_have_launches_of_their_own() -> None:
    def build(g: OneOp) -> list[Tensor]:
        x = g.input(normal(1, 1, 256))
        types = (DType.Q4_K, DType.Q6_K, DType.Q8_0, DType.F16)
        return [quantised(g, x, kind, 10 + i, i) for i, kind in enumerate(types)]

    assert expect_same_bits(build) == ["quantize", "matvec_1", "matvec_1", "matvec_1"]


def test_another_reader_of_the_scratch_ends_an_int8_form() -> None:
    def build(g: OneOp) -> list[Tensor]:
        x, other = g.input(normal(1, 2, 64)), g.input(normal(2, 2, 64))
        normed = g.program.rms_norm(x, g.weight(normal(3, 64)), 1e-6)
        between = quantised(g, other, DType.Q8_0, 8, 4)
        return [between, quantised(g, normed, DType.Q8_0, 8, 5)]

    assert expect_same_bits(build) == ["rms_norm", "quantize", "matvec_2", "quantize", "matvec_2"]


def attending(
    g: OneOp,
    n: int,
    dtype: DType,
    *,
    head_dim: int = 32,
    window: int = 0,
    softcap: float = 0.0,
    reach: int | None = None,
) -> list[Tensor]:
    """Queries turned, keys and values stored, heads attending to up to 300 cells, and a product of that.

    reach: of a bias.
    """
    n_kv, n_group, n_pages = 2, 3, 40
    shape = CacheShape(n_pages, 8, n_kv, head_dim, dtype)
    rng = np.random.default_rng(n)
    n_visible = np.sort(rng.integers(1, 300, n)).astype(np.int32)
    states = [shape.empty() for _ in range(2)]
    table = rng.permutation(n_pages).astype(np.int32)
    for state, is_keys in zip(states, (True, False), strict=True):
        shape.write(state, shape.cells_of(table, 300), normal(7 + is_keys, 300, n_kv * head_dim), is_keys)
    k_state, v_state = (g.state(state, shape.shape) for state in states)
    positions, cells = g.input(n_visible - 1), g.input(shape.cells_of(table, 300)[310 - n - 10 : 300])
    q, k, v = (
        g.input(normal(i, n, heads * head_dim)) for i, heads in enumerate((n_kv * n_group, n_kv, n_kv))
    )
    rotated = g.program.rope(q, positions, head_dim, ROTATION)
    g.program.store_kv(
        k, v, positions, cells, k_state, v_state, head_dim=head_dim, page_size=8, rotation=ROTATION
    )
    tables, rows, visible = g.input(table[None]), g.input(np.zeros(n, np.int32)), g.input(n_visible)
    mixed = g.program.attention(
        rotated,
        k_state,
        v_state,
        tables,
        rows,
        visible,
        head_dim=head_dim,
        page_size=8,
        scale=0.2,
        window=window,
        softcap=softcap,
        bias=None if reach is None else g.weight(normal(9, 2 * reach + 1, n_kv * n_group)),
        positions=None if reach is None else positions,
    )
    return [quantised(g, mixed, DType.Q8_0, 16, 3)]


@pytest.mark.parametrize("dtype", [DType.F32, DType.F16, DType.Q8_0], ids=lambda dtype: dtype.name)
@pytest.mark.parametrize("n", [1, 3, FUSED_ROWS])
@pytest.mark.parametrize("reach", [None, 20])
def test_rope_and_cache_are_one_launch_and_so_are_attention_and_its_merge(
    n: int, dtype: DType, reach: int | None
) -> None:
    kernels = expect_same_bits(lambda g: attending(g, n, dtype, reach=reach))
    assert kernels == ["store_kv", "attention", f"matvec_{columns(n)}"]


@pytest.mark.parametrize(("window", "softcap"), [(40, 0.0), (0, 2.0), (130, 5.0)])
def test_windows_and_soft_caps_change_nothing(window: int, softcap: float) -> None:
    expect_same_bits(lambda g: attending(g, 2, DType.F16, window=window, softcap=softcap))


def test_heads_that_are_no_whole_groups_are_quantised_apart() -> None:
    kernels = expect_same_bits(lambda g: attending(g, 2, DType.F32, head_dim=40))
    assert kernels == ["store_kv", "attention", "quantize", "matvec_2"]


def test_a_row_gets_the_same_bits_merged_at_once_and_after() -> None:
    def values(n: int) -> F32:
        q = normal(1, FUSED_ROWS + 1, 96)[:n]
        shape = CacheShape(40, 8, 1, 32, DType.F32)
        table = np.arange(40, dtype=np.int32)

        def build(g: OneOp) -> list[Tensor]:
            states = []
            for is_keys in (True, False):
                state = shape.empty()
                shape.write(state, shape.cells_of(table, 300), normal(2 + is_keys, 300, 32), is_keys)
                states.append(g.state(state, shape.shape))
            tables, rows = g.input(table[None]), g.input(np.zeros(n, np.int32))
            visible = g.input(np.full(n, 300, np.int32))
            return [
                g.program.attention(
                    g.input(q),
                    states[0],
                    states[1],
                    tables,
                    rows,
                    visible,
                    head_dim=32,
                    page_size=8,
                    scale=0.3,
                )
            ]

        arrays, (result,), kernels = computed(build, is_whole=True)
        assert kernels == (["attention"] if n <= FUSED_ROWS else ["attention", "merge"])
        return arrays[result].view(np.float32)

    np.testing.assert_array_equal(values(FUSED_ROWS), values(FUSED_ROWS + 1)[:FUSED_ROWS])


def test_ops_stay_apart_where_one_would_overwrite_what_another_reads() -> None:
    g = OneOp()
    x = g.input(normal(1, 2, 64))
    for seed in range(3):
        quantised(g, x, DType.Q8_0, 64, seed)
    q, k, v = (op.writes[0] for op in g.program._ops)

    def steps(overlapping: tuple[Tensor, Tensor] | None) -> list[int]:
        tensors = [tensor for op in g.program._ops for tensor in tensors_of(op)]
        starts = {tensor: 8192 * i for i, tensor in enumerate(tensors)}
        if overlapping is not None:
            starts[overlapping[0]] = starts[overlapping[1]] + overlapping[1].n_bytes({}) - 4
        found = fused(g.program._ops, {}, lambda one: range(starts[one], starts[one] + one.n_bytes({})))
        return [len(step.ops) for step in found]

    assert steps(None) == [3]
    assert steps((k, q)) == [1, 2]
    assert steps((v, q)) == [2, 1]
    assert steps((v, x)) == [2, 1]
    assert steps((k, x)) == [1, 1, 1]


def columns(n: int) -> int:
    """Those that a reading of a weight serves."""
    return next(cols for cols in (1, 2, 4, 8) if n <= cols or cols == 8)


MIXING = ["rms_norm", "matvec_1", "store_kv", "attention", "matvec_1"]
LLAMA = [*MIXING, "rms_norm", "matvec_1", "gate", "matvec_1"]


@pytest.mark.parametrize(
    ("arch", "layer"),
    [("llama", LLAMA), ("qwen2", LLAMA), ("qwen3", [*LLAMA[:2], "rms_norm", "rms_norm", *LLAMA[2:]])],
)
def test_a_layer_of_a_q4_k_m_file_is_so_many_launches(arch: str, layer: list[str], tmp_path: Path) -> None:
    n_layer = 8
    sizes = t.Tiny(arch, n_embd=256, head_dim=64, n_ff=512, n_layer=n_layer)
    mixed = Shape("mixed", arch, n_layer, 256, 512, 4, 2, 64, 260, 128, 1e4, 1e-6, is_tied=False)
    plain, rng = t.weights(sizes), np.random.default_rng(1)

    def blocks(name: str) -> tuple[bytes, Kind]:
        kind = Kind[dtype_of(mixed, "Q4_K_M", name).name]
        return random_blocks(kind, plain[name].shape, 0.05, rng), kind

    matrices = {name: blocks(name) for name, values in plain.items() if values.ndim == 2}
    assert {matrices[f"blk.{i}.attn_v.weight"][1] for i in range(n_layer)} == {Kind.Q4_K, Kind.Q6_K}
    t.write(tmp_path / "mixed.gguf", sizes, plain | matrices)
    driver = Recorder()
    Bound(tmp_path / "mixed.gguf", CudaBackend("cuda:0", driver), DType.F16, n_batch=1)
    # the embedding is the host's; before the last feed-forward part, rows without output go
    last = [*layer[:-4], "rows", *layer[-4:]]
    assert driver.recorded == [*layer * (n_layer - 1), *last, "rms_norm", "matvec_1"]
