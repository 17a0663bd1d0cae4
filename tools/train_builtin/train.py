"""Train the built-in model from scratch: `python -m tools.train_builtin.train`.

Writes a checkpoint (weights, vocabulary, recipe) that export.py turns into the GGUF. Everything follows
from --seed and --steps; nothing is downloaded.
"""

import argparse
import math
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from torch import Tensor, nn
from torch.nn import functional

from tools.train_builtin.data import N_VOCAB, ChatEncoder, Example, batches, conversations, train_tokenizer
from tools.train_builtin.handbook import check, data_hash, read_handbook, read_out_of_domain
from tools.train_builtin.model import Model, Shape

WEIGHT_OF_ASKED = 0.3


@dataclass(frozen=True, slots=True)
class Recipe:
    """What the weights follow from, with the data's hash."""

    seed: int
    steps: int
    batch_tokens: int
    lr: float
    weight_decay: float
    warmup_steps: int
    threads: int
    minutes: float


def rate(recipe: Recipe, step: int, spent_s: float) -> float:
    """Learning rate: a linear warm-up, then a cosine down to a hundredth, by steps or by the clock."""
    if step < recipe.warmup_steps:
        return recipe.lr * (step + 1) / recipe.warmup_steps
    done = (step - recipe.warmup_steps) / max(1, recipe.steps - recipe.warmup_steps)
    if recipe.minutes:
        done = min(1.0, max(done, spent_s / (60 * recipe.minutes)))
    return recipe.lr * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * done)))


def loss_of(model: Model, guess: nn.Linear, batch: list[Example]) -> tuple[Tensor, Tensor]:
    """Mean cross-entropy of the tokens that count, and of which entry is asked.

    The second is an aid to training and no part of the model: answers of many entries begin alike, so their
    tokens alone teach only slowly to read the whole question before the first of them.
    """
    longest = max(len(example.ids) for example in batch)
    ids = torch.zeros(len(batch), longest, dtype=torch.long)
    counts = torch.zeros(len(batch), longest, dtype=torch.bool)
    for row, example in enumerate(batch):
        ids[row, : len(example.ids)] = torch.tensor(example.ids)
        counts[row, : len(example.ids)] = torch.tensor(example.counts)
    hidden = model.hidden(ids[:, :-1])
    learnt = counts[:, 1:]
    rows = torch.tensor([row for row, example in enumerate(batch) for _ in example.asked_at])
    asked_at = torch.tensor([at for example in batch for at in example.asked_at])
    asked = torch.tensor([number for example in batch for number in example.asked])
    of_tokens = functional.cross_entropy(model.logits(hidden[learnt]), ids[:, 1:][learnt])
    return of_tokens, functional.cross_entropy(guess(hidden[rows, asked_at]), asked)


def optimizer_of(model: Model, guess: nn.Linear, recipe: Recipe) -> torch.optim.AdamW:
    """AdamW; norms and the embedding are not decayed."""
    decayed = [
        weight for name, weight in model.named_parameters() if weight.dim() == 2 and "embd" not in name
    ]
    kept = [weight for name, weight in model.named_parameters() if weight.dim() != 2 or "embd" in name]
    groups = [
        {"params": decayed, "weight_decay": recipe.weight_decay},
        {"params": [*kept, *guess.parameters()], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=recipe.lr, betas=(0.9, 0.98), fused=True)


def train(recipe: Recipe, out: Path, before: dict[str, Any] | None = None) -> None:
    """Run the recipe and write the checkpoint, now and then on the way too; `before` is a checkpoint whose
    weights and vocabulary to start from."""
    torch.manual_seed(recipe.seed)
    torch.set_num_threads(recipe.threads)
    entries, outside = read_handbook(), read_out_of_domain()
    check([*entries, outside])
    if before is None:
        tokenizer = train_tokenizer([*entries, outside], recipe.seed)
        model = Model(Shape(n_vocab=tokenizer.get_vocab_size()))
    else:
        tokenizer = Tokenizer.from_str(before["tokenizer"])
        model = Model(Shape(**before["shape"]))
        model.load_state_dict(before["weights"])
    guess = nn.Linear(model.shape.n_embd, len(entries) + 1)
    optimizer = optimizer_of(model, guess, recipe)
    examples = conversations(entries, outside, ChatEncoder(tokenizer), model.shape.n_ctx_train, recipe.seed)
    feed = batches(examples, recipe.batch_tokens)
    n_weights = sum(weight.numel() for weight in model.parameters())
    print(
        f"{len(entries)} entries, {model.shape.n_vocab} of {N_VOCAB} tokens, {n_weights / 1e6:.2f} M weights"
    )

    began, seen, smooth, smooth_asked = time.monotonic(), 0, 0.0, 0.0
    for step in range(recipe.steps):
        batch = next(feed)
        for group in optimizer.param_groups:
            group["lr"] = rate(recipe, step, time.monotonic() - began)
        loss, loss_asked = loss_of(model, guess, batch)
        optimizer.zero_grad(set_to_none=True)
        (loss + WEIGHT_OF_ASKED * loss_asked).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        seen += sum(len(example.ids) for example in batch)
        keep = 0.98 if step else 0.0
        smooth = keep * smooth + (1 - keep) * loss.item()
        smooth_asked = keep * smooth_asked + (1 - keep) * loss_asked.item()
        spent_s = time.monotonic() - began
        is_last = step + 1 == recipe.steps or (recipe.minutes > 0 and spent_s > 60 * recipe.minutes)
        if step % 50 == 49:
            losses = f"loss {smooth:.4f}  entry {smooth_asked:.3f}"
            print(
                f"step {step + 1:5d}  {losses}  {seen / spent_s:5.0f} tokens/s  {spent_s:5.0f} s", flush=True
            )
        if step % 500 == 499 or is_last:
            saved = {
                "weights": model.state_dict(),
                "shape": asdict(model.shape),
                "tokenizer": tokenizer.to_str(),
                "recipe": asdict(recipe)
                | {"steps_done": step + 1, "tokens_seen": seen, "data_sha256": data_hash()}
                | ({} if before is None else {"started_from": before["recipe"]}),
            }
            torch.save(saved, out)
        if is_last:
            break


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("build/builtin.pt"), help="checkpoint to write")
    parser.add_argument("--seed", type=int, default=20)
    parser.add_argument("--steps", type=int, default=6000)
    parser.add_argument("--batch-tokens", type=int, default=1000, help="padded tokens in a batch")
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--start-from", type=Path, help="checkpoint to train further, with a new schedule")
    parser.add_argument(
        "--minutes",
        type=float,
        default=0.0,
        help="end by then at the latest; what comes out depends on speed",
    )
    args = parser.parse_args(argv)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    recipe = Recipe(
        args.seed,
        args.steps,
        args.batch_tokens,
        args.lr,
        weight_decay=0.05,
        warmup_steps=60,
        threads=args.threads,
        minutes=args.minutes,
    )
    before = torch.load(args.start_from, weights_only=True) if args.start_from else None
    train(recipe, args.out, before)
    return 0


if __name__ == "__main__":
    sys.exit(main())
