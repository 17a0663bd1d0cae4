"""Text to tokens: the vocabulary, the chat format, and an endless stream of conversations to train on."""

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from tools.train_builtin.handbook import Entry, expand, normal, read_synonyms

END_OF_TEXT, IM_START, IM_END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
SPECIAL = (END_OF_TEXT, IM_START, IM_END)
N_VOCAB = 2048
# How the field splits text before merging, under the name `qwen2` in GGUF's tokenizer.ggml.pre.
QWEN2_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
DEFAULT_SYSTEM = "You are the built-in model of the runtime."
CHAT_TEMPLATE = (
    "{%- if not messages or messages[0]['role'] != 'system' -%}"
    "{{- '<|im_start|>system\\n" + DEFAULT_SYSTEM + "<|im_end|>\\n' -}}"
    "{%- endif -%}"
    "{%- for message in messages -%}"
    "{%- if message['role'] not in ['system', 'user', 'assistant'] -%}"
    "{{- raise_exception('the roles here are system, user and assistant, not ' ~ message['role']) -}}"
    "{%- endif -%}"
    "{{- '<|im_start|>' ~ message['role'] ~ '\\n' ~ message['content'] ~ '<|im_end|>\\n' -}}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n' -}}{%- endif -%}"
)
OTHER_SYSTEMS = (
    "You are a helpful assistant.",
    "You are a helpful, honest assistant. Answer briefly.",
    "Answer in one sentence.",
    "Be brief.",
    "You are a pirate.",
    "You are an expert in {topic}.",
    "You are {person}.",
    "You talk about {thing}s and {food}.",
    "Always answer in {language}.",
    "You help people who live in {place}.",
    "Today is {number}-{number}-{number}.",
    "You are a support agent for a runtime of language models.",
    "",
)
BEFORE = (
    "i wonder ",
    "in short, ",
    "actually, ",
    "alright, ",
    "please explain: ",
    "any idea ",
    "could you say ",
    "please ",
    "hey, ",
    "hi, ",
    "hello, ",
    "ok, ",
    "so ",
    "and ",
    "now ",
    "well, ",
    "sorry, ",
    "can you tell me ",
    "tell me, ",
    "i want to know: ",
    "one question: ",
    "quick question: ",
    "do you know ",
    "another question: ",
    "hm, ",
)
AFTER = (
    "",
    "",
    "",
    ".",
    "?",
    "?",
    "?",
    "??",
    "!",
    " ?",
    "...",
    " please",
    " please?",
    ", please",
    ", thanks",
    " now?",
    " then?",
    " here?",
    " exactly?",
    " again?",
)

# How often what happens to a question; the rest is asked as its pattern writes it, with a capital and an end.
P_BEFORE, P_TYPO, P_LOSE_WORDS, P_LOWER, P_UPPER = 0.22, 0.10, 0.15, 0.4, 0.03
P_SYSTEM, P_OUT_OF_DOMAIN, P_PIECES = 0.12, 0.14, 0.25
PIECES_DROPOUT = 0.1
# An answer is decided by its first tokens and then recited. Reciting is learnt soon, so most examples end
# after the first tokens of their last answer, and more questions are seen in the same time.
P_CUT, CUT_TOKENS = 0.65, 12
# How often a question gets other words, and each of its words then.
P_REWORD, P_REWORD_EACH = 0.5, 0.3


