"""How long a token takes with a placement, as far as memory says: each weight is read once per token.

Decoding runs at the speed of memory, so a layer takes its bytes over what its device reads in a second; and
wherever neighbouring layers lie on different devices, the activations are copied and one side waits for the
other.  When only a few layers go to a GPU, those copies can take longer than the GPU gains.

Discovery's `Device` has the figures that probes measured.  Where it has none we assume, from what such
machines commonly do: 20 GB/s for the host (two channels of DDR4), 200 GB/s for a discrete GPU (a small one:
its memory is never slower than several times the host's), 40 GB/s for an integrated one (the host's memory,
of which processor cores alone often reach half), and 0.1 ms for a copy (transfer, launch and wake-up, not
bytes: an activation has a few KiB).  So without measurement a GPU is left out only when its part is worth
less than two such copies: about 4.4 MB of weights on a discrete GPU, 8 MB on an integrated one.
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import Final

from actors.protocol import Device
from actors.scheduler.layout import Costs, Placement
from actors.scheduler.sizes import CPU

HOST_BYTES_PER_S: Final = 20e9
DISCRETE_BYTES_PER_S: Final = 200e9
INTEGRATED_BYTES_PER_S: Final = 40e9
COPY_S: Final = 100e-6


def token_s(costs: Costs, placement: Placement, devices: Sequence[Device]) -> float:
    """Seconds that one token of one sequence takes, without what all placements have in common."""
    by_id = {device.id: device for device in devices}
    of_layer = {layer: part.device for part in placement for layer in part.layers}
    # the input side is the host's, and so is what comes after the output layer: sampling
    path = [CPU, *(of_layer.get(layer, CPU) for layer in range(len(costs.layers))), CPU]
    reading_s = sum(
        size / _bytes_per_s(by_id.get(device), device)
        for size, device in zip(costs.weights, path[1:-1], strict=True)
    )
    copying_s = sum(
        max(_copy_s(by_id.get(one)), _copy_s(by_id.get(other)))
        for one, other in pairwise(path)
        if one != other
    )
    return reading_s + copying_s


def _bytes_per_s(device: Device | None, device_id: str) -> float:
    if device is not None and device.bytes_per_s:
        return device.bytes_per_s
    if device_id == CPU or device is None:
        return HOST_BYTES_PER_S
    return INTEGRATED_BYTES_PER_S if device.is_integrated else DISCRETE_BYTES_PER_S


def _copy_s(device: Device | None) -> float:
    if device is None or device.id == CPU:
        return 0.0
    return device.copy_s or COPY_S
