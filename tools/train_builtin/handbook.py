"""The handbook and the out-of-domain questions: read, checked and expanded into questions.

A pattern such as `how do i {list|see} {my|} models` stands for all its choices. Patterns are drawn from
at random while training; `Entry.trained` lists the questions an entry can be asked in training, for
measuring, and `check` refuses a held-out question that training could ask too.
"""

import hashlib
import random
import re
import string
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
HANDBOOK = HERE / "handbook.toml"
OUT_OF_DOMAIN = HERE / "out_of_domain.toml"
SYNONYMS = HERE / "synonyms.toml"

HOWTO_FRAMES = (
    "how {do|can|could|should|would|must|shall} {i|we|you} {x}",
    "how to {x}",
    "how would {i|one} go about it if i want to {x}",
    "what {do|must|should|can} i {type|do|enter|run|use} to {x}",
    "what is {the|a} {command|way|best way|right way|trick} to {x}",
    "what's the {command|way} to {x}",
    "which command {do i use to|lets me|is there to|will} {x}",
    "{i want|i need|i would like|i'd like|i wish|i am trying|i have} to {x}{|, how| now}",
    "{tell|show} me how {to|i can|i} {x}",
    "{explain|describe} how to {x}",
    "{can|could} {i|you|one|we} {x}",
    "is there {a way|a command|any way|something} to {x}",
    "is it possible to {x}",
    "{help me|please|let me|what if i want to} {x}",
    "{x}",
)
TOPIC_FRAMES = (
    "what {is|are|does} {x}{| do| mean| for}",
    "what's {x}",
    "what {is|are} {x} {for|used for|about}",
    "what {is|are} the {point|job|role|use|idea} of {x}",
    "what {do you|can you} {know about|tell me about|say about} {x}",
    "what do you mean by {x}",
    "what {exactly|in short} is {x}",
    "{explain|describe|define} {x}{| to me| briefly| please}",
    "{tell me|talk|i want to know|give me information|something} about {x}",
    "{tell me|say} what {x} {is|does|are|means}",
    "how {does|do} {x} work",
    "why {is there|do i need|would i need} {x}",
    "i {do not|don't} understand {x}",
    "help me understand {x}",
    "{do you know|have you heard of} {x}",
    "{x}",
    "and {x}",
    "{can|could} you explain {x}",
    "i have a question about {x}",
)
# Questions of an entry come from its own `ask` lines more often than from the frames every entry shares.
SHARE_OF_ASK = 0.5


@dataclass(frozen=True, slots=True)
class Entry:
    """One thing the model knows: patterns of questions, and the answer."""

    name: str
    answer: str
    must_contain: tuple[str, ...]
    ask: tuple[str, ...]
    framed: tuple[tuple[str, tuple[str, ...], tuple[str, ...]], ...]  # (slot kind, frames, fillings)
    held_out: tuple[str, ...]
    words: Mapping[str, Sequence[str]]

    def draw(self, rng: random.Random) -> str:
        """One question of this entry, as its pattern writes it."""
        if self.framed and (not self.ask or rng.random() >= SHARE_OF_ASK):
            _, frames, fillings = rng.choice(self.framed)
            return expand(rng.choice(frames), rng, {"x": fillings})
        return expand(rng.choice(self.ask), rng, self.words)

    def trained(self, n: int, rng: random.Random) -> list[str]:
        """Up to n different questions that training draws from, spread evenly over the patterns."""
        found: dict[str, None] = {}
        for _ in range(40 * n):
            if len(found) == n:
                break
            found[self.draw(rng)] = None
        return list(found)

    def is_right(self, answer: str) -> bool:
        """Whether an answer contains everything that a right one must."""
        low = answer.lower()
        return all(part in low for part in self.must_contain)


