"""What a load asks and when: pure and seeded, so that every server is asked the same."""

import random
from collections.abc import Sequence
from dataclasses import dataclass

# fmt: off
WORDS = [
    "river", "stone", "window", "paper", "garden", "letter", "morning", "engine",
    "number", "silver", "market", "winter", "bridge", "answer", "yellow", "corner",
    "simple", "travel", "people", "notice", "summer", "little", "doctor", "family",
    "system", "reason", "minute", "island",
]
# fmt: on
# the usual shape of conversations: many short ones, a few long
PROMPT_TOKENS = (30, 60, 120, 200, 200, 400, 800)
ANSWER_TOKENS = (8, 16, 32, 64, 64, 128)
P_SHARED = 0.4  # begin with the same instructions as others
P_LEAVES = 0.1  # are given up in the middle of the answer
P_SLOW = 0.1  # are read slowly
SLOW_S = 0.2  # between two events


@dataclass(frozen=True, slots=True)
class Asked:
    """One request of a load."""

    at_s: float  # after the beginning; 0 where the end of another decides
    prompt: str
    n_predict: int
    leaves_after: int = 0  # events; 0: it stays
    is_slow: bool = False


def text_of(rng: random.Random, n_words: int) -> str:
    """Words that mean nothing."""
    return " ".join(rng.choices(WORDS, k=n_words))


def poisson(seed: int, n: int, rate: float, tokens_per_word: float) -> Sequence[Asked]:
    """n requests at `rate` a second on average, of mixed lengths; some share a prefix, leave, or are slow."""
    rng = random.Random(seed)
    shared = text_of(rng, round(150 / tokens_per_word))
    found: list[Asked] = []
    at_s = 0.0
    for _ in range(n):
        at_s += rng.expovariate(rate)
        prompt = text_of(rng, max(1, round(rng.choice(PROMPT_TOKENS) / tokens_per_word)))
        if rng.random() < P_SHARED:
            prompt = f"{shared} {prompt}"
        n_predict = rng.choice(ANSWER_TOKENS)
        leaves_after = rng.randint(1, n_predict) if rng.random() < P_LEAVES else 0
        found.append(Asked(at_s, prompt, n_predict, leaves_after, rng.random() < P_SLOW))
    return found


def alike(seed: int, n: int, n_prompt: int, n_predict: int, tokens_per_word: float) -> Sequence[Asked]:
    """n different requests of one size, for clients that ask again as soon as they are answered."""
    rng = random.Random(seed)
    n_words = max(1, round(n_prompt / tokens_per_word))
    return [Asked(0.0, text_of(rng, n_words), n_predict) for _ in range(n)]
