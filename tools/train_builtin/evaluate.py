"""Measure the built-in model: `python -m tools.train_builtin.evaluate`.

Reads the GGUF, dequantises it, answers greedily and prints how many answers are right: for phrasings that
training draws from, for held-out ones, as a second or third turn of a chat, with other system texts, and
for questions out of its domain. --write-questions also writes tests/system/handbook_questions.toml.
"""

import argparse
import json
import random
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import gguf
import torch
from tokenizers import AddedToken, Tokenizer, models

from tools.train_builtin.data import DEFAULT_SYSTEM, SPECIAL, ChatEncoder, expand_system, split_as_qwen2
from tools.train_builtin.export import MODEL_FILE, ROOT, read_model
from tools.train_builtin.handbook import Entry, read_handbook, read_out_of_domain
from tools.train_builtin.model import Model

QUESTIONS_FILE = ROOT / "tests/system/handbook_questions.toml"
N_PREDICT = 120


@dataclass(frozen=True, slots=True)
class Case:
    """One question to the model, and the entry whose answer is right."""

    entry: Entry
    question: str
    turns: tuple[tuple[str, str], ...] = ()
    system: str = DEFAULT_SYSTEM


@dataclass(frozen=True, slots=True)
class Outcome:
    """What the model said to a case."""

    case: Case
    answer: str

    @property
    def is_right(self) -> bool:
        return self.case.entry.is_right(self.answer)


def read_encoder(path: Path) -> ChatEncoder:
    """The vocabulary as the GGUF file gives it, not as the checkpoint does."""
    fields = gguf.GGUFReader(path).fields
    tokens: list[str] = fields["tokenizer.ggml.tokens"].contents()
    merges: list[str] = fields["tokenizer.ggml.merges"].contents()
    pairs = [(left, right) for left, right in (merge.split(" ") for merge in merges)]
    tokenizer = Tokenizer(models.BPE({token: at for at, token in enumerate(tokens)}, pairs))
    split_as_qwen2(tokenizer)
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in SPECIAL])
    return ChatEncoder(tokenizer)


@torch.no_grad()
def answer_all(
    model: Model, encoder: ChatEncoder, cases: Sequence[Case], entries: Sequence[Entry], n_batch: int = 32
) -> list[Outcome]:
    """Greedy answers. Most cases need no decoding: when every token of the entry's own answer is the
    likeliest one after those before it, greedy decoding gives exactly that answer."""
    prompts = [encoder.prompt(case.turns, case.question, case.system) for case in cases]
    drafts = [[*encoder.text(entry.answer), encoder.end] for entry in entries]
    answers: dict[int, str] = {}
    for low in range(0, len(cases), n_batch):
        rows = range(low, min(low + n_batch, len(cases)))
        pairs = [(prompts[at], cases[at].entry.answer) for at in rows]
        for at, is_own in zip(rows, recites(model, encoder, pairs), strict=True):
            ids = [] if is_own else greedy(model, prompts[at], drafts, encoder.end)
            answers[at] = cases[at].entry.answer if is_own else encoder.whole.decode(ids)
    return [Outcome(case, answers[at]) for at, case in enumerate(cases)]


def recites(model: Model, encoder: ChatEncoder, pairs: Sequence[tuple[list[int], str]]) -> list[bool]:
    """For each (prompt, answer): whether greedy decoding of the prompt gives the answer and ends there."""
    wanted = [[*encoder.text(answer), encoder.end] for _, answer in pairs]
    rows = [prompt + tail for (prompt, _), tail in zip(pairs, wanted, strict=True)]
    longest = max(len(row) for row in rows)
    ids = torch.tensor([row + [0] * (longest - len(row)) for row in rows])  # causal: the padding is not seen
    best = model(ids).argmax(-1).tolist()
    return [
        best[at][len(row) - len(tail) - 1 : len(row) - 1] == tail
        for at, (row, tail) in enumerate(zip(rows, wanted, strict=True))
    ]


def greedy(model: Model, prompt: list[int], drafts: Sequence[list[int]], end: int) -> list[int]:
    """The greedy continuation of a prompt, up to the end token or N_PREDICT tokens. Known answers serve as
    drafts (speculative decoding), which changes the number of passes and not the outcome."""
    out: list[int] = []
    while len(out) < N_PREDICT:
        tail = next((draft[len(out) :] for draft in drafts if out and draft[: len(out)] == out), [])
        logits = model.logits(model.hidden(torch.tensor([prompt + out + tail]))[0, -len(tail) - 1 :])
        best = logits.argmax(-1).tolist()
        n_agreed = next((at for at, token in enumerate(tail) if best[at] != token), len(tail))
        out += best[: n_agreed + 1]
        if end in out:
            return out[: out.index(end)]
    return out


