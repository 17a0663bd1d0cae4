"""What metadata of models with experts says: qwen3moe and llama4, and what of it is refused."""

from collections.abc import Mapping
from pathlib import Path

import pytest

from actors.errors import ModelError, Unsupported
from actors.runner.cache.shape import CacheShape
from actors.runner.gguf.check import check_model
from actors.runner.gguf.reader import GGUFFile
from actors.runner.models.families import build_program, read_hparams
from actors.runner.models.hparams import Hparams
from kernels.dtype import DType
from kernels.ops.attention import Attention
from kernels.ops.experts import ExpertMatmul, Route
from kernels.ops.norm import RmsNorm
from kernels.ops.rope import Rope
from kernels.program import Program
from tests.golden import tiny as t
from tests.unit.gguf_files import boolean, f32, model_bytes, string, u32
from tests.unit.gguf_use import read

EXPERTS = {"expert_count": u32(8), "expert_used_count": u32(2), "expert_feed_forward_length": u32(32)}


def header(arch: str, changes: Mapping[str, bytes | None], n_layer: int = 8) -> GGUFFile:
    """A header with experts; changes by names below the family's."""
    given = {"block_count": u32(n_layer), **EXPERTS, **changes}
    return read(model_bytes(arch, {f"{arch}.{key}": value for key, value in given.items()}))


def hparams_of(arch: str, n_layer: int = 8, **changes: bytes) -> Hparams:
    """Sizes of a header; `__` in a name stands for a dot."""
    return read_hparams(
        header(arch, {key.replace("__", "."): value for key, value in changes.items()}, n_layer)
    )


def test_qwen3moe_has_experts_in_every_layer() -> None:
    hparams = hparams_of("qwen3moe")
    assert (hparams.n_expert, hparams.n_expert_used, hparams.n_ff_exp) == (8, 2, 32)
    assert all(hparams.has_experts(layer) for layer in range(8))


def test_llama4_sees_its_own_chunk_in_three_layers_of_four() -> None:
    assert hparams_of("llama4").chunks == (8192, 8192, 8192, 0, 8192, 8192, 8192, 0)
    assert hparams_of("llama4", attention__chunk_size=u32(64)).chunks[:4] == (64, 64, 64, 0)


def test_llama4_with_a_window_of_nothing_has_no_chunks() -> None:
    assert hparams_of("llama4", attention__sliding_window=u32(0)).chunks == (0,) * 8
    assert hparams_of("llama4", attention__sliding_window=u32(8192)).chunks[0] == 8192


@pytest.mark.parametrize(("step", "dense"), [(1, []), (2, [0, 2, 4, 6]), (3, [0, 1, 3, 4, 6, 7])])
def test_llama4_has_experts_in_every_nth_layer(step: int, dense: list[int]) -> None:
    hparams = hparams_of("llama4", interleave_moe_layer_step=u32(step))
    assert [layer for layer in range(8) if not hparams.has_experts(layer)] == dense


def test_llama4_norms_queries_and_keys_but_for_its_model_of_128_experts() -> None:
    assert hparams_of("llama4").is_unit_normed
    assert not hparams_of("llama4", expert_count=u32(128)).is_unit_normed
    assert hparams_of("llama4", expert_count=u32(128), use_qk_norm=boolean(True)).is_unit_normed
    assert not hparams_of("llama4", use_qk_norm=boolean(False)).is_unit_normed


def test_the_temperature_of_llama4_is_a_tenth_every_8192_positions_where_the_file_does_not_say() -> None:
    hparams = hparams_of("llama4")
    assert (hparams.temperature, hparams.temperature_length) == (0.1, 8192)
    said = hparams_of("llama4", attention__temperature_scale=f32(0.5), attention__temperature_length=u32(7))
    assert (said.temperature, said.temperature_length) == (0.5, 7)


NONSENSE = {
    "no experts": ("qwen3moe", {"expert_count": u32(0), "expert_used_count": u32(0)}, "expert_count' is 0"),
    "none used": ("llama4", {"expert_used_count": u32(0)}, "expert_used_count' is 0, expected 1 to 8"),
    "more used": ("llama4", {"expert_used_count": u32(9)}, "uses 9 of 8 experts"),
    "too many": ("qwen3moe", {"expert_count": u32(1025)}, "expert_count. is 1025"),
    "no units": ("qwen3moe", {"expert_feed_forward_length": u32(0)}, "feed_forward_length' is 0, expected"),
    "2^32 - 1 units": ("qwen3moe", {"expert_feed_forward_length": u32(2**32 - 1)}, "is 4294967295, expected"),
    "count missing": (
        "qwen3moe",
        {"expert_count": None, "expert_used_count": None},
        "expert_count' is missing",
    ),
    "step 0": ("llama4", {"interleave_moe_layer_step": u32(0)}, "layer_step is 0, expected 1 to 8"),
    "step 9": ("llama4", {"interleave_moe_layer_step": u32(9)}, "layer_step is 9, expected 1 to 8"),
    "chunk 0": ("llama4", {"attention.chunk_size": u32(0)}, "chunk_size is 0, expected 1 to 16777216"),
    "chunk 2^31": ("llama4", {"attention.chunk_size": u32(2**31)}, "chunk_size is 2147483648, expected"),
    "length 0": ("llama4", {"attention.temperature_length": u32(0)}, "temperature_length is 0, expected 1"),
    "cold": ("llama4", {"attention.temperature_scale": f32(-1)}, "temperature_scale is -1.0, expected a fin"),
    "hot": (
        "llama4",
        {"attention.temperature_scale": f32(float("inf"))},
        "temperature_scale is inf, expected",
    ),
    "no number": ("llama4", {"attention.temperature_scale": f32(float("nan"))}, "scale is nan, expected"),
}


