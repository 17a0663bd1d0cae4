"""Where memory is short: what the host lacks, what other models hold, and when nothing more can be done."""

from collections.abc import Mapping

import msgspec

from actors.protocol import Device
from actors.scheduler.attempts import Attempt, failing
from actors.scheduler.layout import (
    Costs,
    Placement,
    all_on_cpu,
    host_bytes,
    layout,
    n_offloaded,
    offloaded,
)
from actors.scheduler.needs import free_bytes, host_need_bytes, mend_text, needs_text, swap_bytes
from actors.scheduler.sizes import CPU
from actors.scheduler.steps import Accept, Evict, History, Refuse, Step
from actors.scheduler.worth import why_slower


def on_host(history: History, best: Attempt, note: str) -> Step:
    """Accept, if the host holds its part; otherwise what other models could give it, or the end."""
    what = needs_text(history.name, best.report, history.devices)
    shortage = host_need_bytes(best.report) - free_bytes(history.devices, CPU)
    if 0 < shortage <= history.others.get(CPU, 0):
        return Evict({CPU: shortage}, what)
    if shortage > swap_bytes(history.devices):
        return Refuse(what, mend_text(best.report, shortage, history.other_names))
    placement = best.placement if best.key else all_on_cpu(best.report.n_layer)
    return Accept(placement, best.report, f"{what}; {note}" if note else what)


def _alone(history: History, others: Mapping[str, int]) -> Placement:
    """The placement that the load would get without these other models."""
    roomier = [_with_room(device, others) for device in history.devices]
    alone = layout(history.costs(), roomier, history.policy)
    return all_on_cpu(history.latest.report.n_layer) if why_slower(history, alone) else alone


def _with_room(device: Device, others: Mapping[str, int]) -> Device:
    free = min(device.total_bytes, device.free_bytes + others.get(device.id, 0))
    return msgspec.structs.replace(device, free_bytes=free)


def evict_for_gpus(history: History, best: Attempt) -> Evict | None:
    """Eviction, if other models are what keeps layers off the GPUs."""
    if history.is_content:
        return None
    costs, alone = history.costs(), _alone(history, history.others)
    # the same search with the room there is: what it lacks of `alone`, others take
    n_now = max(n_offloaded(best.placement), n_offloaded(layout(costs, history.devices, history.policy)))
    if n_offloaded(alone) <= n_now or not _host_holds(history, costs, alone):
        return None
    shortages = _each_sufficing(history, best, n_offloaded(alone)) or _largest(history, best, alone)
    if not shortages:
        return None
    what = needs_text(history.name, best.report, history.devices)
    is_preferred = history.policy.n_gpu < 0 and isinstance(on_host(history, best, ""), Accept)
    return Evict(shortages, f"{what}, more on GPUs", is_preferred)


def _each_sufficing(history: History, best: Attempt, n_wanted: int) -> dict[str, int]:
    """The devices of which one without other models would do, and what it lacks."""
    shortages: dict[str, int] = {}
    for device, held_bytes in history.others.items():
        if not held_bytes or device == CPU:
            continue
        placement = _alone(history, {device: held_bytes, CPU: history.others.get(CPU, 0)})
        if n_offloaded(placement) >= n_wanted:
            shortages[device] = _shortage(history, best, placement, held_bytes)
    return shortages


def _largest(history: History, best: Attempt, alone: Placement) -> dict[str, int]:
    """Where no device alone would do, the one of which others hold most comes first."""
    held = {device: history.others.get(device, 0) for device, _ in offloaded(alone)}
    device = max(sorted(held), key=held.__getitem__)
    return {device: _shortage(history, best, alone, held[device])} if held[device] else {}


def _shortage(history: History, best: Attempt, wanted: Placement, held_bytes: int) -> int:
    """Bytes of the layers that `wanted` has on GPUs and the best so far has not."""
    missing = {layer for _, layers in offloaded(wanted) for layer in layers}
    missing -= {layer for _, layers in offloaded(best.placement) for layer in layers}
    layers = history.costs().layers
    return max(1, min(sum(layers[layer] for layer in missing), held_bytes))


def _host_holds(history: History, costs: Costs, placement: Placement) -> bool:
    """Whether evicting is not in vain: the host holds what the placement leaves it, others gone."""
    room = free_bytes(history.devices, CPU) + history.others.get(CPU, 0) + swap_bytes(history.devices)
    return host_bytes(costs, placement) <= room


def stuck(history: History) -> Step:
    """Nothing smaller is left to try: other models have to go, or the load ends here."""
    report = history.latest.report
    bad = failing(history.latest, history.devices, history.policy)
    device = max(sorted(bad), key=lambda device: history.others.get(device, 0), default=CPU)
    part = history.latest.parts.get(device)
    need = host_need_bytes(report) if device == CPU else part.need_bytes if part else 1
    held = history.others.get(device, 0)
    if held:
        return Evict({device: max(1, min(need, held))}, report.failure)
    asked = f" with num_gpu {history.policy.n_gpu}" if history.policy.n_gpu > 0 else ""
    return Refuse(
        f"{history.name} at n_ctx {report.n_ctx} cannot be allocated{asked}: {report.failure} "
        f"({needs_text(history.name, report, history.devices)})",
        mend_text(report, max(1, need - free_bytes(history.devices, CPU)), history.other_names),
    )
