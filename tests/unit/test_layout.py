"""Where layers go: the vectors of BEHAVIOUR T1 and A3, and what holds for every machine and model."""

from collections.abc import Mapping, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from actors.protocol import Device
from actors.scheduler.layout import (
    GPU_RESERVE_BYTES,
    Costs,
    Policy,
    all_on_cpu,
    available_bytes,
    layout,
    n_offloaded,
)
from actors.scheduler.sizes import GIB, MIB
from tests.unit.simulated_runner import device, on_gpus, placed, roomy

Layers = tuple[int, ...]
CPU_DEVICE = device("cpu", 1 << 45)


def costs(*layers_mib: float, graph: Mapping[str, int] | None = None) -> Costs:
    layers = tuple(int(size * MIB) for size in layers_mib)
    return Costs(layers=layers, weights=layers, input_bytes=0, graph=graph or {}, overhead={})


G0, G1 = roomy("g0", 128), roomy("g1", 256)
DISCRETE, INTEGRATED = roomy("d", 128), roomy("i", 256, is_integrated=True)

T1: list[tuple[str, list[Device], list[int], int, dict[str, Layers]]] = [
    ("none", [], [50] * 3, -1, {}),
    ("full", [roomy("g0", 256)], [50] * 3, -1, {"g0": (0, 1, 2)}),
    ("partial", [roomy("g0", 256)], [100] * 4, -1, {"g0": (1, 2)}),
    ("one", [roomy("g0", 256)], [50] * 3, 1, {"g0": (1,)}),
    ("zero", [roomy("g0", 256)], [50] * 3, 0, {}),
    ("force", [roomy("g0", 256)], [100] * 4, 999, {"g0": (0, 1, 2, 3)}),
    ("pack", [G0, G1], [50] * 3, -1, {"g1": (0, 1, 2)}),
    ("split", [G0, G1], [256, 50, 50], -1, {"g1": (0,), "g0": (1, 2)}),
    ("partial 2", [G0, G1], [256, 256, 50], -1, {"g1": (1,)}),
    ("two, n=1", [G0, G1], [50] * 3, 1, {"g1": (1,)}),
    ("two, n=2", [G0, G1], [256, 50, 50], 2, {"g1": (0,), "g0": (1,)}),
    ("two, n=999", [G0, G1], [256, 256, 50], 999, {"g1": (0, 1), "g0": (2,)}),
    (
        "libraries",
        [roomy("g0", 128, "cuda"), roomy("g1", 256, "rocm")],
        [128, 128, 50],
        -1,
        {"g1": (0, 1)},
    ),
    ("iGPU only", [roomy("g0i", 256, is_integrated=True)], [50] * 3, -1, {"g0i": (0, 1, 2)}),
    ("d+i", [DISCRETE, INTEGRATED], [50] * 3, -1, {"i": (0,), "d": (1, 2)}),
    ("d+i fits d", [DISCRETE, INTEGRATED], [50] * 2, -1, {"d": (0, 1)}),
    ("d+i partial", [DISCRETE, INTEGRATED], [100] * 4, -1, {"i": (0, 1), "d": (2,)}),
    ("d+i n=1", [DISCRETE, INTEGRATED], [100] * 4, 1, {"d": (2,)}),
    ("d+i n=999", [DISCRETE, INTEGRATED], [100] * 4, 999, {"d": (0,), "i": (1, 2, 3)}),
]


@pytest.mark.parametrize(("_case", "gpus", "layers", "n_gpu", "wanted"), T1, ids=[row[0] for row in T1])
def test_layers_go_where_the_vectors_say(
    _case: str, gpus: list[Device], layers: list[int], n_gpu: int, wanted: dict[str, Layers]
) -> None:
    policy = Policy(n_gpu=n_gpu, is_forced=n_gpu >= 0)
    for found in (gpus, gpus[::-1]):  # the order in which devices are found is no reason
        assert on_gpus(layout(costs(*layers), [CPU_DEVICE, *found], policy)) == wanted


@pytest.mark.parametrize(
    ("rooms", "n_layers", "size", "wanted"),
    [
        ((24000, 8000), 26, 1000, (20, 6)),
        ((12000, 8000), 20, 700, (12, 8)),
        ((24000, 24000), 30, 1000, (15, 15)),
    ],
)
def test_what_needs_two_gpus_fills_them_in_proportion(
    rooms: Sequence[int], n_layers: int, size: int, wanted: tuple[int, int]
) -> None:
    gpus = [roomy(f"g{index}", room) for index, room in enumerate(rooms)]
    parts = on_gpus(layout(costs(*[size] * n_layers), gpus, Policy()))
    assert tuple(len(parts[gpu.id]) for gpu in gpus) == wanted


