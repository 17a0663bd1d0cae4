"""lfm2: gated short convolutions, with grouped-query attention and QK-norm in a few layers between them.

arXiv:2511.23404, section 2.  Layers without key/value heads are convolutions; attention is that of qwen3.
"""

from dataclasses import replace

from actors.errors import ModelError
from actors.runner.gguf.reader import GGUFFile
from actors.runner.models.decoder import Batch, Head
from actors.runner.models.hparams import Hparams, read_sizes
from actors.runner.models.module import Layer, Linear, Module, RMSNorm, gguf
from kernels.dtype import DType
from kernels.ops.rope import Rotation
from kernels.tensor import Tensor

ROPE_STYLE = "neox"
MAX_TAPS = 16


class ShortConv(Module):
    """x [n_tokens, n_embd] -> [n_tokens, n_embd]; each channel sees its last n_tap inputs."""

    into: Linear = gguf("shortconv.in_proj", "conv_width", "n_embd")
    conv: Layer = gguf("shortconv.conv", "n_embd", "n_tap")
    output: Linear = gguf("shortconv.out_proj", "n_embd", "n_embd")

    def __call__(
        self, batch: Batch, layer: int, rotation: Rotation | None, x: Tensor, residual: Tensor
    ) -> Tensor:
        """Of normalised x, added to the residual stream; positions do not matter."""
        del rotation
        h = self.hparams
        state = self.builder.state(f"conv.{layer}", (batch.cache.n_rows, (h.n_tap - 1) * h.n_embd), DType.F32)
        mixed = self.builder.short_conv(
            self.into(x), self.conv.weight, state, batch.rows, batch.sources, batch.targets
        )
        return self.output(mixed, residual)


class Lfm2Head(Head):
    """The last norm has the name of one that follows the embedding."""

    norm: RMSNorm = gguf("token_embd_norm", "n_embd")


def read_hparams(file: GGUFFile) -> Hparams:
    """Sizes; ModelError where the convolutions make no sense."""
    sizes = read_sizes(file)
    key = "lfm2.shortconv.l_cache"
    n_tap = file.get_int(key)
    if not 2 <= n_tap <= MAX_TAPS:
        raise ModelError(f"{key} is {n_tap}, expected 2 to {MAX_TAPS}", where=file.name)
    n_head_kv = file.get_per_layer("lfm2.attention.head_count_kv", sizes.n_layer, sizes.n_head)
    return replace(sizes, n_tap=n_tap, recurrent=tuple(n == 0 for n in n_head_kv))
