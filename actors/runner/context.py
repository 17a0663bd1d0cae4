"""What to drop when a prompt or a conversation is longer than the context: pure arithmetic on token ids."""

from collections.abc import Sequence

from actors.errors import RequestError
from actors.runner.groups import Groups


def truncate(tokens: Sequence[int], groups: Groups, n_ctx: int, n_keep: int) -> tuple[list[int], Groups]:
    """Keep the first n_keep inputs and the last ones, n_ctx in all or a group less (BEHAVIOUR P21).

    n_keep < 0 keeps as much of the front as possible; one input of the end always stays.  RequestError where
    that is of a group which does not fit.
    """
    n_kept = _n_kept(groups, n_ctx, n_keep)
    n_drop = max(0, len(tokens) - n_ctx)
    if n_drop and groups.after(n_kept + n_drop) == len(tokens):
        raise RequestError(
            f"the prompt ends with a group of inputs that do not fit: {len(tokens)} tokens, {n_ctx} fit",
            where="prompt",
            mend="raise num_ctx, or shorten the prompt",
        )
    return _without(tokens, groups, n_kept, n_kept + n_drop)


def shift(history: Sequence[int], groups: Groups, n_ctx: int, n_keep: int) -> tuple[list[int], Groups]:
    """What stays of a history that has outgrown the context by one: the oldest half after n_keep goes."""
    n_kept = _n_kept(groups, n_ctx, n_keep)
    return _without(history, groups, n_kept, n_kept + n_discard(n_ctx, n_kept, n_ctx))


def n_discard(n_ctx: int, n_keep: int, n_inputs: int) -> int:
    """Inputs to drop after the first n_keep so that half of the rest is free (BEHAVIOUR D4, T3)."""
    target_free = max((n_ctx - n_keep) // 2, 1)
    return max(0, target_free - (n_ctx - n_inputs))


def _without(tokens: Sequence[int], groups: Groups, first: int, last: int) -> tuple[list[int], Groups]:
    """Drop from first to last, and the rest of a group that last lies in."""
    last = groups.after(last) if last > first else last
    return [*tokens[:first], *tokens[last:]], groups.without(first, last)


def _n_kept(groups: Groups, n_ctx: int, n_keep: int) -> int:
    """Of the front, short of a group that would be cut."""
    return groups.before(n_ctx - 1 if n_keep < 0 else min(n_keep, n_ctx - 1))
