"""What llama-like decoders share: the batch's inputs, paged attention, feed-forward, the stack of layers.

A family gives its own `Attention` and `FeedForward` where they differ; `build` turns file and sizes into a
program.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar

from actors.runner.gguf.reader import GGUFFile
from actors.runner.models.hparams import Hparams
from actors.runner.models.module import Embedding, Linear, Module, RMSNorm, Weights, gguf
from kernels.dtype import DType
from kernels.ops.gate import Activation
from kernels.ops.rope import Rotation
from kernels.program import Program, ProgramBuilder
from kernels.tensor import N_OUTPUTS, N_PAGES, N_SEQS, N_TOKENS, Tensor


@dataclass(frozen=True, slots=True)
class CacheShape:
    """The causal cache that a program reads and writes."""

    n_cells: int
    page_size: int
    dtype: DType


class Batch:
    """The inputs of one forward pass; values arrive at run time, so nothing here may look at them."""

    def __init__(self, builder: ProgramBuilder, cache: CacheShape) -> None:
        self.cache = cache
        self.tokens = builder.input("tokens", (N_TOKENS,))
        self.positions = builder.input("positions", (N_TOKENS,))
        self.cells = builder.input("cells", (N_TOKENS,))
        self.rows = builder.input("rows", (N_TOKENS,))
        self.n_visible = builder.input("n_visible", (N_TOKENS,))
        self.tables = builder.input("tables", (N_SEQS, N_PAGES))
        self.outputs = builder.input("outputs", (N_OUTPUTS,))


class Attention(Module):
    """x [n_tokens, n_embd] -> [n_tokens, n_embd]; grouped queries over the paged cache."""

    q: Linear = gguf("attn_q", "q_width", "n_embd", bias=None)
    k: Linear = gguf("attn_k", "kv_width", "n_embd", bias=None)
    v: Linear = gguf("attn_v", "kv_width", "n_embd", bias=None)
    output: Linear = gguf("attn_output", "n_embd", "q_width", bias=None)

    def queries(self, x: Tensor) -> Tensor:
        """[n_tokens, q_width], before rope."""
        return self.q(x)

    def keys(self, x: Tensor) -> Tensor:
        """[n_tokens, kv_width], before rope."""
        return self.k(x)

    def join(self, mixed: Tensor, residual: Tensor) -> Tensor:
        """What the heads found [n_tokens, q_width], added to the residual stream."""
        return self.output(mixed, residual)

    def __call__(self, batch: Batch, layer: int, rotation: Rotation, x: Tensor, residual: Tensor) -> Tensor:
        """Attention of normalised x, added to the residual stream."""
        g, h = self.builder, self.hparams
        shape = (batch.cache.n_cells, h.kv_width)
        k_state = g.state(f"cache_k.{layer}", shape, batch.cache.dtype)
        v_state = g.state(f"cache_v.{layer}", shape, batch.cache.dtype)
        q = g.rope(self.queries(x), batch.positions, h.head_dim, rotation)
        k, v = self.keys(x), self.v(x)
        g.store_kv(
            k,
            v,
            batch.positions,
            batch.cells,
            k_state,
            v_state,
            head_dim=h.head_dim,
            page_size=batch.cache.page_size,
            rotation=rotation,
        )
        mixed = g.attention(
            q,
            k_state,
            v_state,
            batch.tables,
            batch.rows,
            batch.n_visible,
            head_dim=h.head_dim,
            page_size=batch.cache.page_size,
            scale=h.attn_scale,
            window=h.window_of(layer),
        )
        return self.join(mixed, residual)


class FeedForward(Module):
    """x [n_tokens, n_embd] -> [n_tokens, n_embd] through n_ff gated units."""

    activation: ClassVar[Activation] = "silu"
    gate: Linear = gguf("ffn_gate", "n_ff", "n_embd", bias=None)
    up: Linear = gguf("ffn_up", "n_ff", "n_embd", bias=None)
    down: Linear = gguf("ffn_down", "n_embd", "n_ff", bias=None)

    def join(self, gated: Tensor, residual: Tensor) -> Tensor:
        """What the units gave [n_tokens, n_ff], added to the residual stream."""
        return self.down(gated, residual)

    def __call__(self, x: Tensor, residual: Tensor) -> Tensor:
        """Feed-forward of normalised x, added to the residual stream."""
        return self.join(self.builder.gate(self.gate(x), self.up(x), self.activation), residual)


class Norms(Module):
    """The norms before attention and feed-forward."""

    attn: RMSNorm = gguf("attn_norm", "n_embd")
    ffn: RMSNorm = gguf("ffn_norm", "n_embd")


class Head(Module):
    """The last norm; the output matrix follows it."""

    norm: RMSNorm = gguf("output_norm", "n_embd")


class Output(Module):
    """The output matrix where it is not tied to the embedding."""

    logits: Linear = gguf("output", "n_vocab", "n_embd")


class Input(Module):
    """The embedding."""

    embed: Embedding = gguf("token_embd", "n_vocab", "n_embd")


AttentionMaker = Callable[[Weights, str], Attention]
FeedForwardMaker = Callable[[Weights, str], FeedForward]


def build(
    file: GGUFFile,
    hparams: Hparams,
    cache: CacheShape,
    rotations: Sequence[Rotation],
    attention: AttentionMaker,
    feed_forward: FeedForwardMaker,
) -> Program:
    """The program of a decoder: inputs of `Batch` -> output "logits" [n_outputs, n_vocab].

    rotations: of each layer.
    """
    g = ProgramBuilder(hparams.n_layer)
    weights = Weights(file, hparams, g)
    weights.ignore("rope_freqs.weight")
    batch = Batch(g, cache)
    embed = Input(weights).embed
    x = embed(batch.tokens)
    for layer in range(hparams.n_layer):
        with g.in_layer(layer):
            prefix = f"blk.{layer}."
            norms = Norms(weights, prefix)
            x = attention(weights, prefix)(batch, layer, rotations[layer], norms.attn(x), x)
            if layer == hparams.n_layer - 1:
                x = g.rows(x, batch.outputs)  # later positions need only the cache of this layer
            x = feed_forward(weights, prefix)(norms.ffn(x), x)
    with g.in_layer(hparams.n_layer):
        x = Head(weights).norm(x)
        is_tied = not weights.has("output.weight")
        logits = g.matmul(x, embed.weight) if is_tied else Output(weights).logits(x)
        if hparams.logit_softcap > 0:
            logits = g.softcap(logits, hparams.logit_softcap)
    g.output("logits", logits)
    weights.finish()
    return g.build()
