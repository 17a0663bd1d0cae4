"""The families this build runs, by `general.architecture`."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from actors.errors import Unsupported
from actors.runner.cache.shape import CacheShape
from actors.runner.gguf.reader import GGUFFile
from actors.runner.models import gemma3, lfm2, llama, llama4, qwen2, qwen3, qwen3moe, t5
from actors.runner.models.decoder import Parts, build
from actors.runner.models.hparams import Hparams, read_sizes
from actors.runner.models.rope import read_base, read_rotation
from kernels.ops.rope import RopeStyle, Rotation
from kernels.program import Program


def read_one_rotation(file: GGUFFile, hparams: Hparams, style: RopeStyle) -> Sequence[Rotation]:
    """One for all layers."""
    base = read_base(file, 10000.0, f"{hparams.arch}.rope.freq_base")
    return (read_rotation(file, hparams, style, base),) * hparams.n_layer


RotationsReader = Callable[[GGUFFile, Hparams, RopeStyle], Sequence[Rotation | None]]


def build_decoder(
    parts: Parts,
    rope_style: RopeStyle,
    read_rotations: RotationsReader,
    file: GGUFFile,
    hparams: Hparams,
    cache: CacheShape,
) -> Program:
    """See `decoder.build`."""
    return build(file, hparams, cache, read_rotations(file, hparams, rope_style), parts)


@dataclass(frozen=True, slots=True)
class Family:
    """What distinguishes one family from another."""

    build: Callable[[GGUFFile, Hparams, CacheShape], Program]
    read_hparams: Callable[[GGUFFile], Hparams]


def decoder(
    parts: Parts,
    rope_style: RopeStyle,
    read_hparams: Callable[[GGUFFile], Hparams] = read_sizes,
    read_rotations: RotationsReader = read_one_rotation,
) -> Family:
    """A family of decoders."""
    return Family(partial(build_decoder, parts, rope_style, read_rotations), read_hparams)


FAMILIES: Mapping[str, Family] = {
    "llama": decoder(Parts(llama.LlamaAttention), llama.ROPE_STYLE),
    "qwen2": decoder(Parts(qwen2.Qwen2Attention), qwen2.ROPE_STYLE),
    "qwen3": decoder(Parts(qwen3.Qwen3Attention), qwen3.ROPE_STYLE),
    "gemma3": decoder(
        Parts(gemma3.Gemma3Attention, gemma3.Gemma3FeedForward),
        gemma3.ROPE_STYLE,
        gemma3.read_hparams,
        gemma3.read_rotations,
    ),
    "lfm2": decoder(
        Parts(qwen3.Qwen3Attention, recurrent=lfm2.ShortConv, head=lfm2.Lfm2Head),
        lfm2.ROPE_STYLE,
        lfm2.read_hparams,
    ),
    "qwen3moe": decoder(
        Parts(qwen3.Qwen3Attention, experts=qwen3moe.Qwen3MoeExperts),
        qwen3moe.ROPE_STYLE,
        qwen3moe.read_hparams,
    ),
    "llama4": decoder(
        Parts(llama4.Llama4Attention, experts=llama4.Llama4Experts),
        llama4.ROPE_STYLE,
        llama4.read_hparams,
        llama4.read_rotations,
    ),
    "t5": Family(t5.build, t5.read_hparams),
}


def family_of(arch: str) -> Family:
    """The family; Unsupported names one that this build does not run."""
    family = FAMILIES.get(arch)
    if family is None:
        raise Unsupported(
            f"model family {arch!r} is not supported",
            where="general.architecture",
            mend=f"this build runs {', '.join(FAMILIES)}",
        )
    return family


def read_hparams(file: GGUFFile) -> Hparams:
    """Sizes from `<arch>.*`; ModelError names a missing key, Unsupported what this build does not run."""
    return family_of(file.get_str("general.architecture")).read_hparams(file)


def build_program(file: GGUFFile, hparams: Hparams, cache: CacheShape) -> Program:
    """The program of any supported model file."""
    return family_of(hparams.arch).build(file, hparams, cache)
