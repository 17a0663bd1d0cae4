"""The built-in model answers the questions of its handbook, greedily, through the real runtime."""

import tomllib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import ollama
import pytest

from tests.system.conftest import Runtime

QUESTIONS = tomllib.loads((Path(__file__).parent / "handbook_questions.toml").read_text())["entry"]
N_AT_ONCE = 4
MIN_PHRASINGS = 2  # of each entry, answered rightly
MAX_WRONG = 0.01  # of all: rounding differs between instruction sets, and some decisions are close


@pytest.fixture
def client(runtime: Runtime) -> Iterator[ollama.Client]:
    with ollama.Client(host=runtime.url, trust_env=False) as made:
        yield made


def wrong_answer(client: ollama.Client, question: str, must_contain: list[str]) -> str:
    """The question and its answer where the answer lacks something, else nothing."""
    messages = [{"role": "user", "content": question}]
    answer = client.chat("handbook", messages, options={"temperature": 0}).message.content or ""
    return "" if all(part in answer.lower() for part in must_contain) else f"{question} -> {answer}"


def test_every_entry_is_answered_in_several_phrasings(client: ollama.Client) -> None:
    asked = [(entry, phrasing) for entry in QUESTIONS for phrasing in entry["phrasings"]]
    with ThreadPoolExecutor(N_AT_ONCE) as pool:
        answers = pool.map(lambda q: wrong_answer(client, q[1], q[0]["must_contain"]), asked)
        wrong = {(entry["id"], answer) for (entry, _), answer in zip(asked, answers, strict=True) if answer}
    told = f"{len(wrong)} of {len(asked)} answers are wrong:\n" + "\n".join(map(str, sorted(wrong)))
    assert len(wrong) <= MAX_WRONG * len(asked), told
    for entry in QUESTIONS:
        n_wrong = sum(name == entry["id"] for name, _ in wrong)
        assert len(entry["phrasings"]) - n_wrong >= MIN_PHRASINGS, told


def test_it_says_what_it_is(client: ollama.Client) -> None:
    assert not wrong_answer(client, "What are you?", ["built-in model of the runtime"])


def test_it_says_that_it_does_not_know_the_world(client: ollama.Client) -> None:
    refusal = ["only know my handbook", "runtime create"]
    assert not wrong_answer(client, "What is the capital of France?", refusal)
