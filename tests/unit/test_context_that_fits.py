"""The context a model gets when nobody names one, and what `runtime plan` shows of the choice."""

from collections.abc import Sequence
from dataclasses import dataclass

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from actors.pool import pool_cells
from actors.protocol import Device, DeviceMemory, MemoryItem, MemoryReport
from actors.scheduler.context import (
    HOST_SHARE,
    choice_of,
    costs_at,
    is_full_speed,
    is_modest,
    longest_n_ctx,
    short_n_ctx,
    shorter_n_ctx,
    shown_n_ctx,
)
from actors.scheduler.layout import Policy, costs_of, layout, n_offloaded
from actors.scheduler.sizes import GIB, KIB, MIB
from tests.unit.simulated_runner import device, roomy

NONE = MemoryItem(0)
N_CTX_TRAIN = 131_072


@dataclass(frozen=True, slots=True)
class Model:
    """Equal layers on one GPU, or on the host.  Bytes."""

    n_layer: int = 16
    weight: int = 60 * MIB
    cell: int = 2 * KIB  # of one layer's cache
    graph: int = 100 * MIB
    graph_per_ctx: int = 0
    n_parallel: int = 4
    window: int = 0  # cache of every second layer stops growing here; 0: of none

    def report(self, n_ctx: int, on: str = "cpu") -> MemoryReport:
        """All layers on one device."""
        n_ctx = min(n_ctx, N_CTX_TRAIN)
        cells = [
            min(n_ctx, self.window) * self.n_parallel
            if self.window and index % 2
            else pool_cells(n_ctx, self.n_parallel)
            for index in range(self.n_layer)
        ]
        cache = (*(MemoryItem(n * self.cell) for n in cells), NONE)
        graph = MemoryItem(self.graph + self.graph_per_ctx * n_ctx)
        memory = DeviceMemory(on, on, (MemoryItem(self.weight),) * (self.n_layer + 1), cache, graph, NONE)
        return MemoryReport(
            devices=(memory,),
            input_weights=NONE,
            n_layer=self.n_layer,
            n_ctx=n_ctx,
            n_ctx_train=N_CTX_TRAIN,
            n_batch=512,
            n_parallel=self.n_parallel,
        )


def longest(model: Model, devices: Sequence[Device], on: str, policy: Policy | None = None) -> int:
    return longest_n_ctx(model.report(4096, on), model.report(N_CTX_TRAIN, on), devices, policy or Policy())


CPU = device("cpu", 1 << 45)
WEIGHTS = 17 * 60  # MiB of Model(), and 100 of graph


def test_a_gpu_with_room_for_all_of_it_gives_the_trained_context() -> None:
    assert longest(Model(), [CPU, roomy("g", 20_000)], "g") == N_CTX_TRAIN


def test_a_gpu_with_less_gives_the_longest_that_keeps_every_layer_on_it() -> None:
    # 16 layers x 2 KiB: 32 KiB a cell, so 1000 MiB are 32,000 cells, all of which one sequence may use
    assert longest(Model(), [CPU, roomy("g", WEIGHTS + 100 + 1000)], "g") == 32_000


def test_sequences_share_the_cells_so_that_their_number_takes_nothing_of_the_context() -> None:
    devices = [CPU, roomy("g", WEIGHTS + 100 + 1000)]
    assert longest(Model(n_parallel=1), devices, "g") == 32_000
    assert longest(Model(n_parallel=7), devices, "g") == 32_000


def test_room_for_4096_positions_of_each_sequence_comes_first() -> None:
    devices = [CPU, roomy("g", WEIGHTS + 100 + 1000)]  # 32,000 cells are not 8 x 4096
    assert longest(Model(n_parallel=8), devices, "g") == 4096


def test_a_model_that_the_gpu_does_not_hold_gets_the_short_context() -> None:
    assert longest(Model(), [CPU, roomy("g", WEIGHTS - 500)], "g") == 4096


def test_the_compute_buffer_that_grows_with_the_context_counts() -> None:
    # 512 MiB of cache for 4 x 4096 cells, and 64 KiB of graph for each position
    devices = [CPU, roomy("g", WEIGHTS + 100 + 1000)]
    assert longest(Model(graph_per_ctx=64 * KIB), devices, "g") == 488 * 1024 // 64 // 256 * 256


def test_without_gpus_the_cache_takes_a_quarter_of_what_the_weights_leave() -> None:
    free = (WEIGHTS + 100 + 4000) * MIB
    assert longest(Model(), [device("cpu", free)], "cpu") == 32_000
    assert HOST_SHARE * 4000 == 1000


def test_layers_the_user_keeps_on_the_cpu_do_not_hold_the_context_down() -> None:
    devices = [CPU, roomy("g", 4 * 60 + 100 + 1000)]
    assert longest(Model(), devices, "cpu", Policy(n_gpu=0)) == N_CTX_TRAIN
    # 4 layers: 8 KiB a cell
    assert longest(Model(), devices, "g", Policy(n_gpu=4)) == 128_000


def test_two_gpus_hold_what_one_does_not() -> None:
    devices = [CPU, roomy("g", WEIGHTS + 100), roomy("h", WEIGHTS + 100)]
    alone = longest(Model(), devices[:2], "g")
    assert alone == 4096
    assert longest(Model(), devices, "g") > alone


