"""A summary is plain data that shows what a file holds, short enough to print."""

import msgspec

from actors.runner.gguf import GGUFFile
from actors.runner.gguf.summary import summarize, summary
from tests.unit.gguf_files import I32, TOKENS, gguf_bytes, model_bytes, numbers, string, strings


def read(data: bytes) -> GGUFFile:
    return GGUFFile(memoryview(data), "tiny.gguf")


def test_parameters_are_counted_over_all_tensors_and_by_type() -> None:
    found = summarize(read(model_bytes()))
    assert found.parameter_count == 16 * len(TOKENS) + 32 * 3 + 5
    assert found.dtypes == {"F32": 16 * len(TOKENS) + 5, "Q8_0": 96}


def test_tensors_are_listed_in_the_order_of_the_file() -> None:
    first, second, _ = summarize(read(model_bytes())).tensors
    assert (first.name, first.dtype, first.shape) == ("token_embd.weight", "F32", (16, 8))
    assert (second.name, second.dtype, second.n_bytes) == ("blk.0.attn_q.weight", "Q8_0", 102)


def test_long_arrays_are_elided_and_short_ones_shown() -> None:
    file = read(gguf_bytes({"long": strings(["a", "b", "c"]), "short": numbers(I32, [1, 2])}))
    assert summarize(file, max_items=2).metadata == {"long": {"n": 3, "first": ["a", "b"]}, "short": [1, 2]}


def test_every_value_survives_json_even_when_it_is_not_utf8() -> None:
    file = read(gguf_bytes({"tokens": strings([b"\xff"]), "text": string(b"\xfe")}))
    assert msgspec.json.decode(msgspec.json.encode(summary(file)))["metadata"] == {
        "tokens": ["�"],
        "text": "�",
    }


def test_a_file_without_an_architecture_is_described_too() -> None:
    assert summary(read(gguf_bytes({})))["architecture"] is None
