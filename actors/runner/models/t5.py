"""t5: an encoder reads the prompt, a decoder answers; arXiv:1910.10683, arXiv:2002.05202 for gated units.

The encoder's rows see one another in both directions, so that all of a prompt is one group of inputs.  Its
layers come first, then the decoder's.  A decoder's layer keeps, in the cells of the prompt, keys and values
of what the encoder made of it (cross attention), and behind them those of its own inputs.

Places are known by a bias on the scores alone: one for each head and bucket of distances.
"""

import math
from dataclasses import replace
from functools import partial
from typing import ClassVar, NamedTuple

import numpy as np

from actors.errors import ModelError
from actors.runner.cache.shape import CacheShape
from actors.runner.gguf.reader import GGUFFile
from actors.runner.models.decoder import FeedForward, Head, Input, Norms, Output, Transform
from actors.runner.models.hparams import Hparams, read_sizes
from actors.runner.models.module import Layer, Linear, Module, RMSNorm, Weights, gguf
from kernels.ops.gate import Activation
from kernels.ops.op import I32
from kernels.program import Program, ProgramBuilder
from kernels.tensor import N_OUTPUTS, N_PAGES, N_SEQS, N_SOURCE, N_SOURCE_PAGES, N_TOKENS, Tensor

MAX_DISTANCE = 128  # from which on all cells are in one bucket; files have no key for it
MAX_BUCKETS = 128  # of which the first half have a distance each


class Seen(NamedTuple):
    """Rows, and the cells that they see: each row's number of them, its sequence's, that one's pages."""

    rows: Tensor
    n_visible: Tensor
    tables: Tensor


class Inputs(NamedTuple):
    """Of an encoder, or of a decoder: each has a place in its text, a cell, and cells of its kind to see."""

    tokens: Tensor
    positions: Tensor
    cells: Tensor
    seen: Seen


class Prompts(NamedTuple):
    """What the encoder reads: the prompts that begin in this batch, and no others."""

    inputs: Inputs
    kept_cells: Tensor  # in the decoder's states


class Answers(NamedTuple):
    """What the decoder reads."""

    inputs: Inputs
    outputs: Tensor
    crossed: Seen  # of the prompts


class T5Attention(Module):
    """x [n, n_embd] -> [n, n_embd]: of an encoder's rows with one another, or of a decoder's."""

    q: Linear = gguf("attn_q", "q_width", "n_embd")
    k: Linear = gguf("attn_k", "kv_width", "n_embd")
    v: Linear = gguf("attn_v", "kv_width", "n_embd")
    output: Linear = gguf("attn_o", "n_embd", "q_width")


class CrossAttention(Module):
    """x [n, n_embd] -> [n, n_embd], of what an encoder made [n_source, n_embd]."""

    norm: RMSNorm = gguf("cross_attn_norm", "n_embd")
    q: Linear = gguf("cross_attn_q", "q_width", "n_embd")
    k: Linear = gguf("cross_attn_k", "kv_width", "n_embd")
    v: Linear = gguf("cross_attn_v", "kv_width", "n_embd")
    output: Linear = gguf("cross_attn_o", "n_embd", "q_width")


class GatedFeedForward(FeedForward):
    """x [n, n_embd] -> [n, n_embd], as T5 1.1 and Flan-T5 have it."""

    activation: ClassVar[Activation] = "gelu"


class PlainFeedForward(Module):
    """x [n, n_embd] -> [n, n_embd], as the first T5 had it."""

    up: Linear = gguf("ffn_up", "n_ff", "n_embd")
    down: Linear = gguf("ffn_down", "n_embd", "n_ff")

    def __call__(self, x: Tensor, residual: Tensor) -> Tensor:
        """Feed-forward of normalised x, added to the residual stream."""
        return self.down(self.builder.gate(self.up(x), None, "relu"), residual)


class Distances(Module):
    """Of each bucket and head, what is added to scores."""

    table: Layer = gguf("attn_rel_b", "n_bucket", "n_head")