def test_a_layer_too_large_for_a_gpu_leaves_its_room_to_smaller_ones() -> None:
    """The predecessor places 1 layer here: the large one ends the fill for good."""
    parts = on_gpus(layout(costs(100, 100, 300, 100, 900), [roomy("g0", 320)], Policy()))
    assert parts == {"g0": (0, 1, 3)}


def test_layers_of_unlike_sizes_are_packed_in_another_order_where_order_would_waste() -> None:
    """The predecessor places 2 of 3: a GPU it has left for a layer too large it never goes back to."""
    gpus = [roomy("g0", 110), roomy("g1", 100)]
    assert n_offloaded(layout(costs(100, 60, 50), gpus, Policy())) == 3


def test_neighbouring_layers_stay_together_where_that_loses_nothing() -> None:
    gpus = [roomy("g0", 400), roomy("g1", 400)]
    parts = on_gpus(layout(costs(*[100] * 6), gpus, Policy()))
    assert parts == {"g0": (0, 1, 2), "g1": (3, 4, 5)}


def test_without_gpus_every_layer_is_on_the_cpu() -> None:
    assert layout(costs(50, 50, 50), [CPU_DEVICE], Policy()) == all_on_cpu(2)


def test_a_model_that_fits_one_gpu_uses_one_and_no_part_is_empty() -> None:
    gpus = [roomy("small", 900), roomy("large", 1000), roomy("tiny", 1)]
    assert placed(layout(costs(*[100] * 5), gpus, Policy())) == {"large": (0, 1, 2, 3, 4)}


def test_spread_uses_all_gpus_for_what_one_could_hold() -> None:
    gpus = [roomy("g0", 900), roomy("g1", 900), roomy("g2", 900)]
    parts = on_gpus(layout(costs(*[100] * 6), gpus, Policy(is_spread=True)))
    assert [len(parts[gpu.id]) for gpu in gpus] == [2, 2, 2]


def test_the_largest_gpu_gets_the_first_layers_and_the_last_one_the_output() -> None:
    gpus = [roomy("small", 300), roomy("large", 600)]
    assert on_gpus(layout(costs(*[100] * 9), gpus, Policy())) == {
        "large": (0, 1, 2, 3, 4, 5),
        "small": (6, 7, 8),
    }


def test_integrated_gpus_are_last_however_much_they_have() -> None:
    gpus = [roomy("i", 9000, is_integrated=True), roomy("d", 500)]
    assert on_gpus(layout(costs(*[100] * 5), gpus, Policy())) == {"d": (0, 1, 2, 3, 4)}


def test_an_unusable_gpu_gets_nothing() -> None:
    broken = Device(
        id="g", library="cuda", name="g", total_bytes=GIB, free_bytes=GIB, is_usable=False, reason="old"
    )
    assert on_gpus(layout(costs(50, 50), [CPU_DEVICE, broken], Policy())) == {}


def test_compute_buffer_and_context_come_off_the_room() -> None:
    known = Costs((100 * MIB,) * 5, (100 * MIB,) * 5, 0, {"g": 150 * MIB}, {"g": 50 * MIB})
    assert on_gpus(layout(known, [roomy("g", 500)], Policy())) == {"g": (1, 2, 3)}


def test_memory_the_user_keeps_free_comes_off_every_gpu() -> None:
    policy = Policy(gpu_overhead_bytes=200 * MIB)
    assert on_gpus(layout(costs(*[100] * 4), [roomy("g", 400)], policy)) == {"g": (1, 2)}


def test_a_gpu_with_less_than_the_reserve_has_no_room_and_not_a_negative_one() -> None:
    full = device("g", GPU_RESERVE_BYTES - 1)
    assert available_bytes(full, Policy()) == 0
    assert on_gpus(layout(costs(0.001, 0.001), [full], Policy())) == {}


@pytest.mark.parametrize(
    ("n_gpu", "wanted"), [(0, ()), (1, (3,)), (4, (0, 1, 2, 3)), (5, (0, 1, 2, 3, 4)), (99, (0, 1, 2, 3, 4))]
)
def test_n_gpu_counts_repeating_layers_from_the_end_and_the_output_last(n_gpu: int, wanted: Layers) -> None:
    parts = on_gpus(layout(costs(*[50] * 5), [roomy("g", 9000)], Policy(n_gpu=n_gpu)))
    assert parts.get("g", ()) == wanted


