"""The bench's models have the sizes and the mixtures of the files people have."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.shapes import FILE_TYPES, SHAPES, Shape, dtype_of, file_bytes
from bench.work import work_of
from kernels.dtype import DType

ONE_B = SHAPES["1B"]
EVERY_SHAPE = st.sampled_from(list(SHAPES.values()))
EVERY_TYPE = st.sampled_from(list(FILE_TYPES))


def layers_with(shape: Shape, file_type: str, kind: str, dtype: DType) -> list[int]:
    return [i for i in range(shape.n_layer) if dtype_of(shape, file_type, f"blk.{i}.{kind}.weight") is dtype]


@pytest.mark.parametrize("kind", ["attn_v", "ffn_down"])
@pytest.mark.parametrize(("file_type", "rest"), [("Q4_K_M", DType.Q4_K), ("Q5_K_M", DType.Q5_K)])
def test_half_of_the_sensitive_matrices_of_a_medium_mixture_are_finer(
    file_type: str, rest: DType, kind: str
) -> None:
    # the first and the last eighth, and every third layer between
    finer = [0, 1, 4, 7, 10, 13, 14, 15]
    assert layers_with(ONE_B, file_type, kind, DType.Q6_K) == finer
    assert layers_with(ONE_B, file_type, kind, rest) == [i for i in range(16) if i not in finer]


@pytest.mark.parametrize("kind", ["attn_q", "attn_k", "attn_output", "ffn_gate", "ffn_up"])
def test_the_other_matrices_of_a_medium_mixture_have_the_type_it_is_named_after(kind: str) -> None:
    assert layers_with(ONE_B, "Q4_K_M", kind, DType.Q4_K) == list(range(16))


@pytest.mark.parametrize(
    ("file_type", "dtype"),
    [
        ("Q4_0", DType.Q6_K),
        ("Q4_K_M", DType.Q6_K),
        ("Q6_K", DType.Q6_K),
        ("Q8_0", DType.Q8_0),
        ("F16", DType.F16),
    ],
)
def test_a_tied_embedding_is_as_fine_as_an_output_matrix(file_type: str, dtype: DType) -> None:
    assert dtype_of(ONE_B, file_type, "token_embd.weight") is dtype


def test_rows_that_are_not_multiples_of_256_fall_back_to_blocks_of_32() -> None:
    small = SHAPES["qwen2-0.5B"]
    assert dtype_of(small, "Q4_K_M", "blk.5.attn_q.weight") is DType.Q5_0
    assert dtype_of(small, "Q5_K_M", "blk.5.attn_q.weight") is DType.Q5_1
    assert dtype_of(small, "Q4_K_M", "token_embd.weight") is DType.Q8_0
    assert dtype_of(small, "Q4_K_M", "blk.0.ffn_down.weight") is DType.Q6_K  # its rows are 4864 long


@given(shape=EVERY_SHAPE, file_type=EVERY_TYPE)
def test_every_tensor_is_whole_blocks(shape: Shape, file_type: str) -> None:
    for name, dims in shape.tensors().items():
        assert dims[-1] % dtype_of(shape, file_type, name).block_n == 0


@pytest.mark.parametrize(
    ("name", "n_weights"),
    [
        ("1B", 1_235_814_432),
        ("3B", 3_212_749_888),
        ("8B", 8_030_261_312),
        ("qwen2-0.5B", 494_032_768),
        ("qwen3-0.6B", 596_049_920),
    ],
)
def test_shapes_have_as_many_weights_as_the_published_models(name: str, n_weights: int) -> None:
    # 1B and 3B with their rope factors, as the counts of converted files have them
    assert sum(math.prod(dims) for dims in SHAPES[name].tensors().values()) == pytest.approx(
        n_weights, abs=64
    )


def test_a_generated_1b_file_is_as_large_as_the_published_one() -> None:
    header_bytes = 7_831_072  # of the published file of 807 693 984 bytes: vocabulary and tensor table
    assert file_bytes(ONE_B, "Q4_K_M") + header_bytes == pytest.approx(807_693_984, rel=1e-4)


def test_low_frequencies_are_stretched_and_high_ones_kept() -> None:
    factors = ONE_B.rope_freqs()
    assert (factors[0], factors[-1]) == (1.0, 32.0)
    assert factors == sorted(factors)


def test_a_decoded_token_reads_every_weight_once_and_the_cells_it_sees() -> None:
    alone = work_of(ONE_B, "Q4_K_M", 1, 1, 0)
    assert alone.n_bytes == file_bytes(ONE_B, "Q4_K_M")
    # 16 layers, keys and values, 512 wide, two bytes each
    assert work_of(ONE_B, "Q4_K_M", 1, 1, 1000).n_bytes - alone.n_bytes == 1000 * 16 * 2 * 512 * 2


def test_products_are_counted_once_for_each_token_and_matrix() -> None:
    shape = Shape("s", "llama", 1, 256, 512, 4, 2, 64, 1024, 64, 1e4, 1e-5)
    attention_in = 256 * 256 + 2 * 128 * 256
    late = 256 * 256 + 3 * 512 * 256  # the last layer's rows whose logits nobody wants are left out
    assert work_of(shape, "Q8_0", 7, 1, 0).n_ops == 2 * (7 * attention_in + late + 1024 * 256)


@given(shape=EVERY_SHAPE, file_type=EVERY_TYPE, n=st.integers(1, 64))
def test_a_batch_does_more_for_each_byte_than_one_sequence(shape: Shape, file_type: str, n: int) -> None:
    one, many = work_of(shape, file_type, 1, 1, 0), work_of(shape, file_type, n, n, 0)
    assert many.intensity == pytest.approx(n * one.intensity)
