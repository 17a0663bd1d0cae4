"""How long a token takes: bytes over the speed of memory, and a copy at each boundary."""

import msgspec
import pytest

from actors.protocol import Device, LayerPlacement
from actors.scheduler.layout import Costs, Placement, all_on_cpu
from actors.scheduler.speed import token_s
from tests.unit.simulated_runner import device

GB = 10**9
COSTS = Costs((2 * GB,) * 4, (GB,) * 4, 0, {}, {})  # half of each layer is cache: it is not all read
HOST = msgspec.structs.replace(device("cpu", 0), bytes_per_s=50.0 * GB)
GPU = msgspec.structs.replace(device("g", 0), bytes_per_s=500.0 * GB, copy_s=0.004)


def on(*layers: int, gpu: str = "g") -> Placement:
    rest = tuple(layer for layer in range(4) if layer not in layers)
    return (LayerPlacement(gpu, layers), LayerPlacement("cpu", rest))


@pytest.mark.parametrize(
    ("placement", "wanted_s"),
    [
        (all_on_cpu(3), 4 / 50),
        (on(1, 2), 2 / 50 + 2 / 500 + 2 * 0.004),  # in and out again
        (on(0, 2), 2 / 50 + 2 / 500 + 4 * 0.004),  # not contiguous: twice
        (on(0, 1, 2, 3), 4 / 500 + 2 * 0.004),  # in from the embedding, out to the sampling
    ],
)
def test_a_token_takes_bytes_over_speed_and_a_copy_at_each_boundary(
    placement: Placement, wanted_s: float
) -> None:
    assert token_s(COSTS, placement, [HOST, GPU]) == pytest.approx(wanted_s)


def test_between_two_gpus_the_slower_copy_counts() -> None:
    other = msgspec.structs.replace(GPU, id="h", copy_s=0.010)
    placement = (LayerPlacement("g", (0, 1)), LayerPlacement("h", (2, 3)))
    assert token_s(COSTS, placement, [HOST, GPU, other]) == pytest.approx(4 / 500 + 0.004 + 2 * 0.010)


@pytest.mark.parametrize(("is_integrated", "size_mb"), [(False, 4.44), (True, 8.0)])
def test_unmeasured_devices_are_worth_more_than_two_copies_of_layers(
    is_integrated: bool, size_mb: float
) -> None:
    """The assumed figures: beyond so many bytes a layer on the GPU gains more than its two copies cost."""
    unknown: list[Device] = [device("cpu", 0), device("g", 0, is_integrated=is_integrated)]
    for factor, gains in ((0.95, False), (1.05, True)):
        size = int(size_mb * factor * 1e6)
        costs = Costs((size,) * 4, (size,) * 4, 0, {}, {})
        assert (token_s(costs, on(2), unknown) < token_s(costs, all_on_cpu(3), unknown)) is gains
