"""A load as rounds of questions to the runner, `fit` (sizes only) and `alloc` (real allocations).

After each answer `next_step` says what follows, from all the answers so far and nothing else:

    Try     ask again with this placement
    Accept  the best there is, and the memory suffices: go on to the next round
    Evict   it would fit better, or at all, if other models left this much of a device
    Refuse  it cannot work; the message has the numbers

A round looks for the placement with the most layers on GPUs, on the fewest GPUs, that its own report, and in
the end the allocator, finds room for.  Sizes depend on the placement, so it goes between what was found to
fit and what was not, closer with every answer.  It ends: nothing is asked twice, except in an alloc round
what failed first, as a failure may pass, and the best once a larger one has failed; and no round asks more
than its largest number of times.
"""

from dataclasses import replace
from typing import Final

from actors.scheduler.attempts import Attempt, Round, bounds_of, failing, worth
from actors.scheduler.layout import Costs, Placement, all_on_cpu, gpus_of, layout, n_offloaded, offloaded
from actors.scheduler.shortage import evict_for_gpus, on_host, stuck
from actors.scheduler.sizes import CPU
from actors.scheduler.steps import History, Step, Try
from actors.scheduler.worth import why_slower

N_GUIDED: Final = 8  # attempts of a fit round that trust the latest sizes; halving what is unknown follows
N_FIT_MAX: Final = 18  # attempts; guided ones and 10 halvings, more than any model has layers for
N_ALLOC_MAX: Final = 19  # attempts but for the last, which goes back to what did work


def next_step(history: History) -> Step:
    """What follows the runner's latest answer."""
    return _after_fit(history) if history.latest.round is Round.FIT else _after_alloc(history)


# --- fit ---------------------------------------------------------------------------------------------------


def _after_fit(history: History) -> Step:
    if history.latest.report.failure and not history.latest.key:
        return stuck(history)
    best = max(
        (a for a in history.attempts if not failing(a, history.devices, history.policy)),
        key=lambda attempt: attempt.worth,
        default=None,
    )
    if (wanted := _next_fit(history, best)) is not None:
        return Try(wanted, f"{n_offloaded(wanted)} of {history.latest.report.n_layer + 1} layers on GPUs")
    if best is None:
        return Try(all_on_cpu(history.latest.report.n_layer), "no GPU has room")
    return _settle(history, best)


def _next_fit(history: History, best: Attempt | None) -> Placement | None:
    """A placement that is better than the best so far, and may fit."""
    n_attempts = len(history.attempts)
    if n_attempts >= N_FIT_MAX:
        return None
    bounds, costs = bounds_of(history.attempts, history.devices, history.policy), history.costs()
    hopeful = _hopeful(costs, best)
    guesses = [(costs, True), (hopeful, False), (hopeful, True)]
    if n_attempts > N_GUIDED:
        guesses.insert(0, (costs, False))
    for known, is_bold in guesses:
        wanted = layout(known, history.devices, history.policy, bounds.limits(is_bold=is_bold))
        if _is_better(wanted, best) and _is_new(wanted, history.attempts):
            return wanted
    return None


def _hopeful(costs: Costs, best: Attempt | None) -> Costs:
    """With compute buffers as small as of the best so far: those of a placement too large say too much."""
    used = {device for device, _ in best.key} if best is not None else set[str]()
    graph = {
        device: (best.costs.graph.get(device, 0) if best is not None and device in used else 0)
        for device in costs.graph
        if device != CPU
    }
    return replace(costs, graph={**costs.graph, **graph})


def _is_better(wanted: Placement, best: Attempt | None) -> bool:
    return best is None or worth(wanted) > best.worth


def _is_new(wanted: Placement, attempts: tuple[Attempt, ...]) -> bool:
    return offloaded(wanted) not in {attempt.key for attempt in attempts}


def _settle(history: History, best: Attempt) -> Step:
    """The best placement is known: is it enough, may it be worse than none, does the host hold the rest?"""
    if step := evict_for_gpus(history, best):
        return step
    if history.policy.n_gpu >= 0 and n_offloaded(best.placement) < _n_wanted(history):
        forced = replace(history.policy, is_forced=True)
        wanted = layout(history.costs(), history.devices, forced)
        if _is_new(wanted, history.attempts) and len(history.attempts) < N_FIT_MAX:
            return Try(wanted, f"num_gpu {history.policy.n_gpu} was asked for")
        best = max(reversed(history.attempts), key=lambda attempt: attempt.worth[0])
    elif (slower := why_slower(history, best.placement)) and (none := _without_gpus(history)):
        return on_host(history, none, slower)
    return on_host(history, best, "")


def _n_wanted(history: History) -> int:
    """How many layers `num_gpu` asks for; none without GPUs."""
    if not gpus_of(history.devices):
        return 0
    return min(history.policy.n_gpu, history.latest.report.n_layer + 1)


def _without_gpus(history: History) -> Attempt | None:
    return next((attempt for attempt in history.attempts if not attempt.key), None)


# --- alloc -------------------------------------------------------------------------------------------------


def _after_alloc(history: History) -> Step:
    latest = history.latest
    if latest.report.failure and sum(bool(attempt.report.failure) for attempt in history.allocs) == 1:
        return Try(latest.placement, f"{latest.report.failure}; once more, as that may have passed")
    bad = failing(latest, history.devices, history.policy)
    if CPU in bad:
        return stuck(history)
    # num_gpu leaves no choice; and what was gone back to is what the search ended with
    is_settled = history.policy.n_gpu >= 0 or (not bad and not _is_new(latest.placement, history.allocs[:-1]))
    if history.policy.n_gpu >= 0 and latest.report.failure:
        return stuck(history)
    if is_settled or not any(failing(each, history.devices, history.policy) for each in history.allocs):
        return on_host(history, latest, "")
    best = _best_allocated(history)
    if (wanted := _next_alloc(history, best)) is not None:
        count = f"{n_offloaded(wanted)} of {latest.report.n_layer + 1} layers on GPUs"
        return Try(wanted, f"{latest.report.failure or 'there may be room for more'}; {count}")
    if best is None:
        return stuck(history)
    if best is latest:
        return on_host(history, best, "")
    return Try(best.placement, f"{latest.report.failure or 'too much was taken'}; back to what did fit")


def _best_allocated(history: History) -> Attempt | None:
    """The best attempt that was allocated; not one that failed when it was tried again."""
    answers: dict[frozenset[tuple[str, tuple[int, ...]]], Attempt | None] = {}
    for attempt in history.allocs:
        is_bad = failing(attempt, history.devices, history.policy)
        answers[attempt.key] = None if is_bad else attempt
    allocated = [attempt for attempt in answers.values() if attempt is not None]
    return max(allocated, key=lambda attempt: attempt.worth, default=None)


def _next_alloc(history: History, best: Attempt | None) -> Placement | None:
    """A placement that is better than what was allocated, and may be too; half way up first, then higher."""
    nothing = all_on_cpu(history.latest.report.n_layer)
    if len(history.allocs) >= N_ALLOC_MAX:
        return nothing if best is None and _is_new(nothing, history.allocs) else None
    bounds, costs = bounds_of(history.attempts, history.devices, history.policy), history.costs()
    for is_bold in (False, True):
        devices = bounds.capped(history.devices, history.policy, is_bold=is_bold)
        wanted = layout(costs, devices, history.policy, bounds.limits(is_bold=True))
        if why_slower(history, wanted):
            wanted = nothing
        if _is_better(wanted, best) and _is_new(wanted, history.allocs):
            return wanted
    return None
