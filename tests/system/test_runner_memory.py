"""What runners of a real shape and vocabulary hold: weights stay the file's, once for all processes."""

import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from bench.case import BEYOND_BYTES, SECOND_PSS_BYTES, SECOND_RSS_BYTES, Metric
from bench.files import ModelFile, model_file
from bench.served import start_and_memory
from bench.shapes import SHAPES
from bench.vocabulary import choose

MAX_BEYOND_BYTES = 150 << 20  # of tokenizer, interpreter and libraries


@pytest.fixture(scope="module")
def file() -> Iterator[ModelFile]:
    """qwen2-0.5B, 330 MB, with as many tokens and merges as the published one."""
    shape = SHAPES["qwen2-0.5B"]
    with tempfile.TemporaryDirectory(prefix="runner-memory-") as folder:
        yield model_file(Path(folder), shape, "Q4_0", choose([], shape.n_vocab))


@pytest.fixture(scope="module")
def memory(file: ModelFile) -> Mapping[Metric, float]:
    """Of a runner that has answered, and of a second one beside it."""
    return start_and_memory(file, 2, "")


def test_a_runner_holds_little_beyond_its_cache_and_buffers(memory: Mapping[Metric, float]) -> None:
    assert memory[BEYOND_BYTES] < MAX_BEYOND_BYTES


def test_a_second_runner_shares_the_pages_of_the_file(
    file: ModelFile, memory: Mapping[Metric, float]
) -> None:
    shared = memory[SECOND_RSS_BYTES] - memory[SECOND_PSS_BYTES]
    assert shared > 0.45 * file.n_bytes  # each of two processes is counted half of what both map
