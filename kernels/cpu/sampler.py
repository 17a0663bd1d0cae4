"""The native sampler.  Contract: `kernels/ops/sampling.py`."""

import numpy as np

from kernels.cpu import _cpu
from kernels.ops.op import F32, I32
from kernels.ops.sampling import MAX_TOP_LOGPROBS, SEED_MASK, Mask, fault_of
from kernels.ops.sampling import NanLogits as NanLogits
from kernels.ops.sampling import SamplingParams as SamplingParams


def sample(logits: F32, history: I32, params: SamplingParams, position: int, mask: Mask | None = None) -> int:
    """The next token.  logits [n_vocab] f32, history [n] i32 oldest first, mask [n_vocab] u8 (0 forbids).

    position counts the tokens before this one: with the seed it keys the draw.  Arrays are contiguous; runs
    without the GIL.  Raises NanLogits for logits without meaning, SamplingError when the mask leaves nothing
    or history holds an id outside the vocabulary, ValueError for an empty row or a mask of another length.
    """
    _expect_row(logits)
    if mask is not None and mask.shape != logits.shape:
        raise ValueError(f"mask has shape {mask.shape}, logits {logits.shape}")
    native = native_params(params, position & SEED_MASK)
    token = _cpu.sample(logits, history, mask, native)
    if token < 0:
        raise fault_of(token, logits.size)
    return token


def native_params(params: SamplingParams, position: int = 0) -> _cpu.SamplingParams:
    """The parameters as the native side has them; position below 2^64."""
    return _cpu.SamplingParams(
        temperature=params.temperature,
        top_k=params.top_k,
        top_p=params.top_p,
        min_p=params.min_p,
        typical_p=params.typical_p,
        repeat_last_n=params.repeat_last_n,
        repeat_penalty=params.repeat_penalty,
        presence_penalty=params.presence_penalty,
        frequency_penalty=params.frequency_penalty,
        seed=params.seed & SEED_MASK,
        position=position,
    )


def logprobs(logits: F32, token: int, top_k: int) -> tuple[float, list[tuple[int, float]]]:
    """Natural log-probabilities of raw logits [n_vocab] f32: of token, and of the top_k likeliest in order.

    ValueError unless top_k is in 0..20 and token in the vocabulary; NanLogits for logits without meaning.
    """
    _expect_row(logits)
    if not 0 <= top_k <= MAX_TOP_LOGPROBS:
        raise ValueError(f"top_k is {top_k}, expected 0..{MAX_TOP_LOGPROBS}")
    if not 0 <= token < logits.size:
        raise ValueError(f"token {token} is outside 0..{logits.size - 1}")
    is_finite, chosen, top = _cpu.logprobs(logits, token, top_k)
    if not is_finite:
        raise NanLogits
    return chosen, top


def _expect_row(logits: F32) -> None:
    if logits.ndim != 1 or logits.size == 0 or logits.dtype != np.float32:
        raise ValueError(f"logits: expected f32 [n_vocab], got {logits.dtype} {logits.shape}")
