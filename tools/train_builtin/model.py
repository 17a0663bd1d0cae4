"""The network: a qwen3-family decoder in plain PyTorch, the arithmetic that GGUF's `qwen3` means.

Grouped queries, RMSNorm of each head's query and key before the rotation, half-split (neox) rope, gated
SiLU feed-forward, tied embeddings. Parameter names are those of the GGUF tensors, so that the export is
a copy. Equal to `transformers` Qwen3ForCausalLM with the same weights (verify.py checks it).
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional


@dataclass(frozen=True, slots=True)
class Shape:
    """Sizes of the model; every matrix row is a multiple of 256 long, so that every quant type fits."""

    n_vocab: int
    n_embd: int = 256
    n_layer: int = 4
    n_head: int = 4
    n_head_kv: int = 2
    head_dim: int = 64
    n_ff: int = 768
    n_ctx_train: int = 1024
    rope_base: float = 10000.0
    rms_eps: float = 1e-6


class RmsNorm(nn.Module):
    """Scale x [..., n] to a root mean square of one, times weight [n]."""

    def __init__(self, n: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(n))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return functional.rms_norm(x, x.shape[-1:], self.weight, self.eps)


def rope_tables(shape: Shape, n_tokens: int) -> tuple[Tensor, Tensor]:
    """Cosines and sines [n_tokens, head_dim] F32 of the half-split rotation."""
    half = torch.arange(0, shape.head_dim, 2, dtype=torch.float64) / shape.head_dim
    angles = torch.outer(torch.arange(n_tokens, dtype=torch.float64), shape.rope_base**-half)
    both = torch.cat((angles, angles), dim=-1)
    return both.cos().float(), both.sin().float()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate x [n_batch, n_head, n_tokens, head_dim] by its positions."""
    low, high = x.chunk(2, dim=-1)
    return x * cos + torch.cat((-high, low), dim=-1) * sin


class Layer(nn.Module):
    """One decoder layer."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        n_q, n_kv = shape.n_head * shape.head_dim, shape.n_head_kv * shape.head_dim
        self.attn_norm = RmsNorm(shape.n_embd, shape.rms_eps)
        self.attn_q = nn.Linear(shape.n_embd, n_q, bias=False)
        self.attn_k = nn.Linear(shape.n_embd, n_kv, bias=False)
        self.attn_v = nn.Linear(shape.n_embd, n_kv, bias=False)
        self.attn_q_norm = RmsNorm(shape.head_dim, shape.rms_eps)
        self.attn_k_norm = RmsNorm(shape.head_dim, shape.rms_eps)
        self.attn_output = nn.Linear(n_q, shape.n_embd, bias=False)
        self.ffn_norm = RmsNorm(shape.n_embd, shape.rms_eps)
        self.ffn_gate = nn.Linear(shape.n_embd, shape.n_ff, bias=False)
        self.ffn_up = nn.Linear(shape.n_embd, shape.n_ff, bias=False)
        self.ffn_down = nn.Linear(shape.n_ff, shape.n_embd, bias=False)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        x = x + self.attend(self.attn_norm(x), cos, sin)
        h = self.ffn_norm(x)
        return x + self.ffn_down(functional.silu(self.ffn_gate(h)) * self.ffn_up(h))

    def attend(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """Causal attention over x [n_batch, n_tokens, n_embd]."""
        n_batch, n_tokens, _ = x.shape
        q, k, v = (
            proj(x).view(n_batch, n_tokens, -1, self.shape.head_dim).transpose(1, 2)
            for proj in (self.attn_q, self.attn_k, self.attn_v)
        )
        q = rotate(self.attn_q_norm(q), cos, sin)
        k = rotate(self.attn_k_norm(k), cos, sin)
        n_group = self.shape.n_head // self.shape.n_head_kv
        k, v = k.repeat_interleave(n_group, dim=1), v.repeat_interleave(n_group, dim=1)
        out = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.attn_output(out.transpose(1, 2).reshape(n_batch, n_tokens, -1))


class Model(nn.Module):
    """Token ids [n_batch, n_tokens] to hidden states, and hidden states to logits."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        self.token_embd = nn.Embedding(shape.n_vocab, shape.n_embd)
        self.blk = nn.ModuleList(Layer(shape) for _ in range(shape.n_layer))
        self.output_norm = RmsNorm(shape.n_embd, shape.rms_eps)
        cos, sin = rope_tables(shape, shape.n_ctx_train)
        self.register_buffer("cos", cos, persistent=False)
        self.register_buffer("sin", sin, persistent=False)
        self.start()

    def start(self) -> None:
        """Draw the first weights: normal, narrower where a layer adds to the residual stream."""
        for name, weight in self.named_parameters():
            if weight.dim() == 2:
                narrow = name.endswith(("attn_output.weight", "ffn_down.weight"))
                std = 0.03 / (2 * self.shape.n_layer) ** 0.5 if narrow else 0.03
                nn.init.normal_(weight, std=std)

    def hidden(self, ids: Tensor) -> Tensor:
        """Normed hidden states [n_batch, n_tokens, n_embd] F32."""
        n_tokens = ids.shape[1]
        cos, sin = self.get_buffer("cos")[:n_tokens], self.get_buffer("sin")[:n_tokens]
        x = self.token_embd(ids)
        for layer in self.blk:
            x = layer(x, cos, sin)
        return self.output_norm(x)

    def logits(self, hidden: Tensor) -> Tensor:
        """Logits [..., n_vocab] of hidden states [..., n_embd]; the output matrix is the embedding."""
        return hidden @ self.token_embd.weight.T

    def forward(self, ids: Tensor) -> Tensor:
        return self.logits(self.hidden(ids))