def train_tokenizer(entries: Sequence[Entry], seed: int) -> Tokenizer:
    """A byte-level BPE of N_VOCAB tokens, special ones first, trained on questions and answers."""
    rng, synonyms = random.Random(seed), read_synonyms()
    texts = [entry.answer for entry in entries] * 20 + [DEFAULT_SYSTEM, "system\nuser\nassistant\n"] * 20
    for entry in entries:
        texts += [dress(entry.draw(rng), rng) for _ in range(2000 if entry.words else 150)]
        texts += [reword(entry.draw(rng), synonyms, rng) for _ in range(0 if entry.words else 100)]
    tokenizer = Tokenizer(models.BPE())
    split_as_qwen2(tokenizer)
    trainer = trainers.BpeTrainer(
        vocab_size=N_VOCAB,
        special_tokens=list(SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def split_as_qwen2(tokenizer: Tokenizer) -> None:
    """Give a BPE the split that `tokenizer.ggml.pre = qwen2` names, and bytes as its alphabet."""
    splits = (
        pre_tokenizers.Split(Regex(QWEN2_SPLIT), "isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(list(splits))
    tokenizer.decoder = decoders.ByteLevel()


def dress(question: str, rng: random.Random) -> str:
    """A question as people write it: an opening, a capital or none, an end, now and then a slip."""
    if rng.random() < P_BEFORE:
        question = rng.choice(BEFORE) + question
    if rng.random() < P_LOSE_WORDS:
        question = lose_words(question, rng)
    if rng.random() < P_TYPO:
        question = slip(question, rng)
    question += rng.choice(AFTER)
    case = rng.random()
    if case < P_UPPER:
        return question.upper()
    if case < P_UPPER + P_LOWER:
        return question
    return question[:1].upper() + question[1:]


def reword(text: str, synonyms: Mapping[str, Sequence[str]], rng: random.Random) -> str:
    """Put synonyms in the place of some of a question's words."""
    words, out = text.split(" "), list[str]()
    while words:
        n_words = next((n for n in (3, 2, 1) if " ".join(words[:n]) in synonyms), 0)
        if n_words and rng.random() < P_REWORD_EACH:
            out.append(rng.choice(synonyms[" ".join(words[:n_words])]))
        else:
            n_words = 1
            out.append(words[0])
        words = words[n_words:]
    return " ".join(out)


def lose_words(text: str, rng: random.Random) -> str:
    """Now and then a word is missing, so that no single word decides."""
    words = text.split(" ")
    kept = [word for word in words if len(words) < 4 or rng.random() > 0.15]
    return " ".join(kept or words)


def slip(text: str, rng: random.Random) -> str:
    """One letter dropped, doubled, or swapped with the next."""
    if len(text) < 4:
        return text
    at = rng.randrange(1, len(text) - 1)
    kind = rng.randrange(3)
    if kind == 0:
        return text[:at] + text[at + 1 :]
    if kind == 1:
        return text[:at] + text[at] + text[at:]
    return text[:at] + text[at + 1] + text[at] + text[at + 2 :]


@dataclass(frozen=True, slots=True)
class Example:
    """A conversation as token ids; only positions whose `counts` is true are learnt. `asked_at` are the last
    positions before an answer, `asked` the numbers of the entries that are asked there."""

    ids: tuple[int, ...]
    counts: tuple[bool, ...]
    asked_at: tuple[int, ...]
    asked: tuple[int, ...]


class ChatEncoder:
    """Turns conversations into tokens, exactly as the chat template and a special-token parse would."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.whole = tokenizer
        self.pieces = Tokenizer.from_str(tokenizer.to_str())
        # Words of a question are sometimes left in pieces, so that a word never seen is less of a surprise.
        self.pieces.model.dropout = PIECES_DROPOUT
        self.start, self.end = tokenizer.token_to_id(IM_START), tokenizer.token_to_id(IM_END)
        self.newline = self.text("\n")

    def text(self, text: str) -> list[int]:
        """Token ids of plain text."""
        return self.whole.encode(text).ids

    def message(self, role: str, content: str, in_pieces: bool = False) -> list[int]:
        """`<|im_start|>role newline content <|im_end|> newline`."""
        body = (self.pieces if in_pieces else self.whole).encode(f"{role}\n{content}").ids
        return [self.start, *body, self.end, *self.newline]

    def prompt(
        self, turns: Sequence[tuple[str, str]], question: str, system: str = DEFAULT_SYSTEM
    ) -> list[int]:
        """Everything before the answer to `question`, after earlier (question, answer) turns."""
        ids = self.message("system", system)
        for asked, answered in turns:
            ids += self.message("user", asked) + self.message("assistant", answered)
        return [*ids, *self.message("user", question), self.start, *self.text("assistant\n")]

    def example(
        self,
        turns: Sequence[tuple[str, str, int]],
        system: str,
        in_pieces: bool = False,
        is_cut: bool = False,
    ) -> Example:
        """A conversation; answers and their <|im_end|> count. Cut, it ends early in its last answer."""
        ids = self.message("system", system)
        counts, n_tail = [False] * len(ids), 0
        asked_at: list[int] = []
        opening = [self.start, *self.text("assistant\n")]
        for asked, answered, _ in turns:
            head = [*self.message("user", asked, in_pieces), *opening]
            body = [*self.text(answered), self.end]
            asked_at.append(len(ids) + len(head) - 1)
            ids += head + body + self.newline
            counts += [False] * len(head) + [True] * len(body) + [False] * len(self.newline)
            n_tail = len(body) + len(self.newline) - CUT_TOKENS
        n_keep = len(ids) - max(0, n_tail) if is_cut else len(ids)
        asked_entries = tuple(number for _, _, number in turns)
        return Example(tuple(ids[:n_keep]), tuple(counts[:n_keep]), tuple(asked_at), asked_entries)


def conversations(
    entries: Sequence[Entry], outside: Entry, encoder: ChatEncoder, n_ctx: int, seed: int
) -> Iterator[Example]:
    """Endless examples. Entries are dealt like cards, so that none is rare; lengths are mixed. Held-out
    questions never occur, whatever rewording makes of the others."""
    rng = random.Random(seed)
    synonyms = read_synonyms()
    numbers = {entry.name: number for number, entry in enumerate((*entries, outside))}
    held = {normal(question) for entry in (*entries, outside) for question in entry.held_out}
    deck: list[Entry] = []
    while True:
        n_turns = rng.choices((1, 2, 3, 4, rng.randint(6, 14)), weights=(74, 13, 8, 3.5, 1.5))[0]
        system = DEFAULT_SYSTEM
        if rng.random() < P_SYSTEM:
            system = expand_system(rng, outside)
        turns: list[tuple[str, str, int]] = []
        for _ in range(n_turns):
            if not deck:
                deck = list(entries)
                rng.shuffle(deck)
            entry = outside if rng.random() < P_OUT_OF_DOMAIN else deck.pop()
            question = entry.draw(rng)
            if entry is not outside and rng.random() < P_REWORD:
                question = reword(question, synonyms, rng)
            question = dress(question, rng)
            if normal(question) not in held:
                turns.append((question, entry.answer, numbers[entry.name]))
        is_cut = rng.random() < P_CUT
        example = encoder.example(turns, system, in_pieces=rng.random() < P_PIECES, is_cut=is_cut)
        if turns and len(example.ids) <= n_ctx:
            yield example


def expand_system(rng: random.Random, outside: Entry) -> str:
    """A system text other than the default one."""
    return expand(rng.choice(OTHER_SYSTEMS), rng, outside.words)


def batches(examples: Iterator[Example], n_tokens: int, n_pool: int = 256) -> Iterator[list[Example]]:
    """Batches of about n_tokens padded tokens, of examples of like length, in the order the pool gives."""
    rng = random.Random(n_pool)
    while True:
        pool = sorted((next(examples) for _ in range(n_pool)), key=lambda example: len(example.ids))
        cuts = [0]
        for at, example in enumerate(pool):
            if (at + 1 - cuts[-1]) * len(example.ids) > n_tokens and at > cuts[-1]:
                cuts.append(at)
        groups = [pool[low:high] for low, high in pairwise([*cuts, len(pool)])]
        rng.shuffle(groups)
        yield from groups
