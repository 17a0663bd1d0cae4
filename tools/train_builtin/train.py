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

import torch
from torch import Tensor
from torch.nn import functional

from tools.train_builtin.data import N_VOCAB, ChatEncoder, Example, batches, conversations, train_tokenizer
from tools.train_builtin.handbook import check, data_hash, read_handbook, read_out_of_domain
from tools.train_builtin.model import Model, Shape


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


def rate(recipe: Recipe, step: int) -> float:
    """Learning rate: a linear warm-up, then a cosine down to a hundredth."""
    if step < recipe.warmup_steps:
        return recipe.lr * (step + 1) / recipe.warmup_steps
    done = (step - recipe.warmup_steps) / max(1, recipe.steps - recipe.warmup_steps)
    return recipe.lr * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * done)))


def loss_of(model: Model, batch: list[Example]) -> Tensor:
    """Mean cross-entropy of the tokens that count; logits are made for those positions only."""
    longest = max(len(example.ids) for example in batch)
    ids = torch.zeros(len(batch), longest, dtype=torch.long)
    counts = torch.zeros(len(batch), longest, dtype=torch.bool)
    for row, example in enumerate(batch):
        ids[row, : len(example.ids)] = torch.tensor(example.ids)
        counts[row, : len(example.ids)] = torch.tensor(example.counts)
    hidden = model.hidden(ids[:, :-1])
    learnt = counts[:, 1:]
    return functional.cross_entropy(model.logits(hidden[learnt]), ids[:, 1:][learnt])


def optimizer_of(model: Model, recipe: Recipe) -> torch.optim.AdamW:
    """AdamW; norms and the embedding are not decayed."""
    decayed = [
        weight for name, weight in model.named_parameters() if weight.dim() == 2 and "embd" not in name
    ]
    kept = [weight for name, weight in model.named_parameters() if weight.dim() != 2 or "embd" in name]
    groups = [
        {"params": decayed, "weight_decay": recipe.weight_decay},
        {"params": kept, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=recipe.lr, betas=(0.9, 0.98), fused=True)


def train(recipe: Recipe, out: Path) -> None:
    """Run the recipe and write the checkpoint, now and then on the way too."""
    torch.manual_seed(recipe.seed)
    torch.set_num_threads(recipe.threads)
    entries, outside = read_handbook(), read_out_of_domain()
    check([*entries, outside])
    tokenizer = train_tokenizer([*entries, outside], recipe.seed)
    model = Model(Shape(n_vocab=tokenizer.get_vocab_size()))
    optimizer = optimizer_of(model, recipe)
    examples = conversations(entries, outside, ChatEncoder(tokenizer), model.shape.n_ctx_train, recipe.seed)
    feed = batches(examples, recipe.batch_tokens)
    n_weights = sum(weight.numel() for weight in model.parameters())
    print(
        f"{len(entries)} entries, {model.shape.n_vocab} of {N_VOCAB} tokens, {n_weights / 1e6:.2f} M weights"
    )

    began, seen, smooth = time.monotonic(), 0, 0.0
    for step in range(recipe.steps):
        batch = next(feed)
        for group in optimizer.param_groups:
            group["lr"] = rate(recipe, step)
        loss = loss_of(model, batch)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        seen += sum(len(example.ids) for example in batch)
        smooth = loss.item() if step == 0 else 0.98 * smooth + 0.02 * loss.item()
        if step % 50 == 49:
            spent_s = time.monotonic() - began
            print(
                f"step {step + 1:5d}  loss {smooth:.4f}  {seen / spent_s:5.0f} tokens/s  {spent_s:5.0f} s",
                flush=True,
            )
        if step % 500 == 499 or step + 1 == recipe.steps:
            saved = {
                "weights": model.state_dict(),
                "shape": asdict(model.shape),
                "tokenizer": tokenizer.to_str(),
                "recipe": asdict(recipe)
                | {"steps_done": step + 1, "tokens_seen": seen, "data_sha256": data_hash()},
            }
            torch.save(saved, out)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("build/builtin.pt"), help="checkpoint to write")
    parser.add_argument("--seed", type=int, default=20)
    parser.add_argument("--steps", type=int, default=2500)
    parser.add_argument("--batch-tokens", type=int, default=1500, help="padded tokens in a batch")
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--threads", type=int, default=2)
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
    )
    train(recipe, args.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