class Builder:
    """Makes one file's program."""

    def __init__(self, file: GGUFFile, hparams: Hparams, cache: CacheShape) -> None:
        self._g = ProgramBuilder(hparams.n_layer)
        self._weights = Weights(file, hparams, self._g)
        self._hparams = hparams
        self._cache = cache

    def program(self) -> Program:
        """Inputs of `Prompts` and `Answers` -> output "logits" [n_outputs, n_vocab].

        Without rows of N_SOURCE it is the program of a batch in which no prompt begins.
        """
        g, h = self._g, self._hparams
        embed = Input(self._weights).embed
        prompts, answers = self._prompts(), self._answers()
        encoded = self._encoded(prompts.inputs, embed(prompts.inputs.tokens))
        x = self._decoded(prompts, encoded, answers, embed(answers.inputs.tokens))
        with g.in_layer(h.n_layer):
            x = Head(self._weights, "dec.").norm(x)
            is_tied = not self._weights.has("output.weight")
            # where the embedding is the output matrix as well, its rows are of the length of embeddings
            x = g.rows(x, answers.outputs, h.n_embd**-0.5 if is_tied else 1.0)
            logits = g.matmul(x, embed.weight) if is_tied else Output(self._weights).logits(x)
        g.output("logits", logits)
        self._weights.finish()
        return g.build()

    def _encoded(self, inputs: Inputs, x: Tensor) -> Tensor:
        g, h = self._g, self._hparams
        bias: Tensor | None = None
        buckets = g.constant("source_buckets", bucket_of_distance(h.n_bucket, is_causal=False))
        for layer in range(h.n_encoder):
            with g.in_layer(layer):
                prefix = f"enc.blk.{layer}."
                norms = Norms(self._weights, prefix)
                bias = self._bias(prefix, buckets, bias)
                states = self._states("source", layer, self._cache.n_source_cells)
                x = self._attend(prefix, norms, x, inputs, states, bias)
                x = self._feed_forward(prefix)(norms.ffn(x), x)
        with g.in_layer(h.n_encoder - 1):
            return Head(self._weights, "enc.").norm(x)

    def _decoded(self, prompts: Prompts, encoded: Tensor, answers: Answers, x: Tensor) -> Tensor:
        g, h = self._g, self._hparams
        bias: Tensor | None = None
        buckets = g.constant("buckets", bucket_of_distance(h.n_bucket, is_causal=True))
        for layer in range(h.n_encoder, h.n_layer):
            with g.in_layer(layer):
                prefix = f"dec.blk.{layer - h.n_encoder}."
                self._weights.ignore(f"{prefix}cross_attn_rel_b.weight")  # files have it, nobody uses it
                norms = Norms(self._weights, prefix)
                bias = self._bias(prefix, buckets, bias)
                states = self._states("cache", layer, self._cache.n_cells)
                x = self._attend(prefix, norms, x, answers.inputs, states, bias)
                x = self._cross(prefix, prompts, encoded, answers.crossed, states, x)
                x = self._feed_forward(prefix)(norms.ffn(x), x)
        return x

    def _attend(
        self,
        prefix: str,
        norms: Norms,
        x: Tensor,
        inputs: Inputs,
        states: tuple[Tensor, Tensor],
        bias: Tensor,
    ) -> Tensor:
        part, normed = T5Attention(self._weights, prefix), norms.attn(x)
        q, k, v = part.q(normed), part.k(normed), part.v(normed)
        self._store(k, v, inputs.positions, inputs.cells, states)
        return part.output(self._attention(q, states, inputs.seen, bias, inputs.positions), x)

    def _cross(
        self,
        prefix: str,
        prompts: Prompts,
        encoded: Tensor,
        crossed: Seen,
        states: tuple[Tensor, Tensor],
        x: Tensor,
    ) -> Tensor:
        part = CrossAttention(self._weights, prefix)
        k, v = part.k(encoded), part.v(encoded)
        self._store(k, v, prompts.inputs.positions, prompts.kept_cells, states)
        return part.output(self._attention(part.q(part.norm(x)), states, crossed), x)

    def _store(
        self, k: Tensor, v: Tensor, positions: Tensor, cells: Tensor, states: tuple[Tensor, Tensor]
    ) -> None:
        sizes = {"head_dim": self._hparams.head_dim, "page_size": self._cache.page_size}
        self._g.store_kv(k, v, positions, cells, *states, **sizes, rotation=None)

    def _attention(
        self,
        q: Tensor,
        states: tuple[Tensor, Tensor],
        seen: Seen,
        bias: Tensor | None = None,
        positions: Tensor | None = None,
    ) -> Tensor:
        """Scores are not scaled: the projections are."""
        return self._g.attention(
            q,
            *states,
            seen.tables,
            seen.rows,
            seen.n_visible,
            head_dim=self._hparams.head_dim,
            page_size=self._cache.page_size,
            scale=self._hparams.attn_scale,
            bias=bias,
            positions=positions,
        )

    def _bias(self, prefix: str, buckets: Tensor, before: Tensor | None) -> Tensor:
        """A layer's own [2 * MAX_DISTANCE + 1, n_head], or that of the layers before."""
        if before is not None and not self._weights.has(f"{prefix}attn_rel_b.weight"):
            return before
        return self._g.rows(Distances(self._weights, prefix).table.weight, buckets)

    def _feed_forward(self, prefix: str) -> Transform:
        is_gated = self._weights.has(f"{prefix}ffn_gate.weight")
        return (
            GatedFeedForward(self._weights, prefix) if is_gated else PlainFeedForward(self._weights, prefix)
        )

    def _states(self, stem: str, layer: int, n_cells: int) -> tuple[Tensor, Tensor]:
        shape, dtype = (n_cells, self._hparams.kv_width), self._cache.dtype
        return self._g.state(f"{stem}_k.{layer}", shape, dtype), self._g.state(
            f"{stem}_v.{layer}", shape, dtype
        )

    def _prompts(self) -> Prompts:
        source = partial(self._g.input, shape=(N_SOURCE,))
        tables = self._g.input("source_tables", (N_SEQS, N_SOURCE_PAGES))
        seen = Seen(source("source_rows"), source("source_visible"), tables)
        inputs = Inputs(source("source_tokens"), source("source_positions"), source("source_cells"), seen)
        return Prompts(inputs, source("kept_cells"))

    def _answers(self) -> Answers:
        tokens = partial(self._g.input, shape=(N_TOKENS,))
        rows = tokens("rows")
        seen = Seen(rows, tokens("n_visible"), self._g.input("tables", (N_SEQS, N_PAGES)))
        inputs = Inputs(tokens("tokens"), tokens("positions"), tokens("cells"), seen)
        kept = self._g.input("kept_tables", (N_SEQS, N_SOURCE_PAGES))
        return Answers(inputs, self._g.input("outputs", (N_OUTPUTS,)), Seen(rows, tokens("n_kept"), kept))


