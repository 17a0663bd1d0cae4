"""llama4 (text): three layers that see their own chunk, with rope, to one that sees all, without; experts.

Layers with rope norm queries and keys without weights; those without scale queries as contexts grow
(arXiv:2501.19399).  Every n-th layer has experts beside a part that all rows go through: the router's sigmoid
scales what an expert is given.  Other layers are dense.

The published files leave out what all published models have in common; that is what the defaults are.
"""

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import ClassVar

from actors.errors import ModelError, Unsupported
from actors.runner.gguf.reader import GGUFFile
from actors.runner.models.decoder import Attention, FeedForward
from actors.runner.models.experts import SIGMOID, Experts, read_experts
from actors.runner.models.hparams import Hparams, refuse_images
from actors.runner.models.module import Linear, Weights, gguf
from actors.runner.models.rope import read_base, read_rotation
from kernels.ops.experts import Gating
from kernels.ops.rope import RopeStyle, Rotation
from kernels.tensor import Tensor

ROPE_STYLE = "norm"
ROPE_BASE = 5e5
PERIOD = 4  # every fourth layer sees all
CHUNK = 8192
TEMPERATURE, TEMPERATURE_LENGTH = 0.1, 8192
N_EXPERT_WITHOUT_NORM = 128  # of the one model that does not norm queries and keys, where no key says so
MAX_CHUNK = 1 << 24


class Llama4Attention(Attention):
    """x [n_tokens, n_embd] -> [n_tokens, n_embd].

    The norm comes after rope where the model is described, and here before: rope turns pairs and changes no
    length, so that both are the same.
    """

    def queries(self, q: Tensor, layer: int) -> Tensor:
        """Normed per head in layers with rope."""
        return self._normed(q, layer)

    def keys(self, k: Tensor, layer: int) -> Tensor:
        """Normed per head in layers with rope."""
        return self._normed(k, layer)

    def _normed(self, heads: Tensor, layer: int) -> Tensor:
        h = self.hparams
        if not h.is_unit_normed or not has_rope(layer, h):
            return heads
        return self.builder.unit_norm(heads, h.head_dim, h.eps)


class SharedExpert(FeedForward):
    """x [n_tokens, n_embd] -> [n_tokens, n_embd] through the part that all rows go through."""

    gate: Linear = gguf("ffn_gate_shexp", "n_ff_exp", "n_embd")
    up: Linear = gguf("ffn_up_shexp", "n_ff_exp", "n_embd")
    down: Linear = gguf("ffn_down_shexp", "n_embd", "n_ff_exp")


class Llama4Experts(Experts):
    """x [n_tokens, n_embd] -> [n_tokens, n_embd]."""

    gating: ClassVar[Gating] = "sigmoid"
    weighs_input: ClassVar[bool] = True

    def __init__(self, weights: Weights, prefix: str = "") -> None:
        super().__init__(weights, prefix)
        self.shared = SharedExpert(weights, prefix)

    def __call__(self, x: Tensor, residual: Tensor) -> Tensor:
        """Both, added to the residual stream."""
        return super().__call__(x, self.shared(x, residual))


def has_rope(layer: int, hparams: Hparams) -> bool:
    """Whether a layer knows positions; those that see all do not."""
    return bool(hparams.chunk_of(layer)) or not any(hparams.chunks)


def read_hparams(file: GGUFFile) -> Hparams:
    """Sizes; ModelError for what makes no sense, Unsupported for a file that also sees images."""
    refuse_images(file)
    sizes = read_experts(file, gating_func=SIGMOID, n_shared=1, has_norm=False)
    step = _within(file, "llama4.interleave_moe_layer_step", 1, sizes.n_layer)
    chunk = _within(file, "llama4.attention.chunk_size", CHUNK, MAX_CHUNK)
    temperature = file.get_float("llama4.attention.temperature_scale", TEMPERATURE)
    if not 0 <= temperature < math.inf:
        raise ModelError(
            f"llama4.attention.temperature_scale is {temperature}, expected a finite number, 0 or more",
            where=file.name,
        )
    # a window of 0, and nothing else, says that there are no chunks
    is_chunked = file.get_int("llama4.attention.sliding_window", chunk) != 0
    return replace(
        sizes,
        experts=tuple((layer + 1) % step == 0 for layer in range(sizes.n_layer)),
        chunks=tuple(chunk if is_chunked and (i + 1) % PERIOD else 0 for i in range(sizes.n_layer)),
        is_unit_normed=file.get_bool("llama4.use_qk_norm", sizes.n_expert != N_EXPERT_WITHOUT_NORM),
        temperature=temperature,
        temperature_length=_within(
            file, "llama4.attention.temperature_length", TEMPERATURE_LENGTH, MAX_CHUNK
        ),
    )


def read_rotations(file: GGUFFile, hparams: Hparams, style: RopeStyle) -> Sequence[Rotation | None]:
    """Of each layer; Unsupported for a scaling that changes lengths, for a norm after it takes that off."""
    rotation = read_rotation(file, hparams, style, read_base(file, ROPE_BASE, "llama4.rope.freq_base"))
    if rotation.magnitude != 1.0:
        raise Unsupported(
            "llama4 with a rope scaling that changes magnitudes (yarn) is not implemented",
            where=f"{file.name}: llama4.rope.scaling.type",
        )
    return [rotation if has_rope(layer, hparams) else None for layer in range(hparams.n_layer)]


def _within(file: GGUFFile, key: str, default: int, most: int) -> int:
    """An integer from 1 on; ModelError when it is none."""
    value = file.get_int(key, default)
    if not 1 <= value <= most:
        raise ModelError(f"{key} is {value}, expected 1 to {most}", where=file.name)
    return value
