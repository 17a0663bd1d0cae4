"""The families this build runs, by `general.architecture`."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from actors.errors import Unsupported
from actors.runner.cache.shape import CacheShape
from actors.runner.gguf.reader import GGUFFile
from actors.runner.models import gemma3, lfm2, llama, llama4, qwen2, qwen3, qwen3moe
from actors.runner.models.decoder import Parts, build
from actors.runner.models.hparams import Hparams, read_sizes
from actors.runner.models.rope import read_base, read_rotation
from kernels.ops.rope import RopeStyle, Rotation
from kernels.program import Program


def read_one_rotation(file: GGUFFile, hparams: Hparams, style: RopeStyle) -> Sequence[Rotation]:
    """One for all layers."""
    base = read_base(file, 10000.0, f"{hparams.arch}.rope.freq_base")
    return (read_rotation(file, hparams, style, base),) * hparams.n_layer


@dataclass(frozen=True, slots=True)
class Family:
    """What distinguishes one family from another."""

    parts: Parts
    rope_style: RopeStyle
    read_hparams: Callable[[GGUFFile], Hparams] = read_sizes
    read_rotations: Callable[[GGUFFile, Hparams, RopeStyle], Sequence[Rotation | None]] = read_one_rotation


FAMILIES: Mapping[str, Family] = {
    "llama": Family(Parts(llama.LlamaAttention), llama.ROPE_STYLE),
    "qwen2": Family(Parts(qwen2.Qwen2Attention), qwen2.ROPE_STYLE),
    "qwen3": Family(Parts(qwen3.Qwen3Attention), qwen3.ROPE_STYLE),
    "gemma3": Family(
        Parts(gemma3.Gemma3Attention, gemma3.Gemma3FeedForward),
        gemma3.ROPE_STYLE,
        gemma3.read_hparams,
        gemma3.read_rotations,
    ),
    "lfm2": Family(
        Parts(qwen3.Qwen3Attention, recurrent=lfm2.ShortConv, head=lfm2.Lfm2Head),
        lfm2.ROPE_STYLE,
        lfm2.read_hparams,
    ),
    "qwen3moe": Family(
        Parts(qwen3.Qwen3Attention, experts=qwen3moe.Qwen3MoeExperts),
        qwen3moe.ROPE_STYLE,
        qwen3moe.read_hparams,
    ),
    "llama4": Family(
        Parts(llama4.Llama4Attention, experts=llama4.Llama4Experts),
        llama4.ROPE_STYLE,
        llama4.read_hparams,
        llama4.read_rotations,
    ),
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
    family = family_of(hparams.arch)
    rotations = family.read_rotations(file, hparams, family.rope_style)
    return build(file, hparams, cache, rotations, family.parts)
