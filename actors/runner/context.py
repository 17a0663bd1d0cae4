"""What to drop when a prompt or a conversation is longer than the context: pure arithmetic on token ids."""

from collections.abc import Sequence


def truncate(tokens: Sequence[int], n_ctx: int, n_keep: int) -> list[int]:
    """Keep the first n_keep inputs and the last ones, n_ctx in all (BEHAVIOUR P21).

    n_keep < 0 keeps as much of the front as possible; one input of the end always stays.
    """
    n_kept = _n_kept(n_ctx, n_keep)
    n_drop = max(0, len(tokens) - n_ctx)
    return [*tokens[:n_kept], *tokens[n_kept + n_drop :]]


def shift(history: Sequence[int], n_ctx: int, n_keep: int) -> list[int]:
    """What stays of a history that has outgrown the context by one: the oldest half after n_keep goes."""
    n_kept = _n_kept(n_ctx, n_keep)
    n_drop = n_discard(n_ctx, n_kept, n_ctx)
    return [*history[:n_kept], *history[n_kept + n_drop :]]


def n_discard(n_ctx: int, n_keep: int, n_inputs: int) -> int:
    """Inputs to drop after the first n_keep so that half of the rest is free (BEHAVIOUR D4, T3)."""
    target_free = max((n_ctx - n_keep) // 2, 1)
    return max(0, target_free - (n_ctx - n_inputs))


def _n_kept(n_ctx: int, n_keep: int) -> int:
    return n_ctx - 1 if n_keep < 0 else min(n_keep, n_ctx - 1)
