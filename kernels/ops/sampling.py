"""Choice of the next token from a row of logits.  BEHAVIOUR section E; a function of its arguments alone.

In this order, in float64:

1. The mask: a forbidden token has logit -inf.
2. Penalties, once for each token among the last `repeat_last_n` of the history (all of it when negative):
   a positive logit is divided by `repeat_penalty`, another multiplied with it; then `frequency_penalty` times
   the token's count and `presence_penalty` are subtracted.
3. Temperature 0 or less: the largest logit, of equals the lowest id.  No randomness.
4. Top-k: the k largest logits, of equals the lower ids; k <= 0 keeps all.
5. Weights 2^44 exp((logit - highest) / max(temperature, 1e-7)), rounded to whole numbers.  Their sums are
   exact, so a device may add in any order.  Probabilities are shares of the kept weight.
6. Typical-p below 1 (arXiv:2202.00666): the smallest set with a probability of more than typical_p whose
   surprise -ln p is nearest to the entropy.  Both are taken relative to the likeliest's: (highest - logit) /
   temperature, and the mean of that; its products with the weights are rounded to whole numbers, too.
7. Top-p below 1: the smallest set of the likeliest with more than top_p of the weight; top_p 0 keeps one.
8. Min-p: those with at least min_p (1 at most) times the largest weight.
9. The draw: u in [0, 1) times the kept weight, rounded down; the first token, by id, at which the running sum
   exceeds it.  Walking by id and not by weight makes the draw robust: noise in the logits reorders nothing.

In 6 and 7 equals go by id, lower first.  `weight_of` is the same arithmetic, operation by operation, as in
kernels/cuda/shares.cuh, which the CPU's sampler and the GPU's are compiled with: the exponential functions of
two libraries differ in last bits.  A vocabulary has at most 2^19 tokens.

u comes from Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011) with key
`seed` and counter `position`, so that the same request draws the same numbers whatever shares its batch.
"""

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from kernels.ops.op import F32, I32

F64 = npt.NDArray[np.float64]
I64 = npt.NDArray[np.int64]
U64 = npt.NDArray[np.uint64]
Mask = npt.NDArray[np.uint8]

MIN_TEMPERATURE = 1e-7
MAX_TOP_LOGPROBS = 20
SEED_MASK = 2**64 - 1
WEIGHT_BITS = 44
RANDOM_BITS = 53
MAX_VOCAB = 2**19
NOT_FINITE, ALL_MASKED, BAD_HISTORY = -1, -2, -3  # what samplers give instead of a token


class SamplingError(ValueError):
    """No token can be chosen with these arguments; costs the caller's sequence, nothing else."""


class NanLogits(SamplingError):
    """The logits hold NaN or +infinity, or nothing finite: the model's output is unusable."""

    def __init__(self) -> None:
        super().__init__(
            "the logits hold NaN or infinity: the model file is damaged, or the model overflowed"
        )


def fault_of(code: int, n_vocab: int) -> SamplingError:
    """What a code that is given instead of a token means."""
    if code == ALL_MASKED:
        return SamplingError("the mask forbids every token that the model gives a finite logit")
    if code == BAD_HISTORY:
        return SamplingError(f"history holds token ids outside 0..{n_vocab - 1}")
    return NanLogits()


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
    kept = weight.astype(np.float64) >= min(params.min_p, 1.0) * float(weight.max())
    ids, logit, weight = ids[kept], logit[kept], weight[kept]
    running = np.cumsum(weight)
    target = random_bits(params.seed, position) * int(running[-1]) >> RANDOM_BITS
    above = np.flatnonzero(running > np.uint64(target))
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


def weight_of(scaled: F64) -> U64:
    """exp(scaled) of scaled <= 0, times 2^44, to the nearest whole number; see `shares.cuh`."""
    near = np.where(scaled > -40.0, scaled, 0.0)
    turns = np.rint(near * 1.4426950408889634)
    rest = (near + turns * -0.693147180369123816490) + turns * -1.90821492927058770002e-10
    total = np.full_like(near, 1.0 / math.factorial(13))
    for i in range(12, -1, -1):
        total = total * rest + 1.0 / math.factorial(i)
    weights = np.rint(np.ldexp(total, WEIGHT_BITS + turns.astype(np.int32))).astype(np.uint64)
    return np.where(scaled > -40.0, weights, np.uint64(0))


def _candidates(logits: F64, params: SamplingParams) -> tuple[I64, F64, U64]:
    """Steps 4 and 5: ids ascending, their logits and weights."""
    ids = np.argsort(-logits, kind="stable")
    if params.top_k > 0:
        ids = ids[: params.top_k]
    ids = np.sort(ids)
    scaled = (logits[ids] - logits.max()) / max(params.temperature, MIN_TEMPERATURE)
    return ids, logits[ids], weight_of(scaled)


def _typical(ids: I64, logit: F64, weight: U64, params: SamplingParams) -> tuple[I64, F64, U64]:
    """Step 6."""
    if params.typical_p >= 1:
        return ids, logit, weight
    total = float(np.sum(weight))
    below = (logit.max() - logit) / max(params.temperature, MIN_TEMPERATURE)
    moments = weight.astype(np.float64) * np.where(weight > 0, below, 0.0)
    mean = float(np.sum(np.rint(moments).astype(np.uint64))) / total
    order = np.argsort(np.abs(below - mean), kind="stable")
    kept = np.sort(order[: _n_until(np.cumsum(weight[order]), max(params.typical_p, 0.0) * total)])
    return ids[kept], logit[kept], weight[kept]


def _top_p(ids: I64, logit: F64, weight: U64, params: SamplingParams) -> tuple[I64, F64, U64]:
    """Step 7."""
    if params.top_p >= 1:
        return ids, logit, weight
    order = np.argsort(-logit, kind="stable")
    wanted = max(params.top_p, 0.0) * float(np.sum(weight))
    kept = np.sort(order[: _n_until(np.cumsum(weight[order]), wanted)])
    return ids[kept], logit[kept], weight[kept]


def _n_until(running: U64, limit: float) -> int:
    """How many terms it takes until the running sum exceeds limit; all when it never does."""
    above = np.flatnonzero(running.astype(np.float64) > limit)
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


def random_bits(seed: int, position: int) -> int:
    """53 bits, for a seed and a position, both modulo 2^64; over 2^53 they are u."""
    s, p = seed & SEED_MASK, position & SEED_MASK
    words = philox_ref((p & 0xFFFFFFFF, p >> 32, 0, 0), (s & 0xFFFFFFFF, s >> 32))
    return (words[1] << 32 | words[0]) >> 11
