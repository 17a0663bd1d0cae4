"""gemma3 (text): five layers that look back a window to one that sees all, norms before and after, GeGLU.

arXiv:2503.19786, section 2.  In GGUF files the 1 that gemma adds to the weights of its norms is already in
them, and `attention.sliding_window` counts the row itself.
"""

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import ClassVar

import numpy as np

from actors.errors import ModelError, Unsupported
from actors.runner.gguf.reader import GGUFFile
from actors.runner.models.decoder import FeedForward
from actors.runner.models.hparams import Hparams, read_sizes, refuse_images
from actors.runner.models.module import RMSNorm, gguf
from actors.runner.models.qwen3 import Qwen3Attention
from actors.runner.models.rope import frequencies, read_base, read_n_rot, read_rotation
from kernels.ops.gate import Activation
from kernels.ops.rope import RopeStyle, Rotation
from kernels.tensor import Tensor

ROPE_STYLE = "neox"
ROPE_BASE, LOCAL_ROPE_BASE = 1e6, 1e4  # where the file names none
PERIOD = 6  # every sixth layer sees all, where the file does not say
# The 27B scales its queries by the width per head, not by head_dim.  No key says so: its layers tell.
N_LAYER_27B = 62
MAX_WINDOW = 1 << 24


class Gemma3Attention(Qwen3Attention):
    """x [n_tokens, n_embd] -> [n_tokens, n_embd]; QK-norm as qwen3 has it."""

    post_norm: RMSNorm = gguf("post_attention_norm", "n_embd")

    def join(self, mixed: Tensor, residual: Tensor) -> Tensor:
        """Normed before it is added."""
        return self.post_norm(self.output(mixed), residual)


class Gemma3FeedForward(FeedForward):
    """x [n_tokens, n_embd] -> [n_tokens, n_embd]."""

    activation: ClassVar[Activation] = "gelu"
    post_norm: RMSNorm = gguf("post_ffw_norm", "n_embd")

    def join(self, gated: Tensor, residual: Tensor) -> Tensor:
        """Normed before it is added."""
        return self.post_norm(self.down(gated), residual)


def read_hparams(file: GGUFFile) -> Hparams:
    """Sizes; ModelError for windows that make no sense, Unsupported for a file that also sees images."""
    refuse_images(file)
    if _softcap(file, "gemma3.attn_logit_softcapping") > 0:
        raise Unsupported(
            "gemma3 with capped attention is not implemented",
            where=f"{file.name}: gemma3.attn_logit_softcapping",
        )
    sizes = read_sizes(file)
    scaled_width = sizes.n_embd // sizes.n_head if sizes.n_layer == N_LAYER_27B else sizes.head_dim
    return replace(
        sizes,
        attn_scale=scaled_width**-0.5,
        windows=_windows(file, sizes.n_layer),
        embd_scale=math.sqrt(sizes.n_embd),
        logit_softcap=_softcap(file, "gemma3.final_logit_softcapping"),
    )


def read_rotations(file: GGUFFile, hparams: Hparams, style: RopeStyle) -> Sequence[Rotation]:
    """Of each layer: those with a window have a base of their own, and no scaling."""
    base = read_base(file, ROPE_BASE, "gemma3.rope.freq_base", "gemma3.rope.global.freq_base")
    local_base = read_base(file, LOCAL_ROPE_BASE, "gemma3.rope.freq_base_swa", "gemma3.rope.local.freq_base")
    whole = read_rotation(file, hparams, style, base)
    local = Rotation(style, tuple(frequencies(local_base, read_n_rot(file, hparams))))
    return [local if hparams.window_of(layer) else whole for layer in range(hparams.n_layer)]


def _windows(file: GGUFFile, n_layer: int) -> tuple[int, ...]:
    """Of each layer, as `Hparams.window_of` counts: without the row itself."""
    key = "gemma3.attention.sliding_window"
    n_seen = file.get_int(key, 0)  # 0: every layer sees all
    if n_seen == 1 or not 0 <= n_seen <= MAX_WINDOW:
        raise ModelError(f"{key} is {n_seen}, expected 0 or 2 to {MAX_WINDOW}", where=file.name)
    return tuple(n_seen - 1 if is_local and n_seen else 0 for is_local in _pattern(file, n_layer))


def _pattern(file: GGUFFile, n_layer: int) -> Sequence[bool]:
    """Whether each layer has a window: given layer by layer, or as the distance of those that have none."""
    key = "gemma3.attention.sliding_window_pattern"
    given = file.metadata.get(key)
    if isinstance(given, np.ndarray) and given.dtype == np.bool_ and len(given) == n_layer:
        return given.tolist()
    period = file.get_int(key, PERIOD)
    if period < 1:
        raise ModelError(f"{key} is {period}, expected 1 or more, or {n_layer} bools", where=file.name)
    return [(layer + 1) % period != 0 for layer in range(n_layer)]


def _softcap(file: GGUFFile, key: str) -> float:
    """A cap on logits, 0 for none; ModelError when it is no number for that."""
    cap = file.get_float(key, 0.0)
    if not 0 <= cap < math.inf:
        raise ModelError(f"{key} is {cap}, expected a finite number, 0 or more", where=file.name)
    return cap