@pytest.mark.parametrize(("arch", "changes", "said"), NONSENSE.values(), ids=NONSENSE.keys())
def test_a_value_that_makes_no_sense_is_named(
    arch: str, changes: Mapping[str, bytes | None], said: str
) -> None:
    file = header(arch, changes)

    def check() -> None:
        check_model(file)
        read_hparams(file)

    with pytest.raises(ModelError, match=said):
        check()


NOT_IMPLEMENTED = {
    "gating": ("qwen3moe", {"expert_gating_func": u32(2)}, "expert_gating_func 2 is not implemented, only 1"),
    "softmax": ("llama4", {"expert_gating_func": u32(1)}, "expert_gating_func 1 is not implemented, only 2"),
    "groups": ("qwen3moe", {"expert_group_count": u32(4)}, "expert_group_count 4 is not implemented, only 1"),
    "scale": ("qwen3moe", {"expert_weights_scale": f32(2.5)}, "weights scaled by 2.5 is not implemented"),
    "shares of all": ("qwen3moe", {"expert_weights_norm": boolean(False)}, "norm False is not implemented"),
    "shares": ("llama4", {"expert_weights_norm": boolean(True)}, "norm True is not implemented, only False"),
    "more shared": ("llama4", {"expert_shared_count": u32(2)}, "shared_count 2 is not implemented, only 1"),
    "shared": ("qwen3moe", {"expert_shared_count": u32(1)}, "expert_shared_count 1 is not implemented"),
    "images": ("llama4", {"vision.block_count": u32(34)}, "images are not implemented"),
    "experts where the family has none": ("qwen3", {}, "qwen3 with experts is not implemented"),
}


@pytest.mark.parametrize(("arch", "changes", "said"), NOT_IMPLEMENTED.values(), ids=NOT_IMPLEMENTED.keys())
def test_what_is_not_implemented_is_refused_by_name(
    arch: str, changes: Mapping[str, bytes | None], said: str
) -> None:
    with pytest.raises(Unsupported, match=said):
        read_hparams(header(arch, changes))


def program_of(variant: str, folder: Path, **changes: tuple[int, ...]) -> Program:
    """Of a tiny model, some of whose tensors have other shapes."""
    tiny = t.VARIANTS[variant]
    path = folder / "tiny.gguf"
    weights = t.weights(tiny)
    for name, shape in changes.items():
        key = f"blk.1.{name}.weight"
        weights[key] = weights[key].ravel()[: shape[0] * shape[1] * shape[2]].reshape(shape)
    t.write(path, tiny, weights)
    with GGUFFile.open(path) as file:
        hparams = read_hparams(file)
        chunk = max(hparams.chunks)
        shape = CacheShape(64, 8, DType.F32, 32 if chunk else 0, chunk=chunk)
        return build_program(file, hparams, shape)


def test_each_layer_of_llama4_is_what_its_place_says(tmp_path: Path) -> None:
    program = program_of("llama4", tmp_path)
    attentions = [op for op in program.ops if isinstance(op, Attention)]
    assert [op.chunk for op in attentions] == [5, 5, 5, 0, 5]
    assert [op.temperature_length for op in attentions] == [0, 0, 0, 3, 0]
    assert [op.tables.name for op in attentions] == ["window_tables"] * 3 + ["tables", "window_tables"]
    with_rope = [0, 1, 2, 4]
    assert [op.layer for op in program.ops if isinstance(op, Rope)] == with_rope
    normed = [op.layer for op in program.ops if isinstance(op, RmsNorm) and op.weight is None]
    assert normed == sorted(2 * with_rope)


def test_llama4_scales_what_experts_are_given_and_qwen3moe_what_they_give(tmp_path: Path) -> None:
    def scaled(variant: str) -> list[bool]:
        products = [op for op in program_of(variant, tmp_path).ops if isinstance(op, ExpertMatmul)]
        return [op.scales is not None for op in products[:3]]

    assert scaled("llama4") == [True, True, False]
    assert scaled("qwen3moe") == [False, False, True]


def test_dense_layers_between_have_no_router(tmp_path: Path) -> None:
    program = program_of("llama4-interleaved", tmp_path)
    assert [op.layer for op in program.ops if isinstance(op, Route)] == [1, 3]


@pytest.mark.parametrize(
    ("name", "shape", "said"),
    [
        ("ffn_gate_exps", (7, 32, 64), r"expected shape \[8, 32, 64\], found \[7, 32, 64\]"),
        ("ffn_up_exps", (8, 16, 64), r"expected shape \[8, 32, 64\], found \[8, 16, 64\]"),
        ("ffn_down_exps", (8, 32, 64), r"expected shape \[8, 64, 32\], found \[8, 32, 64\]"),
    ],
)
def test_experts_of_another_shape_are_refused(
    name: str, shape: tuple[int, ...], said: str, tmp_path: Path
) -> None:
    with pytest.raises(ModelError, match=f"tensor blk.1.{name}.weight: {said}"):
        program_of("qwen3moe", tmp_path, **{name: shape})


def test_a_scaling_that_changes_lengths_is_refused_where_lengths_are_normed(tmp_path: Path) -> None:
    yarn = {
        "rope.scaling.type": string("yarn"),
        "rope.scaling.factor": f32(4.0),
        "rope.scaling.original_context_length": u32(32),
    }
    file = header("llama4", yarn)
    with pytest.raises(Unsupported, match="rope scaling that changes magnitudes"):
        build_program(file, read_hparams(file), CacheShape(64, 8, DType.F32, 32, chunk=8192))
