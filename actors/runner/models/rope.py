"""Rope scaling variants of GGUF files, computed once into a `Rotation` (one inverse frequency per pair).

none: arXiv:2104.09864.  linear: arXiv:2306.15595, section 2.3.  yarn: arXiv:2309.00071, section 3.
llama3 factors: a tensor `rope_freqs.weight` that divides each pair's frequency.
"""

import math
from collections.abc import Sequence

import numpy as np

from actors.errors import ModelError, Unsupported
from actors.runner.gguf.reader import GGUFFile
from actors.runner.models.hparams import Hparams
from kernels.dtype import DType
from kernels.ops.rope import RopeStyle, Rotation

YARN_BETA_FAST = 32.0
YARN_BETA_SLOW = 1.0


def read_rotation(file: GGUFFile, hparams: Hparams, style: RopeStyle, base: float) -> Rotation:
    """The rotation that a file's `<arch>.rope.*` keys and its tensor `rope_freqs.weight` describe.

    Unsupported names a scaling type that is not implemented, ModelError what makes no rotation.
    """
    arch = hparams.arch
    n_rot = read_n_rot(file, hparams)
    plain = frequencies(base, n_rot)
    factors = _read_factors(file)
    if factors is not None:
        if len(factors) != len(plain):
            raise ModelError(
                f"rope_freqs.weight has {len(factors)} values, expected {len(plain)}", where=file.name
            )
        plain = [freq / factor for freq, factor in zip(plain, factors, strict=True)]
    kind = file.get_str(f"{arch}.rope.scaling.type", "none")
    old_factor = file.get_float(f"{arch}.rope.scale_linear", 1.0)
    factor = file.get_float(f"{arch}.rope.scaling.factor", old_factor)
    if kind == "none" and old_factor != 1.0:
        kind = "linear"
    match kind:
        case "none":
            return Rotation(style, tuple(plain))
        case "linear":
            return Rotation(style, tuple(freq / factor for freq in plain))
        case "yarn":
            n_ctx_orig = file.get_int(f"{arch}.rope.scaling.original_context_length")
            attn_factor = file.get_float(f"{arch}.rope.scaling.attn_factor", 1.0)
            if not math.isfinite(attn_factor):
                raise ModelError(f"{arch}.rope.scaling.attn_factor is {attn_factor}", where=file.name)
            mixed = yarn(plain, base, n_rot, factor, n_ctx_orig)
            return Rotation(style, tuple(mixed), attn_factor * (1.0 + 0.1 * math.log(factor)))
        case _:
            raise Unsupported(
                f"rope scaling type {kind!r} is not implemented",
                where=f"{file.name}: {arch}.rope.scaling.type",
                mend="use a model with scaling type none, linear, yarn, or llama3 factors",
            )


def read_base(file: GGUFFile, default: float, *keys: str) -> float:
    """The first of these keys that the file has, or the default; ModelError when it is no base."""
    key = next((key for key in keys if key in file.metadata), keys[0])
    base = file.get_float(key, default)
    if not 1 < base < math.inf:  # at 1 every pair turns at one speed; yarn divides by the logarithm
        raise ModelError(f"{key} is {base}, expected a number above 1", where=file.name)
    return base


def read_n_rot(file: GGUFFile, hparams: Hparams) -> int:
    """Rotated values of a head."""
    return file.get_int(f"{hparams.arch}.rope.dimension_count", hparams.head_dim)


def frequencies(base: float, n_rot: int) -> list[float]:
    """Of each pair, [n_rot / 2]."""
    return [base ** (-2.0 * i / n_rot) for i in range(n_rot // 2)]


def _read_factors(file: GGUFFile) -> Sequence[float] | None:
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


def yarn(plain: Sequence[float], base: float, n_rot: int, factor: float, n_ctx_orig: int) -> list[float]:
    """Frequencies from unchanged to interpolated, by how often a pair turns within n_ctx_orig positions."""

    def pair_that_turns(n_times: float) -> float:
        return n_rot * math.log(n_ctx_orig / (n_times * 2 * math.pi)) / (2 * math.log(base))

    low = max(0, math.floor(pair_that_turns(YARN_BETA_FAST)))
    high = min(n_rot - 1, math.ceil(pair_that_turns(YARN_BETA_SLOW)))
    mixed: list[float] = []
    for i, freq in enumerate(plain):
        slow = min(1.0, max(0.0, (i - low) / max(0.001, high - low)))  # 0: turns often, keep; 1: interpolate
        mixed.append(freq / factor * slow + freq * (1.0 - slow))
    return mixed