def test_what_is_forced_goes_on_gpus_in_proportion_even_without_any_room() -> None:
    gpus = [device("g0", 0), device("g1", 0)]
    parts = on_gpus(layout(costs(*[50] * 4), gpus, Policy(n_gpu=4, is_forced=True)))
    assert {gpu: len(layers) for gpu, layers in parts.items()} == {"g0": 2, "g1": 2}


sizes = st.integers(1, 64).map(lambda n: n * 16 * MIB)
rooms = st.integers(0, 200).map(lambda n: n * 16)
machines = st.lists(st.tuples(rooms, st.booleans(), st.sampled_from(["cuda", "rocm"])), max_size=4).map(
    lambda found: [
        roomy(f"g{index}", room, library, is_integrated=is_integrated)
        for index, (room, is_integrated, library) in enumerate(found)
    ]
)


def of_sizes(layers: Sequence[int]) -> Costs:
    return Costs(tuple(layers), tuple(layers), 0, {}, {})


@given(
    layers=st.lists(sizes, min_size=1, max_size=40),
    gpus=machines,
    n_gpu=st.integers(-1, 45),
    is_spread=st.booleans(),
)
def test_every_layer_is_placed_once_and_no_gpu_is_overfilled(
    layers: list[int], gpus: list[Device], n_gpu: int, is_spread: bool
) -> None:
    placement = layout(of_sizes(layers), gpus, Policy(n_gpu=n_gpu, is_spread=is_spread))
    assert sorted(layer for part in placement for layer in part.layers) == list(range(len(layers)))
    libraries = {gpu.library for gpu in gpus if gpu.id in on_gpus(placement)}
    assert len(libraries) <= 1
    for gpu in gpus:
        held = sum(layers[i] for i in on_gpus(placement).get(gpu.id, ()))
        assert held <= available_bytes(gpu, Policy())


def grown(gpus: Sequence[Device], more_mib: Sequence[int]) -> list[Device]:
    return [
        device(gpu.id, gpu.free_bytes + more * MIB, gpu.library, is_integrated=gpu.is_integrated)
        for gpu, more in zip(gpus, more_mib, strict=False)
    ]


@given(
    n_layers=st.integers(1, 60),
    size=sizes,
    output=sizes,
    gpus=machines,
    more=st.lists(st.integers(0, 2000), min_size=4, max_size=4),
    n_gpu=st.integers(-1, 60),
)
def test_more_free_memory_never_places_fewer_of_equal_layers(
    n_layers: int, size: int, output: int, gpus: list[Device], more: list[int], n_gpu: int
) -> None:
    model = of_sizes([size] * n_layers + [output])
    before = layout(model, gpus, Policy(n_gpu=n_gpu))
    after = layout(model, grown(gpus, more), Policy(n_gpu=n_gpu))
    assert n_offloaded(after) >= n_offloaded(before)


@given(layers=st.lists(sizes, min_size=1, max_size=40), room=rooms, more=st.integers(0, 4096))
def test_more_free_memory_of_one_gpu_never_places_fewer_layers_of_any_sizes(
    layers: list[int], room: int, more: int
) -> None:
    model = of_sizes(layers)
    before = layout(model, [roomy("g", room)], Policy())
    assert n_offloaded(layout(model, [roomy("g", room + more)], Policy())) >= n_offloaded(before)


@given(
    layers=st.lists(st.sampled_from([80, 112, 240]), min_size=1, max_size=40),
    gpus=machines,
    more=st.lists(st.integers(0, 2000), min_size=4, max_size=4),
)
def test_more_free_memory_of_any_gpu_never_places_fewer_layers_of_a_few_sizes(
    layers: list[int], gpus: list[Device], more: list[int]
) -> None:
    model = of_sizes([size * MIB for size in layers])
    before = layout(model, gpus, Policy())
    assert n_offloaded(layout(model, grown(gpus, more), Policy())) >= n_offloaded(before)


@given(n_layers=st.integers(2, 60), size=sizes, first=rooms, second=rooms)
def test_equal_layers_fill_two_gpus_to_the_same_share_but_for_a_layer(
    n_layers: int, size: int, first: int, second: int
) -> None:
    gpus = [roomy("g0", first), roomy("g1", second)]
    parts = on_gpus(layout(of_sizes([size] * n_layers), gpus, Policy()))
    if len(parts) == 2 and sum(map(len, parts.values())) == n_layers:
        a, b = (len(parts[gpu.id]) for gpu in gpus)
        share_a, share_b = ((n - 1) * size / max(1, r * MIB) for n, r in ((a, first), (b, second)))
        assert share_a < (b + 1) * size / (second * MIB)
        assert share_b < (a + 1) * size / (first * MIB)
