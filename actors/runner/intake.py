"""A request becomes a sequence: tokenised, checked, truncated, resumed where another runner stood."""

import secrets
from collections.abc import Sequence as SequenceOf

import msgspec

from actors.errors import RequestError
from actors.protocol import Generate, Sampling
from actors.runner.context import shift, truncate
from actors.runner.output import Output
from actors.runner.sequence import MAX_PREDICT_CONTEXTS, Offer, Sequence
from actors.runner.tokenizer.tokenizer import Tokenizer
from kernels.ops.sampling import MAX_TOP_LOGPROBS, SamplingParams

SEED_BITS = 63


def sampling_params(sampling: Sampling) -> SamplingParams:
    """The kernels' words for a request's, a seed where there is none.  RequestError names a bad value."""
    values = msgspec.structs.asdict(sampling)
    if sampling.seed < 0:
        values["seed"] = secrets.randbits(SEED_BITS)
    try:
        return SamplingParams(**values)
    except ValueError as exc:
        raise RequestError(str(exc), where="sampling") from exc


def sequence_of(
    request: Generate, seq_id: int, offer: Offer, tokenizer: Tokenizer, n_ctx: int, n_vocab: int
) -> Sequence:
    """RequestError for a prompt that is empty, unknown to the vocabulary or too long.  Takes a while.

    n_ctx: of the model; the request may be content with less.
    """
    n_ctx = min(request.n_ctx or n_ctx, n_ctx)
    prompt = request.prompt
    tokens = tokenizer.encode(prompt) if isinstance(prompt, str) else list(prompt)
    _check(request, tokens, n_ctx, n_vocab)
    kept = truncate(tokens, n_ctx, request.n_keep)
    params = sampling_params(request.sampling)
    most = MAX_PREDICT_CONTEXTS * n_ctx
    limit = request.n_predict if 0 <= request.n_predict <= most else most
    output = Output(tokenizer, request.stop)
    n_dropped = len(tokens) - len(kept)
    sequence = Sequence(seq_id, request, params, kept, len(kept), n_dropped, limit, n_ctx, output, offer)
    output.replay(request.resume)
    sequence.n_drawn = len(request.resume)
    for token in request.resume:
        sequence.history.append(token)
        if len(sequence.history) > n_ctx and request.shift:
            # just where the runner before this one did, or what follows would differ
            sequence.history = shift(sequence.history, n_ctx, request.n_keep)
    return sequence


def _check(request: Generate, tokens: SequenceOf[int], n_ctx: int, n_vocab: int) -> None:
    if not tokens:
        raise RequestError("the prompt is empty", where="runner", mend="send at least one token")
    if request.n_logprobs > MAX_TOP_LOGPROBS:
        raise RequestError(
            f"{request.n_logprobs} log-probabilities a token were asked for, at most {MAX_TOP_LOGPROBS} "
            "are given",
            where="n_logprobs",
        )
    worst = max(max(tokens), max(request.resume, default=0))
    if worst >= n_vocab:
        raise RequestError(f"token {worst} is outside the vocabulary of {n_vocab}", where="prompt")
    if len(tokens) > n_ctx and not (request.truncate and request.shift):
        raise RequestError(
            f"the prompt is longer than the context length currently available: "
            f"{len(tokens)} tokens, {n_ctx} fit",
            where="prompt",
            mend="raise num_ctx, shorten the prompt, or allow truncation",
        )
