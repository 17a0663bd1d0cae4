"""Whether layers on GPUs are worth it: a few of them can make decoding slower than none."""

from actors.scheduler.layout import Placement, all_on_cpu, host_bytes, n_offloaded
from actors.scheduler.needs import free_bytes
from actors.scheduler.sizes import CPU
from actors.scheduler.speed import token_s
from actors.scheduler.steps import History


def why_slower(history: History, placement: Placement) -> str:
    """Why a few layers on GPUs would make decoding slower than none; "" where they do not.

    Only for part of the layers: with all of them, prompts gain more than decoding could lose.
    """
    n_gpu, costs = n_offloaded(placement), history.costs()
    nothing = all_on_cpu(len(costs.layers) - 1)
    if history.policy.n_gpu >= 0 or not n_gpu or n_gpu >= len(costs.layers) - 1:
        return ""
    if host_bytes(costs, nothing) > free_bytes(history.devices, CPU):
        return ""  # slow is better than not at all
    with_s = token_s(costs, placement, history.devices)
    without_s = token_s(costs, nothing, history.devices)
    if with_s < without_s:
        return ""
    return (
        f"{n_gpu} of {len(costs.layers)} layers on GPUs would take {1000 * with_s:.1f} ms a token, "
        f"none {1000 * without_s:.1f} ms"
    )
