"""What llama-like decoders share: the batch's inputs, paged attention, feed-forward, the stack of layers.

A family gives its own `Parts` where they differ; `build` turns file and sizes into a
program.
"""

from collections.abc import Callable, Sequence
from functools import cached_property
from typing import ClassVar, NamedTuple, Protocol

from actors.runner.cache.shape import CacheShape
from actors.runner.gguf.reader import GGUFFile
from actors.runner.models.hparams import Hparams
from actors.runner.models.module import Embedding, Linear, Module, RMSNorm, Weights, gguf
from kernels.ops.gate import Activation
from kernels.ops.rope import Rotation
from kernels.program import Program, ProgramBuilder
from kernels.tensor import N_OUTPUTS, N_PAGES, N_SEQS, N_TOKENS, Tensor


class Pages(NamedTuple):
    """Where layers find keys and values: states of n_cells, each input's cell, each sequence's pages."""

    n_cells: int
    cells: Tensor
    tables: Tensor


class Batch:
    """The inputs of one forward pass; values arrive at run time, so nothing here may look at them.

    What only some models have is declared when the first layer asks for it.
    """

    def __init__(self, builder: ProgramBuilder, cache: CacheShape) -> None:
        self.cache = cache
        self._builder = builder
        self.tokens = builder.input("tokens", (N_TOKENS,))
        self.positions = builder.input("positions", (N_TOKENS,))
        self.rows = builder.input("rows", (N_TOKENS,))
        self.n_visible = builder.input("n_visible", (N_TOKENS,))
        self.outputs = builder.input("outputs", (N_OUTPUTS,))

    @cached_property
    def whole(self) -> Pages:
        """Of layers that see all cells."""
        return self._pages(self.cache.n_cells, "")

    @cached_property
    def window(self) -> Pages:
        """Of layers that look back a window, or into their own chunk."""
        return self._pages(self.cache.n_window_cells, "window_")

    @cached_property
    def sources(self) -> Tensor:
        """Rows of recurrent state that sequences go on from."""
        return self._builder.input("sources", (N_SEQS,))

    @cached_property
    def targets(self) -> Tensor:
        """Rows of recurrent state that sequences leave."""
        return self._builder.input("targets", (N_SEQS,))

    def _pages(self, n_cells: int, prefix: str) -> Pages:
        cells = self._builder.input(f"{prefix}cells", (N_TOKENS,))
        return Pages(n_cells, cells, self._builder.input(f"{prefix}tables", (N_SEQS, N_PAGES)))


class Attention(Module):
    """x [n_tokens, n_embd] -> [n_tokens, n_embd]; grouped queries over the paged cache."""

    q: Linear = gguf("attn_q", "q_width", "n_embd", bias=None)
    k: Linear = gguf("attn_k", "kv_width", "n_embd", bias=None)
    v: Linear = gguf("attn_v", "kv_width", "n_embd", bias=None)
    output: Linear = gguf("attn_output", "n_embd", "q_width", bias=None)

    def queries(self, q: Tensor, layer: int) -> Tensor:
        """Projected queries [n_tokens, q_width] as rope wants them."""
        del layer
        return q

    def keys(self, k: Tensor, layer: int) -> Tensor:
        """Projected keys [n_tokens, kv_width] as rope wants them."""
        del layer
        return k

    def join(self, mixed: Tensor, residual: Tensor) -> Tensor:
        """What the heads found [n_tokens, q_width], added to the residual stream."""
        return self.output(mixed, residual)

    def __call__(
        self, batch: Batch, layer: int, rotation: Rotation | None, x: Tensor, residual: Tensor
    ) -> Tensor:
        """Attention of normalised x, added to the residual stream."""
        g, h = self.builder, self.hparams
        window, chunk = h.window_of(layer), h.chunk_of(layer)
        pages = batch.window if window or chunk else batch.whole
        shape = (pages.n_cells, h.kv_width)
        k_state = g.state(f"cache_k.{layer}", shape, batch.cache.dtype)
        v_state = g.state(f"cache_v.{layer}", shape, batch.cache.dtype)
        # products of one input stand together, and rope beside the cache: backends join neighbours
        q, k, v = self.q(x), self.k(x), self.v(x)
        q, k = self.queries(q, layer), self.keys(k, layer)
        if rotation is not None:
            q = g.rope(q, batch.positions, h.head_dim, rotation)
        g.store_kv(
            k,
            v,
            batch.positions,
            pages.cells,
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
            pages.tables,
            batch.rows,
            batch.n_visible,
            head_dim=h.head_dim,
            page_size=batch.cache.page_size,
            scale=h.attn_scale,
            window=window,
            chunk=chunk,
            temperature=h.temperature if rotation is None else 0.0,
            temperature_length=h.temperature_length if rotation is None else 0,
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


class Mixer(Protocol):
    """What mixes the inputs of a sequence in one layer: attention, or what stands in its place."""

    def __call__(
        self, batch: Batch, layer: int, rotation: Rotation | None, x: Tensor, residual: Tensor
    ) -> Tensor:
        """Of normalised x [n_tokens, n_embd], added to the residual stream."""
        ...


class Transform(Protocol):
    """What changes each input by itself in one layer: a feed-forward part, or experts."""

    def __call__(self, x: Tensor, residual: Tensor) -> Tensor:
        """Of normalised x [n_tokens, n_embd], added to the residual stream."""
        ...


MixerMaker = Callable[[Weights, str], Mixer]
HeadMaker = Callable[[Weights], Head]
TransformMaker = Callable[[Weights, str], Transform]


class Parts(NamedTuple):
    """What a family's layers are made of."""

    attention: MixerMaker
    feed_forward: TransformMaker = FeedForward
    recurrent: MixerMaker | None = None  # in layers where `Hparams.is_recurrent`
    head: HeadMaker = Head
    experts: TransformMaker | None = None  # in layers where `Hparams.has_experts`


def build(
    file: GGUFFile,
    hparams: Hparams,
    cache: CacheShape,
    rotations: Sequence[Rotation | None],
    parts: Parts,
) -> Program:
    """The program of a decoder: inputs of `Batch` -> output "logits" [n_outputs, n_vocab].

    rotations: of each layer; None where positions are not known.
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
            mixer = parts.recurrent if hparams.is_recurrent(layer) else parts.attention
            assert mixer is not None, "only families that have recurrent layers read of them"
            x = mixer(weights, prefix)(batch, layer, rotations[layer], norms.attn(x), x)
            if layer == hparams.n_layer - 1:
                x = g.rows(x, batch.outputs)  # later positions need only what this layer keeps
            transform = parts.experts if hparams.has_experts(layer) else parts.feed_forward
            assert transform is not None, "only families that have experts read of them"
            x = transform(weights, prefix)(norms.ffn(x), x)
    with g.in_layer(hparams.n_layer):
        x = parts.head(weights).norm(x)
        is_tied = not weights.has("output.weight")
        logits = g.matmul(x, embed.weight) if is_tied else Output(weights).logits(x)
        if hparams.logit_softcap > 0:
            logits = g.softcap(logits, hparams.logit_softcap)
    g.output("logits", logits)
    weights.finish()
    return g.build()