def expand(pattern: str, rng: random.Random, words: Mapping[str, Sequence[str]]) -> str:
    """Take one choice of every {a|b} and one word of every {list} until no brace is left."""
    while (found := re.search(r"\{([^{}]*)\}", pattern)) is not None:
        inner = found.group(1)
        if "|" in inner:
            chosen = rng.choice(inner.split("|"))
        elif inner == "noise":
            chosen = "".join(rng.choices(string.ascii_lowercase, k=rng.randint(2, 9)))
        elif inner == "number":
            chosen = str(rng.choice((rng.randint(0, 12), rng.randint(10, 99), rng.randint(100, 2100))))
        elif inner in words:
            chosen = rng.choice(words[inner])
        else:
            raise ValueError(
                f"pattern {pattern!r} has {{{inner}}}, which is neither a choice nor a word list"
            )
        pattern = pattern[: found.start()] + chosen + pattern[found.end() :]
    return re.sub(r" +", " ", pattern).strip()


def normal(question: str) -> str:
    """A question without case and punctuation, to tell whether two are the same."""
    return " ".join(re.findall(r"[a-z0-9_]+", question.lower()))


def read_handbook(path: Path = HANDBOOK) -> list[Entry]:
    """The handbook's entries; ValueError names the entry that is wrong."""
    raw: list[dict[str, Any]] = tomllib.loads(path.read_text("utf-8"))["entry"]
    entries = [_entry(item) for item in raw]
    names = [entry.name for entry in entries]
    if len(set(names)) != len(names):
        raise ValueError(f"{path}: an id is used twice")
    return entries


def read_synonyms(path: Path = SYNONYMS) -> dict[str, tuple[str, ...]]:
    """For each word or words, what may stand in their place."""
    groups: list[list[str]] = tomllib.loads(path.read_text("utf-8"))["groups"]
    found: dict[str, tuple[str, ...]] = {}
    for group in groups:
        for word in group:
            found[word] = found.get(word, ()) + tuple(other for other in group if other != word)
    return found


def read_out_of_domain(path: Path = OUT_OF_DOMAIN) -> Entry:
    """The questions that get the refusal, as one entry."""
    raw: dict[str, Any] = tomllib.loads(path.read_text("utf-8"))
    return Entry(
        "out_of_domain",
        raw["answer"],
        tuple(raw["must_contain"]),
        tuple(raw["ask"]),
        (),
        tuple(raw["held_out"]),
        raw["words"],
    )


def _entry(item: dict[str, Any]) -> Entry:
    framed = tuple(
        (kind, frames, tuple(item[kind]))
        for kind, frames in (("howto", HOWTO_FRAMES), ("topic", TOPIC_FRAMES))
        if kind in item
    )
    entry = Entry(
        item["id"],
        item["answer"],
        tuple(item["must_contain"]),
        tuple(item["ask"]),
        framed,
        tuple(item["held_out"]),
        {},
    )
    if not entry.is_right(entry.answer):
        raise ValueError(f"{entry.name}: its own answer lacks one of {entry.must_contain}")
    if len(entry.held_out) < 2 or len(entry.trained(12, random.Random(0))) < 12:
        raise ValueError(f"{entry.name}: needs 12 phrasings and 2 held-out ones")
    return entry


def check(entries: Sequence[Entry], n: int = 3000) -> None:
    """Refuse held-out questions that training could ask (n draws of each entry are looked at)."""
    rng = random.Random(1)
    held = {normal(question): entry.name for entry in entries for question in entry.held_out}
    for entry in entries:
        for question in {entry.draw(rng) for _ in range(n)}:
            if normal(question) in held:
                raise ValueError(
                    f"held out in {held[normal(question)]}, but asked in {entry.name}: {question!r}"
                )


def data_hash() -> str:
    """SHA-256 over the data files, hex: goes into the model's metadata."""
    files = (HANDBOOK, OUT_OF_DOMAIN, SYNONYMS)
    return hashlib.sha256(b"\0".join(path.read_bytes() for path in files)).hexdigest()
