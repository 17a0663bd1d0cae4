"""Which inputs of which sequences the next forward pass takes: pure arithmetic over plain values."""

from collections.abc import Sequence
from typing import NamedTuple

from actors.runner.groups import NO_GROUPS, Groups


class Waiting(NamedTuple):
    """A sequence that has inputs to compute."""

    seq_id: int
    n_pending: int  # 1 for a sequence that decodes
    groups: Groups = NO_GROUPS  # of the pending inputs


class Share(NamedTuple):
    """What one sequence gets of a batch; `is_last` when it exhausts the pending inputs: logits are wanted."""

    seq_id: int
    n_inputs: int
    is_last: bool


def compose(
    waiting: Sequence[Waiting],
    n_batch: int,
    start: int,
    n_prompt: int | None = None,
    *,
    may_be_alone: bool = True,
) -> tuple[list[Share], int]:
    """Fill a batch of at most n_batch inputs over all sequences.

    Sequences with one pending input go first: a prompt never delays running streams by more than one batch.
    The rest is filled with prompts, visited round-robin from index `start` (modulo their number); the second
    value is the start of the next call, one past the last prompt that was served.

    n_prompt: inputs of prompts that may join running streams, at least 1; None: as many as there is room for.
    Groups are not cut: one that is larger than what is left waits until its prompt is the first that is
    served; then it may take more than n_prompt, and the whole batch alone if it does not fit beside streams.
    That needs `may_be_alone`, which is for who was not alone in the batch before.
    """
    shares = [Share(w.seq_id, 1, is_last=True) for w in waiting if w.n_pending == 1][:n_batch]
    n_room = left = n_batch - len(shares)
    if shares and n_prompt is not None:
        left = min(left, n_prompt)
    prompts = [w for w in waiting if w.n_pending > 1]
    n_served = 0
    for offset in range(len(prompts)):
        if left <= 0:
            break
        w = prompts[(start + offset) % len(prompts)]
        n_inputs = w.groups.before(min(left, w.n_pending))
        if n_inputs == 0:
            n_inputs = w.groups.after(1)
            if n_served > 0 or (n_inputs > n_room and not may_be_alone):
                break
            if n_inputs > n_room:
                shares.clear()
        shares.append(Share(w.seq_id, n_inputs, is_last=n_inputs == w.n_pending))
        left -= n_inputs
        n_served += 1
    return shares, (start + n_served) % len(prompts) if prompts else 0
