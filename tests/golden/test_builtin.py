"""The built-in model's numbers agree with PyTorch on the same dequantised weights."""

import json
from pathlib import Path

import numpy as np
import pytest

from kernels.backend import Backend
from kernels.dtype import DType
from tests.golden.runs import Bound

HERE = Path(__file__).parent
MODEL = HERE.parent.parent / "actors" / "gateway" / "library" / "builtin" / "handbook.gguf"
GOLDEN = json.loads((HERE / "builtin_logits.json").read_text())
# activations are quantised to int8 blocks; the reference backend is far inside
MAX_NMSE = 1e-2
# keys and values rounded to 8 bits as well
MAX_NMSE_Q8_CACHE = 2e-2


@pytest.fixture
def model(backend: Backend) -> Bound:
    return Bound(MODEL, backend, cache_dtype=DType.F16)


def test_the_most_likely_tokens_have_the_logits_of_pytorch(model: Bound) -> None:
    logits = model.feed((model.open(), GOLDEN["prompt_ids"]))[0]
    got, expected = logits[GOLDEN["top_ids"]], np.array(GOLDEN["top_logits"])
    assert np.mean((got - expected) ** 2) <= MAX_NMSE * np.mean(expected**2)
    assert int(np.argmax(logits)) == GOLDEN["top_ids"][0]


def test_the_greedy_answer_is_that_of_pytorch(model: Bound) -> None:
    slot = model.open()
    logits = model.feed((slot, GOLDEN["prompt_ids"]))
    expected = GOLDEN["greedy_ids"]
    tokens: list[int] = []
    while len(tokens) < len(expected) and len(tokens) < 64 - len(GOLDEN["prompt_ids"]):
        tokens.append(int(np.argmax(logits[0])))
        logits = model.feed((slot, tokens[-1:]))
    assert tokens == expected[: len(tokens)]


def test_a_quantised_cache_changes_the_logits_little(backend: Backend) -> None:
    model = Bound(MODEL, backend, cache_dtype=DType.Q8_0)
    logits = model.feed((model.open(), GOLDEN["prompt_ids"]))[0]
    got, expected = logits[GOLDEN["top_ids"]], np.array(GOLDEN["top_logits"])
    assert np.mean((got - expected) ** 2) <= MAX_NMSE_Q8_CACHE * np.mean(expected**2)
    assert int(np.argmax(logits)) == GOLDEN["top_ids"][0]
