"""What t5's metadata says of encoder and decoder, its buckets, its program, and what of it is refused."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest

from actors.errors import ModelError
from actors.runner.cache.shape import CacheShape
from actors.runner.gguf.check import check_model
from actors.runner.gguf.reader import GGUFFile
from actors.runner.models.families import build_program, read_hparams
from actors.runner.models.t5 import bucket_of_distance
from kernels.dtype import DType
from kernels.ops.attention import Attention, StoreKV
from kernels.program import Program
from kernels.tensor import N_SOURCE, N_SOURCE_PAGES
from tests.golden import tiny as t
from tests.unit.gguf_files import model_bytes, u32
from tests.unit.gguf_use import read

BUCKETS, START = "t5.attention.relative_buckets_count", "t5.decoder_start_token_id"
DECODER = "t5.decoder_block_count"


def t5(changes: Mapping[str, bytes | None]) -> GGUFFile:
    """A header of 4 layers in either."""
    given = {"t5.block_count": u32(4), BUCKETS: u32(32), START: u32(0), **changes}
    return read(model_bytes("t5", {key: value for key, value in given.items() if value is not None}))


def test_layers_of_the_encoder_come_first() -> None:
    hparams = read_hparams(t5({DECODER: u32(7)}))
    assert (hparams.n_encoder, hparams.n_layer) == (4, 11)
    assert read_hparams(t5({})).n_layer == 8  # as many as the encoder has


def test_a_decoder_begins_with_what_the_file_names_or_fills_up_with() -> None:
    assert read_hparams(t5({START: u32(2)})).start_token == 2
    padding = {START: None, "tokenizer.ggml.padding_token_id": u32(1)}
    assert read_hparams(t5(padding)).start_token == 1


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({BUCKETS: None}, "relative_buckets_count' is missing"),
        ({BUCKETS: u32(0)}, "relative_buckets_count is 0, expected a multiple of 4 up to 128"),
        ({BUCKETS: u32(30)}, "relative_buckets_count is 30, expected"),
        ({BUCKETS: u32(256)}, "relative_buckets_count is 256, expected"),
        ({START: None}, "decoder_start_token_id is -1, expected a token below"),
        ({START: u32(10**6)}, "decoder_start_token_id is 1000000, expected a token below"),
        ({DECODER: u32(0)}, "decoder_block_count' is 0, expected 1 to 1024"),
    ],
)
def test_a_value_that_makes_no_sense_is_named(changes: dict[str, bytes | None], said: str) -> None:
    file = t5(changes)

    def check() -> None:
        check_model(file)
        read_hparams(file)

    with pytest.raises(ModelError, match=said):
        check()


def first_distances(n_bucket: int, *, is_causal: bool) -> list[int]:
    """Where another bucket begins than that of the distance before."""
    return (np.flatnonzero(np.diff(bucket_of_distance(n_bucket, is_causal=is_causal))) - 127).tolist()


def test_buckets_are_those_of_transformers() -> None:
    """Recorded from `T5Attention._relative_position_bucket`, transformers 5, max_distance 128."""
    near = [*range(-7, 9)]
    assert first_distances(32, is_causal=False) == [
        *(-90, -63, -45, -31, -22, -15, -11),
        *near,
        *(12, 16, 23, 32, 46, 64, 91),
    ]
    assert first_distances(32, is_causal=True) == [
        *(-112, -98, -86, -76, -66, -58, -51, -45, -39, -34, -30, -26, -23, -20, -18),
        *range(-15, 1),
    ]
    assert first_distances(8, is_causal=True) == [-53, -22, -9, -3, -2, -1, 0]
    assert bucket_of_distance(32, is_causal=False)[[0, 128, 256]].tolist() == [15, 0, 31]
    assert bucket_of_distance(8, is_causal=True)[[0, 128, 256]].tolist() == [7, 0, 0]


def program_of(variant: str, folder: Path) -> Program:
    tiny = t.VARIANTS[variant]
    t.write(folder / "tiny.gguf", tiny, t.weights(tiny))
    with GGUFFile.open(folder / "tiny.gguf") as file:
        return build_program(file, read_hparams(file), CacheShape(64, 8, DType.F16, n_source_cells=32))


def test_a_decoder_keeps_prompt_and_answer_in_one_state(tmp_path: Path) -> None:
    tiny = t.VARIANTS["t5"]
    program = program_of("t5", tmp_path)
    width = tiny.n_head * tiny.head_dim
    shapes = {name: tensor.shape for name, tensor in program.states.items() if "_k." in name}
    encoder = {f"source_k.{layer}": (32, width) for layer in range(2)}
    assert shapes == encoder | {f"cache_k.{layer}": (64, width) for layer in range(2, 5)}
    looks = [op for op in program.ops if isinstance(op, Attention) and op.layer == 3]
    assert [(op.bias is None, op.tables.name) for op in looks] == [(False, "tables"), (True, "kept_tables")]


def test_without_prompts_only_the_decoder_is_left(tmp_path: Path) -> None:
    whole = program_of("t5", tmp_path)
    program = whole.without(N_SOURCE)
    assert {op.layer for op in program.ops} == {-1, 2, 3, 4, 5}
    assert not any("source" in name or name == "kept_cells" for name in program.inputs)
    assert program.inputs["kept_tables"].shape[1] is N_SOURCE_PAGES
    assert set(program.constants) == {"buckets"}
    assert not any(name.startswith("enc.") or "cross_attn_k" in name for name in program.weights)
    stores = [op.layer for op in program.ops if isinstance(op, StoreKV)]
    assert stores == [2, 3, 4]
    assert program.states == whole.states


def test_a_tensor_that_nobody_asked_for_is_refused(tmp_path: Path) -> None:
    tiny = t.VARIANTS["t5"]
    extra = {"dec.blk.0.attn_norm_2.weight": np.ones(tiny.n_embd, np.float32)}
    t.write(tmp_path / "tiny.gguf", tiny, t.weights(tiny) | extra)
    with GGUFFile.open(tmp_path / "tiny.gguf") as file, pytest.raises(ModelError, match="attn_norm_2"):
        build_program(file, read_hparams(file), CacheShape(64, 8, DType.F16, n_source_cells=32))
