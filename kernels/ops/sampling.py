"""Choice of the next token from a row of logits.  BEHAVIOUR section E; a function of its arguments alone.

In this order, in float64:

1. The mask: a forbidden token has logit -inf.
2. Penalties, once for each token among the last `repeat_last_n` of the history (all of it when negative):
   a positive logit is divided by `repeat_penalty`, another multiplied with it; then `frequency_penalty` times
   the token's count and `presence_penalty` are subtracted.
3. Temperature 0 or less: the largest logit, of equals the lowest id.  No randomness.
4. Top-k: the k largest logits, of equals the lower ids; k <= 0 keeps all.
5. Weights exp((logit - highest) / max(temperature, 1e-7)).  Probabilities are shares of the kept weight.
6. Typical-p below 1 (arXiv:2202.00666): the smallest set with a probability of more than typical_p whose
   surprise -ln p is nearest to the entropy.
7. Top-p below 1: the smallest set of the likeliest with more than top_p of the weight; top_p 0 keeps one.
8. Min-p: those with at least min_p (1 at most) times the largest weight.
9. The draw: u in [0, 1) times the kept weight; the first token, by id, at which the running sum exceeds it.
   Walking by id and not by weight makes the draw robust: noise in the logits reorders nothing.

u comes from Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011) with key
`seed` and counter `position`, so that the same request draws the same numbers whatever shares its batch.
"""

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from kernels.ops.op import F32, I32

F64 = npt.NDArray[np.float64]
Mask = npt.NDArray[np.uint8]

MIN_TEMPERATURE = 1e-7
MAX_TOP_LOGPROBS = 20
SEED_MASK = 2**64 - 1


class SamplingError(ValueError):
    """No token can be chosen with these arguments; costs the caller's sequence, nothing else."""


class NanLogits(SamplingError):
    """The logits hold NaN or +infinity, or nothing finite: the model's output is unusable."""

    def __init__(self) -> None:
        super().__init__(
            "the logits hold NaN or infinity: the model file is damaged, or the model overflowed"
        )


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """Parameters of one request; ValueError names one that has no meaning.  `seed` counts modulo 2^64."""

    temperature: float = 0.8
    top_k: int = 40
    top_p: float = 0.9
    min_p: float = 0.0
    typical_p: float = 1.0
    repeat_last_n: int = 64
    repeat_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    seed: int = 0

    @property
    def has_penalties(self) -> bool:
        """Whether the tokens before matter at all."""
        return self.repeat_penalty != 1 or self.presence_penalty != 0 or self.frequency_penalty != 0

    def __post_init__(self) -> None:
        """Refuse what would make the arithmetic meaningless."""
        for name in ("temperature", "top_p", "min_p", "typical_p", "presence_penalty", "frequency_penalty"):
            value = getattr(self, name)
            if not math.isfinite(value):
                raise ValueError(f"{name} is {value}, expected a finite number")
        if not (math.isfinite(self.repeat_penalty) and self.repeat_penalty > 0):
            raise ValueError(
                f"repeat_penalty is {self.repeat_penalty}, expected a number above 0 (1 turns it off)"
            )


def sample_ref(
    logits: F32, history: I32, params: SamplingParams, position: int, mask: Mask | None = None
) -> int:
    """The native sampler's judge.  logits [n_vocab] f32, history [n] i32 oldest first, mask [n_vocab] u8.

    Raises NanLogits, or SamplingError when the mask leaves nothing or history is outside the vocabulary.
    """
    if bool(np.any(np.isnan(logits) | np.isposinf(logits))) or not bool(np.any(np.isfinite(logits))):
        raise NanLogits
    wide = logits.astype(np.float64)
    if mask is not None:
        wide[mask == 0] = -np.inf
    penalize(wide, history, params)
    best = int(np.argmax(wide))
    if not wide[best] < np.inf:  # a penalty near 0 overflows
        raise NanLogits
    if wide[best] == -np.inf:
        raise SamplingError("the mask forbids every token that the model gives a finite logit")
    if params.temperature <= 0:
        return best
    ids, logit, weight = _candidates(wide, params)
    ids, logit, weight = _typical(ids, logit, weight, params)
    ids, logit, weight = _top_p(ids, logit, weight, params)
    kept = weight >= min(params.min_p, 1.0) * weight.max()
    ids, logit, weight = ids[kept], logit[kept], weight[kept]
    running = np.cumsum(weight)
    above = np.flatnonzero(running > uniform(params.seed, position) * running[-1])
    return int(ids[above[0]] if above.size else ids[np.argmax(logit)])


