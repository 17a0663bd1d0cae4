"""A request becomes a sequence: tokenised, checked, truncated, resumed where another runner stood."""

import secrets
from collections.abc import Sequence as SequenceOf
from typing import NamedTuple

import msgspec

from actors.errors import RequestError
from actors.protocol import Generate, Sampling
from actors.runner.cache.shape import padded
from actors.runner.context import truncate
from actors.runner.groups import NO_GROUPS, Groups, groups_of
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


class Limits(NamedTuple):
    """What a model can do."""

    n_ctx: int  # a request may be content with less
    n_batch: int
    n_vocab: int
    start_token: int = -1  # what a decoder behind an encoder begins with
    page_size: int = 1


def sequence_of(
    request: Generate, seq_id: int, offer: Offer, tokenizer: Tokenizer, limits: Limits
) -> Sequence:
    """RequestError for a prompt that is empty, unknown to the vocabulary, too long or wrongly grouped.

    Takes a while.
    """
    n_ctx = min(request.n_ctx or limits.n_ctx, limits.n_ctx)
    prompt = request.prompt
    tokens = tokenizer.encode(prompt) if isinstance(prompt, str) else list(prompt)
    _check(request, tokens, n_ctx, limits.n_vocab)
    kept, groups = truncate(tokens, _groups(request, len(tokens), limits.n_batch), n_ctx, request.n_keep)
    params = sampling_params(request.sampling)
    most = MAX_PREDICT_CONTEXTS * n_ctx
    limit = request.n_predict if 0 <= request.n_predict <= most else most
    output = Output(tokenizer, request.stop)
    n_dropped = len(tokens) - len(kept)
    sequence = Sequence(
        seq_id, request, params, kept, groups, len(kept), n_dropped, limit, n_ctx, output, offer
    )
    if limits.start_token >= 0:
        _give_to_encoder(sequence, limits)
    output.replay(request.resume)
    sequence.n_drawn = len(request.resume)
    for token in request.resume:
        sequence.history.append(token)
        if len(sequence.history) > sequence.n_most and request.shift:
            # just where the runner before this one did, or what follows would differ
            sequence.shift()
    return sequence


def _give_to_encoder(sequence: Sequence, limits: Limits) -> None:
    """All of the prompt is read at once, in whole pages; the decoder begins behind it with its own token."""
    sequence.n_source = n = len(sequence.history)
    sequence.n_padded = padded(n, limits.page_size)
    sequence.groups = groups_of([(0, sequence.n_padded)])
    filling = [limits.start_token] * (sequence.n_padded - n)
    sequence.history = [*sequence.history, *filling, limits.start_token]


def _groups(request: Generate, n_tokens: int, n_batch: int) -> Groups:
    if not request.groups:
        return NO_GROUPS
    if isinstance(request.prompt, str):
        raise RequestError(
            "groups are of token ids, and the prompt is text",
            where="groups",
            mend="tokenise it first",
        )
    for first, n_inputs in request.groups:
        if first + n_inputs > n_tokens:
            raise RequestError(
                f"a group of {n_inputs} inputs from {first} on goes beyond the prompt's {n_tokens}",
                where="groups",
            )
    groups = groups_of(request.groups)
    longest = max((end - begin for begin, end in groups.spans), default=0)
    if longest > n_batch:
        raise RequestError(
            f"a group of {longest} inputs does not fit into a batch of {n_batch}",
            where="groups",
            mend="load the model with a larger n_batch",
        )
    return groups


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