def build(file: GGUFFile, hparams: Hparams, cache: CacheShape) -> Program:
    """See `Builder.program`."""
    return Builder(file, hparams, cache).program()


def read_hparams(file: GGUFFile) -> Hparams:
    """Sizes; ModelError where those of encoder and decoder make no sense."""
    sizes = read_sizes(file)
    n_bucket = file.get_int("t5.attention.relative_buckets_count")
    if n_bucket % 4 or not 4 <= n_bucket <= MAX_BUCKETS:
        raise ModelError(
            f"t5.attention.relative_buckets_count is {n_bucket}, "
            f"expected a multiple of 4 up to {MAX_BUCKETS}",
            where=file.name,
        )
    start_token = file.get_int(
        "t5.decoder_start_token_id", file.get_int("tokenizer.ggml.padding_token_id", -1)
    )
    if not 0 <= start_token < sizes.n_vocab:
        raise ModelError(
            f"t5.decoder_start_token_id is {start_token}, expected a token below {sizes.n_vocab}",
            where=file.name,
        )
    n_layer = sizes.n_layer + file.get_int("t5.decoder_block_count", sizes.n_layer)
    return replace(
        sizes,
        n_layer=n_layer,
        n_encoder=sizes.n_layer,
        n_bucket=n_bucket,
        start_token=start_token,
        attn_scale=1.0,
        windows=(0,) * n_layer,
        chunks=(0,) * n_layer,
    )


def bucket_of_distance(n_bucket: int, *, is_causal: bool) -> I32:
    """The bucket of each distance from a row to a cell, from -MAX_DISTANCE on, [2 * MAX_DISTANCE + 1] i32.

    arXiv:1910.10683, section 2.1: half of the buckets are of one distance each, the rest ever wider, in
    logarithmic steps.  Rows that also see what follows them have half of all for that.
    """
    n = n_bucket if is_causal else n_bucket // 2
    n_exact = n // 2
    found = np.empty(2 * MAX_DISTANCE + 1, np.int32)
    for index in range(len(found)):
        ahead = index - MAX_DISTANCE
        distance = max(0, -ahead) if is_causal else abs(ahead)
        bucket = distance
        if distance >= n_exact:
            # in single precision, as models are trained: at some distances the last bit decides
            share = np.log(np.float32(distance) / np.float32(n_exact)) / np.float32(
                math.log(MAX_DISTANCE / n_exact)
            )
            bucket = min(n - 1, n_exact + int(share * np.float32(n - n_exact)))
        found[index] = bucket + (n if ahead > 0 and not is_causal else 0)
    return found
