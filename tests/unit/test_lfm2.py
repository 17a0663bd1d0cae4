"""What lfm2's metadata says of its layers, and what of it is refused."""

from collections.abc import Mapping
from pathlib import Path

import pytest

from actors.errors import ModelError, Unsupported
from actors.runner.cache.shape import CacheShape
from actors.runner.gguf.check import check_model
from actors.runner.gguf.reader import GGUFFile
from actors.runner.models.families import build_program, read_hparams
from kernels.dtype import DType
from kernels.ops.attention import Attention
from kernels.ops.conv import ShortConv
from tests.golden import tiny as t
from tests.unit.gguf_files import I32, model_bytes, numbers, u32
from tests.unit.gguf_use import read

HEADS, TAPS = "lfm2.attention.head_count_kv", "lfm2.shortconv.l_cache"


def lfm2(changes: Mapping[str, bytes | None]) -> GGUFFile:
    """A header of 4 layers, the second and third with attention."""
    heads = numbers(I32, [0, 2, 2, 0])
    given = {"lfm2.block_count": u32(4), HEADS: heads, TAPS: u32(3), **changes}
    return read(model_bytes("lfm2", {key: value for key, value in given.items() if value is not None}))


def test_layers_without_heads_are_convolutions() -> None:
    hparams = read_hparams(lfm2({}))
    assert [hparams.is_recurrent(layer) for layer in range(4)] == [True, False, False, True]
    assert (hparams.n_head_kv, hparams.n_tap) == (2, 3)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({TAPS: u32(1)}, "l_cache is 1, expected 2 to 16"),
        ({TAPS: u32(17)}, "l_cache is 17, expected 2 to 16"),
        ({TAPS: None}, "l_cache' is missing"),
        (
            {HEADS: numbers(I32, [0, 2])},
            "is 2 values of int32, expected an integer, or one for each of 4 layers",
        ),
        ({HEADS: numbers(I32, [0, 0, 0, 0])}, "head_count_kv' is 0, expected 1 to"),
        ({HEADS: numbers(I32, [0, -2, 2, 0])}, "head_count_kv' is -2, expected 1 to"),
        ({HEADS: numbers(I32, [0, 3, 2, 0])}, "3 key/value heads do not divide 4 heads"),
    ],
)
def test_a_value_that_makes_no_sense_is_named(changes: dict[str, bytes | None], said: str) -> None:
    file = lfm2(changes)

    def check() -> None:
        check_model(file)
        read_hparams(file)

    with pytest.raises(ModelError, match=said):
        check()


def test_layers_with_different_numbers_of_heads_are_refused_by_name() -> None:
    with pytest.raises(Unsupported, match="key/value heads of different number are not implemented"):
        read_hparams(lfm2({HEADS: numbers(I32, [0, 2, 4, 0])}))


def test_each_layer_of_the_program_is_what_its_heads_say(tmp_path: Path) -> None:
    tiny = t.VARIANTS["lfm2"]
    path = tmp_path / "tiny.gguf"
    t.write(path, tiny, t.weights(tiny))
    with GGUFFile.open(path) as file:
        program = build_program(file, read_hparams(file), CacheShape(64, 8, DType.F16, n_rows=5))
    mixers = [(op.layer, type(op)) for op in program.ops if isinstance(op, Attention | ShortConv)]
    assert mixers == [(0, ShortConv), (1, ShortConv), (2, Attention), (3, ShortConv), (4, Attention)]
    assert {name for name in program.states if name.startswith("conv")} == {"conv.0", "conv.1", "conv.3"}
    assert program.states["conv.0"].shape == (5, 2 * tiny.n_embd)
