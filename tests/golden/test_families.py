"""Each family's logits agree with `transformers` in F32, and do not depend on how a prompt was cut."""

import itertools
import json
from pathlib import Path

import numpy as np
import pytest

from kernels.backend import Backend
from kernels.dtype import DType
from tests.golden import tiny as t
from tests.golden.runs import Bound

HERE = Path(__file__).parent
MAX_RELATIVE_ERROR = 1e-4
MAX_RELATIVE_ERROR_F16 = 3e-3  # keys and values, on CUDA queries and weights as well, are rounded to 2^-11


@pytest.fixture(scope="module", params=sorted(t.VARIANTS))
def variant(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def model_path(variant: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("golden") / f"{variant}.gguf"
    t.write(path, t.VARIANTS[variant], t.weights(t.VARIANTS[variant]))
    return path


def test_logits_agree_with_transformers(variant: str, model_path: Path, any_backend: Backend) -> None:
    golden = json.loads((HERE / f"{variant}.json").read_text())
    expected = np.array(golden["logits"], np.float32)
    model = Bound(model_path, any_backend)
    got = model.feed((model.open(), golden["prompt"]), all_rows=True)
    assert np.abs(got - expected).max() <= MAX_RELATIVE_ERROR * np.abs(expected).max()


def test_a_cache_of_f16_changes_the_logits_little(
    variant: str, model_path: Path, any_backend: Backend
) -> None:
    golden = json.loads((HERE / f"{variant}.json").read_text())
    expected = np.array(golden["logits"], np.float32)
    model = Bound(model_path, any_backend, cache_dtype=DType.F16)
    got = model.feed((model.open(), golden["prompt"]), all_rows=True)
    assert np.abs(got - expected).max() <= MAX_RELATIVE_ERROR_F16 * np.abs(expected).max()


def greedy(model: Bound, prompt: list[int], cuts: list[int], n_predict: int = 12) -> list[int]:
    slot = model.open()
    edges = [0, *cuts, len(prompt)]
    logits = np.empty((0, 0), np.float32)
    for start, stop in itertools.pairwise(edges):
        logits = model.feed((slot, prompt[start:stop]))
    tokens: list[int] = []
    for _ in range(n_predict):
        tokens.append(int(np.argmax(logits[0])))
        logits = model.feed((slot, tokens[-1:]))
    return tokens


def test_prompt_in_one_batch_in_chunks_and_token_by_token_give_the_same_tokens(
    variant: str, model_path: Path, backend: Backend
) -> None:
    prompt = t.prompt(t.VARIANTS[variant])
    model = Bound(model_path, backend)
    whole = greedy(model, prompt, [])
    assert greedy(model, prompt, [5, 6, 11]) == whole
    assert greedy(model, prompt, list(range(1, len(prompt)))) == whole


def test_a_sequence_does_not_depend_on_what_shares_its_batch(
    variant: str, model_path: Path, backend: Backend
) -> None:
    prompt = t.prompt(t.VARIANTS[variant])
    model = Bound(model_path, backend)
    alone = model.feed((model.open(), prompt))[0]
    other = list(reversed(prompt))[:11]
    together = model.feed((model.open(), other), (model.open(), prompt), (model.open(), other[:3]))[1]
    assert np.abs(together - alone).max() <= 1e-5 * np.abs(alone).max()
