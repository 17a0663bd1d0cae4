"""One forward pass on the device's thread: index arrays from slots, an executable run, sampled tokens."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from actors.protocol import Logprob, TokenLogprob
from actors.runner.cache.causal import CausalCache, Slot
from actors.runner.tokenizer.tokenizer import Tokenizer
from kernels.cpu.sampler import NanLogits, SamplingParams, logprobs, sample
from kernels.executable import Executable
from kernels.ops.op import F32, Array


@dataclass(frozen=True, slots=True)
class Draw:
    """How to sample after a row of logits; position counts all tokens before the one that is drawn."""

    params: SamplingParams
    history: Sequence[int]  # tokens that penalties look at, oldest first
    position: int
    n_logprobs: int


@dataclass(frozen=True, slots=True)
class Part:
    """One sequence's inputs in a batch; `draw` is given when its last input's logits are wanted."""

    seq_id: int
    slot: Slot
    tokens: Sequence[int]
    draw: Draw | None


@dataclass(frozen=True, slots=True)
class Drawn:
    """A sampled token, or why there is none: an error of one row is that sequence's alone."""

    seq_id: int
    token: int
    logprob: Logprob | None
    error: str = ""


def index_arrays(parts: Sequence[Part], cache: CausalCache) -> dict[str, Array]:
    """The inputs of `models.decoder.Batch`, all i32, for sequences whose slots have room for their parts."""
    n_pages = max(len(part.slot.pages) for part in parts)
    tables = np.zeros((len(parts), n_pages), np.int32)
    tokens: list[int] = []
    positions: list[int] = []
    cells: list[int] = []
    rows: list[int] = []
    outputs: list[int] = []
    for row, part in enumerate(parts):
        tables[row, : len(part.slot.pages)] = part.slot.pages
        n_inputs = len(part.tokens)
        tokens += part.tokens
        positions += range(part.slot.n_cells, part.slot.n_cells + n_inputs)
        cells += cache.cells(part.slot, n_inputs)
        rows += [row] * n_inputs
        if part.draw is not None:
            outputs.append(len(tokens) - 1)
    named = {"tokens": tokens, "positions": positions, "cells": cells, "rows": rows, "outputs": outputs}
    arrays: dict[str, Array] = {name: np.array(values, np.int32) for name, values in named.items()}
    arrays["n_visible"] = np.array(positions, np.int32) + np.int32(1)
    arrays["tables"] = tables
    return arrays


def forward(
    executable: Executable, inputs: Mapping[str, Array], parts: Sequence[Part], tokenizer: Tokenizer
) -> list[Drawn]:
    """Run the batch and sample a token for every part that wants one."""
    logits: F32 = executable.run(inputs)["logits"].astype(np.float32, copy=False)
    wanted = [part for part in parts if part.draw is not None]
    return [_draw(part, logits[row], tokenizer) for row, part in enumerate(wanted)]


def _draw(part: Part, logits: F32, tokenizer: Tokenizer) -> Drawn:
    draw = part.draw
    assert draw is not None
    params, n_history = draw.params, len(draw.history)
    n_seen = n_history if params.repeat_last_n < 0 else min(params.repeat_last_n, n_history)
    history = np.array(draw.history[n_history - n_seen :], np.int32)
    try:
        token = sample(logits, history, params, draw.position)
    except NanLogits as exc:
        return Drawn(part.seq_id, 0, None, str(exc) or type(exc).__name__)
    if draw.n_logprobs < 0:
        return Drawn(part.seq_id, token, None)
    chosen, top = logprobs(logits, token, draw.n_logprobs)
    entry = Logprob(_entry(token, chosen, tokenizer), tuple(_entry(t, p, tokenizer) for t, p in top))
    return Drawn(part.seq_id, token, entry)


def _entry(token: int, logprob: float, tokenizer: Tokenizer) -> TokenLogprob:
    return TokenLogprob(token, tokenizer.piece(token, special=True), logprob)
