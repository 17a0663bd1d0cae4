"""Quantised models: our arithmetic adds at most 1e-2 relative NMSE over the weights dequantised by numpy."""

from pathlib import Path

import gguf
import numpy as np
import pytest

from kernels.backend import Backend
from kernels.reference import ReferenceBackend
from tests.golden import tiny as t
from tests.golden.blocks import Kind, random_blocks
from tests.golden.runs import F32, Bound

SIZES = {
    "qwen3": t.Tiny("qwen3", n_embd=256, n_head=4, n_head_kv=2, head_dim=64, n_ff=512, seed=11),
    "gemma3": t.Tiny(
        "gemma3", n_embd=256, head_dim=64, n_ff=512, is_tied=True, rope_base=1e6, window=5, period=2, seed=12
    ),
    "llama4": t.Tiny(
        "llama4", n_embd=256, head_dim=64, n_ff=512, n_expert=4, n_expert_used=2, n_ff_exp=256, expert_step=2,
        chunk=5, temperature_length=3, seed=13,
    ),
}  # fmt: skip
KINDS = [
    *(Kind.Q4_0, Kind.Q4_1, Kind.Q5_0, Kind.Q5_1, Kind.Q8_0),
    *(Kind.Q2_K, Kind.Q3_K, Kind.Q4_K, Kind.Q5_K, Kind.Q6_K),
    *(Kind.IQ4_NL, Kind.MXFP4, Kind.BF16, Kind.F16),
]
MAX_NMSE = 1e-2

Raw = tuple[bytes, Kind]


def as_kind(kind: Kind, values: F32, rng: np.random.Generator) -> Raw:
    """The matrix in the format: converted where the format holds any number, random blocks otherwise."""
    if kind in (Kind.F16, Kind.BF16):
        return gguf.quants.quantize(values, kind).tobytes(), kind
    columns = values.shape[-1]
    return random_blocks(kind, (values.size // columns, columns), float(values.std()), rng), kind


def dequantised(raw: Raw, shape: tuple[int, ...]) -> F32:
    blocks, kind = raw
    array = np.frombuffer(blocks, np.float16 if kind is Kind.F16 else np.uint8)
    return np.ascontiguousarray(gguf.quants.dequantize(array, kind).reshape(shape).astype(np.float32))


@pytest.fixture(scope="module", params=sorted(SIZES))
def sizes(request: pytest.FixtureRequest) -> t.Tiny:
    return SIZES[request.param]


@pytest.fixture(scope="module", params=KINDS, ids=lambda kind: kind.name)
def expected_and_path(
    request: pytest.FixtureRequest, sizes: t.Tiny, tmp_path_factory: pytest.TempPathFactory
) -> tuple[F32, Path]:
    """Logits of the dequantised weights on the reference backend, and the quantised file."""
    kind: Kind = request.param
    rng = np.random.default_rng(int(kind))
    folder = tmp_path_factory.mktemp(kind.name)
    plain = t.weights(sizes)
    raw = {name: as_kind(kind, values, rng) for name, values in plain.items() if values.ndim > 1}
    t.write(
        folder / "f32.gguf",
        sizes,
        plain | {name: dequantised(r, plain[name].shape) for name, r in raw.items()},
    )
    t.write(folder / "quantised.gguf", sizes, plain | raw)
    judge = Bound(folder / "f32.gguf", ReferenceBackend("cpu"))
    return judge.feed((judge.open(), t.prompt(sizes)), all_rows=True), folder / "quantised.gguf"


def test_quantised_arithmetic_adds_little_error(
    expected_and_path: tuple[F32, Path], sizes: t.Tiny, backend: Backend
) -> None:
    expected, path = expected_and_path
    model = Bound(path, backend)
    got = model.feed((model.open(), t.prompt(sizes)), all_rows=True)
    assert np.mean((got - expected) ** 2) <= MAX_NMSE * np.mean(expected**2)
