"""qwen3: grouped-query attention with QK-norm, no biases.  arXiv:2505.09388, section 2."""

from actors.runner.models.decoder import Attention
from actors.runner.models.module import Linear, RMSNorm, gguf
from kernels.tensor import Tensor

ROPE_STYLE = "neox"


class Qwen3Attention(Attention):
    """x [n_tokens, n_embd] -> [n_tokens, n_embd]."""

    q: Linear = gguf("attn_q", "q_width", "n_embd")
    k: Linear = gguf("attn_k", "kv_width", "n_embd")
    v: Linear = gguf("attn_v", "kv_width", "n_embd")
    output: Linear = gguf("attn_output", "n_embd", "q_width")
    q_norm: RMSNorm = gguf("attn_q_norm", "head_dim")
    k_norm: RMSNorm = gguf("attn_k_norm", "head_dim")

    def queries(self, q: Tensor, layer: int) -> Tensor:
        """Normed per head, before rope."""
        del layer
        return self.q_norm(q)

    def keys(self, k: Tensor, layer: int) -> Tensor:
        """Normed per head, before rope."""
        del layer
        return self.k_norm(k)
