"""The families this build runs, by `general.architecture`."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from actors.errors import ModelError, Unsupported
from actors.runner.gguf.reader import GGUFFile
from actors.runner.models import llama, qwen2, qwen3
from actors.runner.models.decoder import AttentionMaker, CacheShape, build
from actors.runner.models.hparams import Hparams
from actors.runner.models.rope import read_rotation
from kernels.dtype import DType
from kernels.ops.rope import RopeStyle
from kernels.program import Program


@dataclass(frozen=True, slots=True)
class Family:
    """What distinguishes one family from another."""

    attention: AttentionMaker
    rope_style: RopeStyle


FAMILIES: Mapping[str, Family] = {
    "llama": Family(llama.LlamaAttention, llama.ROPE_STYLE),
    "qwen2": Family(qwen2.Qwen2Attention, qwen2.ROPE_STYLE),
    "qwen3": Family(qwen3.Qwen3Attention, qwen3.ROPE_STYLE),
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


def build_program(file: GGUFFile, hparams: Hparams, cache: CacheShape) -> Program:
    """The program of any supported model file."""
    family = family_of(hparams.arch)
    factors = _rope_factors(file)
    rotation = read_rotation(file, hparams.arch, family.rope_style, hparams.head_dim, factors)
    return build(file, hparams, cache, rotation, family.attention)


def _rope_factors(file: GGUFFile) -> Sequence[float] | None:
    """The content of `rope_freqs.weight`, [n_rot / 2]: part of the hyper-parameters in all but form."""
    info = file.tensors.get("rope_freqs.weight")
    if info is None:
        return None
    if info.dtype is not DType.F32 or len(info.shape) != 1:
        raise ModelError("rope_freqs.weight must be F32 with one dimension", where=file.name)
    factors = np.frombuffer(file.tensor_bytes("rope_freqs.weight"), np.float32)
    if not (np.isfinite(factors).all() and (factors > 0).all()):
        raise ModelError("rope_freqs.weight must hold positive numbers", where=file.name)
    return [float(factor) for factor in factors]
