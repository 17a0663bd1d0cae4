"""What gemma3's metadata says of its layers, and what of it is refused."""

from collections.abc import Mapping
from pathlib import Path

import pytest

from actors.errors import ModelError, Unsupported
from actors.runner.cache.shape import CacheShape
from actors.runner.gguf.reader import GGUFFile
from actors.runner.models.families import build_program, read_hparams
from actors.runner.models.gemma3 import ROPE_STYLE, read_rotations
from actors.runner.models.hparams import Hparams
from kernels.dtype import DType
from kernels.ops.attention import Attention, StoreKV
from kernels.ops.rope import Rope, Rotation
from tests.golden import tiny as t
from tests.unit.gguf_files import BOOL, I32, f32, model_bytes, numbers, string, u32
from tests.unit.gguf_use import read

WINDOW, PATTERN = "gemma3.attention.sliding_window", "gemma3.attention.sliding_window_pattern"


def gemma3(**changes: bytes | None) -> GGUFFile:
    """A header of 7 layers; names are keys below `gemma3.`, with __ for a dot."""
    given = {f"gemma3.{name.replace('__', '.')}": value for name, value in changes.items()}
    return read(model_bytes("gemma3", {"gemma3.block_count": u32(7), **given}))


def windows(**changes: bytes | None) -> list[int]:
    hparams = read_hparams(gemma3(**changes))
    return [hparams.window_of(layer) for layer in range(hparams.n_layer)]


def test_every_sixth_layer_sees_all_and_a_window_counts_the_row_itself() -> None:
    assert windows(attention__sliding_window=u32(512)) == [511, 511, 511, 511, 511, 0, 511]


def test_the_file_may_say_how_far_apart_layers_without_a_window_are_or_which_they_are() -> None:
    size = u32(4)
    apart = windows(attention__sliding_window=size, attention__sliding_window_pattern=u32(2))
    assert apart == [3, 0, 3, 0, 3, 0, 3]
    which = numbers(BOOL, [0, 1, 1, 0, 0, 0, 1])
    assert windows(attention__sliding_window=size, attention__sliding_window_pattern=which) == [
        *(0, 3, 3, 0, 0, 0, 3)
    ]


@pytest.mark.parametrize("size", [None, u32(0)])
def test_without_a_window_every_layer_sees_all(size: bytes | None) -> None:
    changes = {} if size is None else {"attention__sliding_window": size}
    assert windows(**changes) == [0] * 7


BROKEN: Mapping[str, tuple[dict[str, bytes], str]] = {
    "window of the row alone": ({WINDOW: u32(1)}, "sliding_window is 1, expected 0 or 2 to"),
    "window of 2^32 - 1": ({WINDOW: u32(2**32 - 1)}, "sliding_window is 4294967295, expected"),
    "no period": ({PATTERN: u32(0)}, "pattern is 0, expected 1 or more, or 2 bools"),
    "pattern of another length": (
        {PATTERN: numbers(BOOL, [1])},
        "is an array of 1 bool, expected an integer",
    ),
    "pattern of numbers": ({PATTERN: numbers(I32, [1, 0])}, "is an array of 2 int32, expected an integer"),
    "cap below 0": ({"gemma3.final_logit_softcapping": f32(-1.0)}, "softcapping is -1.0, expected a finite"),
    "cap NaN": (
        {"gemma3.final_logit_softcapping": f32(float("nan"))},
        "softcapping is nan, expected a finite",
    ),
}


@pytest.mark.parametrize(("changes", "said"), BROKEN.values(), ids=BROKEN.keys())
def test_a_value_that_makes_no_sense_is_named(changes: dict[str, bytes], said: str) -> None:
    with pytest.raises(ModelError, match=said):
        read_hparams(read(model_bytes("gemma3", changes)))


def test_a_file_with_layers_for_images_is_refused_in_words() -> None:
    with pytest.raises(Unsupported, match="images are not implemented"):
        read_hparams(gemma3(vision__block_count=u32(27)))


def test_capped_attention_is_refused_by_name() -> None:
    with pytest.raises(Unsupported, match="gemma3 with capped attention"):
        read_hparams(gemma3(attn_logit_softcapping=f32(50.0)))


def test_embeddings_are_scaled_and_logits_capped_only_where_the_file_says_so() -> None:
    plain = read_hparams(gemma3())
    assert (plain.embd_scale, plain.logit_softcap) == (4.0, 0.0)  # the root of 16
    assert read_hparams(gemma3(final_logit_softcapping=f32(30.0))).logit_softcap == 30.0


def test_queries_are_scaled_by_head_dim_but_in_the_27b_by_the_width_per_head() -> None:
    sizes = {"attention__key_length": u32(64), "attention__value_length": u32(64)}
    assert read_hparams(gemma3(**sizes)).attn_scale == 64**-0.5
    assert read_hparams(gemma3(**sizes, block_count=u32(62))).attn_scale == (16 // 4) ** -0.5


def rotations(file: GGUFFile) -> list[Rotation | None]:
    hparams: Hparams = read_hparams(file)
    return list(read_rotations(file, hparams, ROPE_STYLE))


def turning(base: float, factor: float = 1.0) -> Rotation:
    """Of heads of 4."""
    return Rotation("neox", (1.0 / factor, base**-0.5 / factor))


def test_layers_with_a_window_turn_by_a_base_of_their_own_without_scaling() -> None:
    linear = gemma3(
        rope__freq_base=f32(1e6),
        rope__scaling__type=string("linear"),
        rope__scaling__factor=f32(8.0),
        attention__sliding_window=u32(4),
    )
    local, whole = turning(1e4), turning(1e6, 8.0)
    assert rotations(linear) == [local, local, local, local, local, whole, local]


@pytest.mark.parametrize(
    ("changes", "whole", "local"),
    [
        ({}, 1e6, 1e4),
        ({"rope__global__freq_base": f32(2e6), "rope__local__freq_base": f32(2e4)}, 2e6, 2e4),
        ({"rope__freq_base": f32(4e6), "rope__freq_base_swa": f32(4e4)}, 4e6, 4e4),
    ],
    ids=["defaults", "older names", "names"],
)
def test_bases_are_found_under_the_names_that_converters_give_them(
    changes: dict[str, bytes], whole: float, local: float
) -> None:
    given = {"rope__freq_base": None, "attention__sliding_window": u32(4), **changes}
    found = rotations(gemma3(**given))
    assert (found[5], found[0]) == (turning(whole), turning(local))


def test_each_layer_of_the_program_gets_its_own_window_and_rotation(tmp_path: Path) -> None:
    tiny = t.VARIANTS["gemma3-linear"]
    path = tmp_path / "tiny.gguf"
    t.write(path, tiny, t.weights(tiny))
    with GGUFFile.open(path) as file:
        hparams = read_hparams(file)
        program = build_program(file, hparams, CacheShape(64, 8, DType.F32, 32, window=3))
    assert [op.window for op in program.ops if isinstance(op, Attention)] == [4, 4, 0]
    turned = [op.rotation for op in program.ops if isinstance(op, Rope)]
    assert [op.rotation for op in program.ops if isinstance(op, StoreKV)] == turned
    assert turned[0] == turned[1]
    assert turned[0].inv_freq[0] == 8 * turned[2].inv_freq[0]
