"""qwen3moe: qwen3 with experts in every layer, whose weights are shares among the chosen.

arXiv:2505.09388, section 2.  Files of this family say nothing of shares: all its models divide by their sum.
"""

from typing import ClassVar

from actors.runner.gguf.reader import GGUFFile
from actors.runner.models.experts import SOFTMAX, Experts, read_experts
from actors.runner.models.hparams import Hparams
from kernels.ops.experts import Gating

ROPE_STYLE = "neox"


class Qwen3MoeExperts(Experts):
    """x [n_tokens, n_embd] -> [n_tokens, n_embd]."""

    gating: ClassVar[Gating] = "chosen_softmax"


def read_hparams(file: GGUFFile) -> Hparams:
    """Sizes; Unsupported for shares among all experts, and for experts that every row goes through."""
    return read_experts(file, gating_func=SOFTMAX, n_shared=0, has_norm=True)