def cases_of(
    kind: str, entries: Sequence[Entry], outside: Entry, n_each: int, rng: random.Random
) -> list[Case]:
    """The cases of one line of the report."""
    held = [Case(entry, question) for entry in entries for question in entry.held_out]
    if kind == "trained phrasings":
        return [Case(entry, plain(question)) for entry in entries for question in entry.trained(n_each, rng)]
    if kind == "held-out phrasings":
        return held
    if kind == "held out, in lower case without punctuation":
        return [Case(case.entry, case.question.lower().rstrip("?.!")) for case in held]
    if kind == "held out, after one to three other turns":
        return [Case(case.entry, case.question, chat_before(entries, rng)) for case in held]
    if kind == "held out, with another system text":
        return [Case(case.entry, case.question, (), expand_system(rng, outside)) for case in held]
    if kind == "out of domain, trained patterns":
        return [Case(outside, plain(question)) for question in outside.trained(40 * n_each, rng)]
    return [Case(outside, question) for question in outside.held_out]


KINDS = (
    "trained phrasings",
    "held-out phrasings",
    "held out, in lower case without punctuation",
    "held out, after one to three other turns",
    "held out, with another system text",
    "out of domain, trained patterns",
    "out of domain, held out",
)


def plain(question: str) -> str:
    """A drawn question with a capital and a question mark."""
    return question[:1].upper() + question[1:] + "?"


def chat_before(entries: Sequence[Entry], rng: random.Random) -> tuple[tuple[str, str], ...]:
    """One to three earlier turns, answered rightly."""
    before = rng.sample(list(entries), rng.randint(1, 3))
    return tuple((plain(entry.draw(rng)), entry.answer) for entry in before)


def write_questions(entries: Sequence[Entry], outcomes: Sequence[Outcome], path: Path) -> None:
    """Write what a system test asks: trained phrasings with a held-out one, and all held-out ones."""
    right: dict[str, dict[str, None]] = {entry.name: {} for entry in entries}
    for outcome in outcomes:
        if outcome.is_right and not outcome.case.turns and outcome.case.system == DEFAULT_SYSTEM:
            right[outcome.case.entry.name][outcome.case.question] = None
    lines = [
        "# What the built-in model is asked by the system tests. Made by",
        "#   python -m tools.train_builtin.evaluate --write-questions",
        "# from tools/train_builtin/handbook.toml; change that file, not this one.",
        "# phrasings: up to three that training draws from and one held out, which this model gets right.",
        "# held_out: all held-out phrasings of the entry; docs/builtin-model.md says how many are right.",
        "# must_contain: lower-case substrings of a right answer.",
    ]
    for entry in entries:
        mine = right[entry.name]
        held = [question for question in entry.held_out if question in mine][:1]
        lowered = {question.lower().rstrip("?.!") for question in entry.held_out}
        seen = [question for question in mine if question.lower().rstrip("?.!") not in lowered][:3]
        lines += [
            "",
            "[[entry]]",
            f'id = "{entry.name}"',
            f"phrasings = {json.dumps([*seen, *held])}",
            f"held_out = {json.dumps(list(entry.held_out))}",
            f"must_contain = {json.dumps(list(entry.must_contain))}",
        ]
    path.write_text("\n".join(lines) + "\n", "utf-8")


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", type=Path, default=MODEL_FILE)
    parser.add_argument("--each", type=int, default=8, help="trained phrasings asked of each entry")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--show-wrong", action="store_true", help="print every wrong answer")
    parser.add_argument("--write-questions", action="store_true", help=f"write {QUESTIONS_FILE.name}")
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)
    entries, outside = read_handbook(), read_out_of_domain()
    model, encoder = read_model(args.model), read_encoder(args.model)
    outcomes: list[Outcome] = []
    for kind in KINDS:
        cases = cases_of(kind, entries, outside, args.each, random.Random(2))
        part = answer_all(model, encoder, cases, [*entries, outside])
        n_right = sum(outcome.is_right for outcome in part)
        print(f"{kind:45s} {n_right:5d} of {len(part):5d}  {100 * n_right / len(part):5.1f} %", flush=True)
        if args.show_wrong:
            for outcome in part:
                if not outcome.is_right:
                    print(f"    [{outcome.case.entry.name}] {outcome.case.question!r} -> {outcome.answer!r}")
        outcomes += part
    if args.write_questions:
        write_questions([*entries, outside], outcomes, QUESTIONS_FILE)
        print(f"{QUESTIONS_FILE}: {len(entries) + 1} entries")
    return 0


if __name__ == "__main__":
    sys.exit(main())