def penalize(logits: F64, history: I32, params: SamplingParams) -> None:
    """Step 2, in place."""
    n_seen = len(history) if params.repeat_last_n < 0 else min(params.repeat_last_n, len(history))
    tokens, counts = np.unique(history[len(history) - n_seen :], return_counts=True)
    if tokens.size and (tokens[0] < 0 or tokens[-1] >= logits.size):
        raise SamplingError(f"history holds token ids outside 0..{logits.size - 1}")
    seen = logits[tokens]
    seen = np.where(seen > 0, seen / params.repeat_penalty, seen * params.repeat_penalty)
    logits[tokens] = seen - (counts * params.frequency_penalty + params.presence_penalty)


def _candidates(logits: F64, params: SamplingParams) -> tuple[npt.NDArray[np.int64], F64, F64]:
    """Steps 4 and 5: ids ascending, their logits and weights."""
    ids = np.argsort(-logits, kind="stable")
    if params.top_k > 0:
        ids = ids[: params.top_k]
    ids = np.sort(ids)
    scaled = (logits[ids] - logits.max()) / max(params.temperature, MIN_TEMPERATURE)
    return ids, logits[ids], np.exp(scaled)


def _typical(
    ids: npt.NDArray[np.int64], logit: F64, weight: F64, params: SamplingParams
) -> tuple[npt.NDArray[np.int64], F64, F64]:
    """Step 6."""
    if params.typical_p >= 1:
        return ids, logit, weight
    total = np.cumsum(weight)[-1]
    scaled = (logit - logit.max()) / max(params.temperature, MIN_TEMPERATURE)
    surprise = np.log(total) - scaled
    entropy = np.cumsum(np.where(weight > 0, weight / total * np.where(weight > 0, surprise, 0.0), 0.0))[-1]
    order = np.argsort(np.abs(surprise - entropy), kind="stable")
    kept = np.sort(order[: _n_until(np.cumsum(weight[order] / total), params.typical_p)])
    return ids[kept], logit[kept], weight[kept]


def _top_p(
    ids: npt.NDArray[np.int64], logit: F64, weight: F64, params: SamplingParams
) -> tuple[npt.NDArray[np.int64], F64, F64]:
    """Step 7."""
    if params.top_p >= 1:
        return ids, logit, weight
    order = np.argsort(-logit, kind="stable")
    wanted = max(params.top_p, 0.0) * np.cumsum(weight)[-1]
    kept = np.sort(order[: _n_until(np.cumsum(weight[order]), wanted)])
    return ids[kept], logit[kept], weight[kept]


def _n_until(running: F64, limit: float) -> int:
    """How many terms it takes until the running sum exceeds limit; all when it never does."""
    above = np.flatnonzero(running > limit)
    return int(above[0]) + 1 if above.size else running.size


def logprobs_ref(logits: F32, token: int, top_k: int) -> tuple[float, list[tuple[int, float]]]:
    """Log-softmax of raw logits: the token's, and the top_k largest with their ids, likeliest first."""
    if bool(np.any(np.isnan(logits) | np.isposinf(logits))) or not bool(np.any(np.isfinite(logits))):
        raise NanLogits
    wide = logits.astype(np.float64)
    log_total = wide.max() + math.log(math.fsum(np.exp(wide - wide.max())))
    top = np.argsort(-wide, kind="stable")[:top_k]
    return float(wide[token] - log_total), [(int(i), float(wide[i] - log_total)) for i in top]


def philox_ref(counter: tuple[int, int, int, int], key: tuple[int, int]) -> tuple[int, int, int, int]:
    """Philox4x32-10: four 32-bit words."""
    c, k = counter, key
    for _ in range(10):
        a, b = 0xD2511F53 * c[0], 0xCD9E8D57 * c[2]
        c = ((b >> 32) ^ c[1] ^ k[0], b & 0xFFFFFFFF, (a >> 32) ^ c[3] ^ k[1], a & 0xFFFFFFFF)
        k = ((k[0] + 0x9E3779B9) & 0xFFFFFFFF, (k[1] + 0xBB67AE85) & 0xFFFFFFFF)
    return c


def uniform(seed: int, position: int) -> float:
    """u in [0, 1) with 53 bits, for a seed and a position, both modulo 2^64."""
    s, p = seed & SEED_MASK, position & SEED_MASK
    words = philox_ref((p & 0xFFFFFFFF, p >> 32, 0, 0), (s & 0xFFFFFFFF, s >> 32))
    return ((words[1] << 32 | words[0]) >> 11) * 2.0**-53