@pytest.mark.parametrize(("n_ctx_train", "short"), [(2048, 2048), (4096, 4096), (131_072, 4096), (0, 4096)])
def test_the_short_context_is_4096_or_what_the_model_was_trained_for(n_ctx_train: int, short: int) -> None:
    assert short_n_ctx(n_ctx_train) == short


@given(n_ctx=st.integers(4097, 1 << 20))
def test_a_context_that_cannot_be_allocated_is_soon_the_short_one(n_ctx: int) -> None:
    tried: list[int] = [n_ctx]
    while tried[-1] > 4096:
        tried.append(shorter_n_ctx(tried[-1], 4096))
        assert tried[-1] < tried[-2]
    assert tried[-1] == 4096
    assert len(tried) <= 12


models = st.builds(
    Model,
    n_layer=st.integers(1, 80),
    weight=st.integers(1, 400).map(lambda n: n * MIB),
    cell=st.integers(1, 16).map(lambda n: n * 512),
    graph=st.integers(0, 900).map(lambda n: n * MIB),
    graph_per_ctx=st.integers(0, 4096),
    n_parallel=st.integers(1, 8),
)


@given(model=models, room=st.integers(0, 60_000), on_gpu=st.booleans())
def test_the_chosen_context_fits_and_the_next_longer_one_does_not(
    model: Model, room: int, on_gpu: bool
) -> None:
    devices = [CPU, roomy("g", room)] if on_gpu else [device("cpu", room * MIB)]
    on = "g" if on_gpu else "cpu"
    chosen = longest(model, devices, on)
    assert 4096 <= chosen <= N_CTX_TRAIN
    if chosen > 4096:
        assert is_modest(costs_of(model.report(chosen, on)), devices, Policy())
        assert is_full_speed(costs_of(model.report(chosen, on)), devices, Policy())
    if chosen < N_CTX_TRAIN:
        longer = min(N_CTX_TRAIN, chosen + 256)
        # between two reports a byte may be rounded up for each layer and each buffer
        assert not is_modest(
            costs_of(model.report(longer, on)), [devices[0], *shrunk(devices[1:])], Policy()
        ) or (not on_gpu)


def shrunk(gpus: Sequence[Device]) -> list[Device]:
    return [device(gpu.id, max(0, gpu.free_bytes - 256)) for gpu in gpus]


@given(model=models, room=st.integers(0, 60_000), more=st.integers(0, 20_000))
def test_more_memory_never_gives_a_shorter_context(model: Model, room: int, more: int) -> None:
    before = longest(model, [CPU, roomy("g", room)], "g")
    assert longest(model, [CPU, roomy("g", room + more)], "g") >= before


@given(model=models, n_ctx=st.integers(16, 512).map(lambda n: n * 256))
def test_what_lies_between_two_reports_is_what_the_runner_would_report(model: Model, n_ctx: int) -> None:
    between = costs_at(model.report(4096), model.report(N_CTX_TRAIN), n_ctx)
    assert between == costs_of(model.report(n_ctx))


@given(window=st.integers(1, 16).map(lambda n: n * 256), room=st.integers(1100, 20_000))
def test_a_window_is_found_in_a_few_reports(window: int, room: int) -> None:
    """As `Loading` does it: what was found is sized, and is the upper report of the next search."""
    model, devices = Model(window=window), [CPU, roomy("g", room)]
    low, high = model.report(4096, "g"), model.report(N_CTX_TRAIN, "g")
    assume(is_full_speed(costs_of(low), devices, Policy()))
    for _ in range(6):
        found = longest_n_ctx(low, high, devices, Policy())
        high = model.report(found, "g")
        if is_modest(costs_of(high), devices, Policy()):
            break
    assert is_modest(costs_of(high), devices, Policy())


def test_the_contexts_shown_double_up_to_the_trained_one_and_have_the_one_taken_among_them() -> None:
    assert shown_n_ctx(16_384, 7936) == (2048, 4096, 7936, 8192, 16_384)
    assert shown_n_ctx(1000, 1000) == (1000,)


def test_a_row_says_layers_on_gpus_bytes_and_whether_speed_is_full() -> None:
    devices = [CPU, roomy("g", WEIGHTS + 100 + 1000)]
    model = Model()
    rows = [choice_of(model.report(n, "g"), devices, Policy(), 7936) for n in (4096, 7936, 131_072)]
    assert [(row.n_ctx, row.n_offloaded, row.is_full_speed, row.is_chosen) for row in rows] == [
        (4096, 17, True, False),
        (7936, 17, True, True),
        (131_072, n_offloaded(layout(costs_of(model.report(131_072, "g")), devices, Policy())), False, False),
    ]
    assert rows[0].cache_bytes == 512 * MIB
    assert rows[0].total_bytes == (WEIGHTS + 100 + 512) * MIB


def test_on_the_host_alone_full_speed_means_that_it_fits() -> None:
    row = choice_of(Model().report(4096), [device("cpu", GIB)], Policy(), 4096)
    assert not row.is_full_speed
    assert row.n_offloaded == 0
