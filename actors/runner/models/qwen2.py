"""qwen2: grouped-query attention with biases on queries, keys and values.  arXiv:2407.10671, section 2.2."""

from actors.runner.models.decoder import Attention
from actors.runner.models.module import Linear, gguf

ROPE_STYLE = "neox"


class Qwen2Attention(Attention):
    """x [n_tokens, n_embd] -> [n_tokens, n_embd]."""

    q: Linear = gguf("attn_q", "q_width", "n_embd", bias=True)
    k: Linear = gguf("attn_k", "kv_width", "n_embd", bias=True)
    v: Linear = gguf("attn_v", "kv_width", "n_embd", bias=True)
