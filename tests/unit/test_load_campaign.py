"""Whole loads on random machines with random models: they end, and in the best that really fits.

A few hundred in an ordinary run; `LOAD_EXAMPLES=10000` (`make load-campaign`) for the campaign.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from actors.protocol import Device
from actors.scheduler.attempts import Round
from actors.scheduler.layout import GPU_RESERVE_BYTES, Policy, available_bytes, n_offloaded
from actors.scheduler.sizes import MIB
from actors.scheduler.steps import Accept, Refuse
from tests.unit.simulated_runner import Load, SimulatedRunner, Tells, device, on_gpus, repeats, run_load

N_ROUNDS_MAX = 40  # fewer than
N_EXAMPLES = int(os.environ.get("LOAD_EXAMPLES", "200"))
CPU = device("cpu", 1 << 50)

campaign = settings(
    max_examples=N_EXAMPLES,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)


@dataclass(frozen=True, slots=True)
class Case:
    """A machine and a model.  MiB."""

    gpus: tuple[Device, ...]
    layers: tuple[int, ...]
    cache: int
    graph: tuple[int, int, int]  # base, for each layer, for the output
    overhead: int
    lies: tuple[float, ...]  # share of what each GPU says that it does not give
    tells: Tells

    @property
    def devices(self) -> tuple[Device, ...]:
        return (CPU, *self.gpus)

    def runner(self) -> SimulatedRunner:
        base, slope, output = self.graph
        return SimulatedRunner(
            layers=[size * MIB for size in self.layers],
            cache=self.cache * MIB,
            graph_base=base * MIB,
            graph_slope=slope * MIB,
            graph_output=output * MIB,
            overhead=self.overhead * MIB,
            really={gpu.id: self.room(i) for i, gpu in enumerate(self.gpus)},
            tells=self.tells,
        )

    def room(self, index: int) -> int:
        """Bytes that a GPU really gives."""
        return int(self.gpus[index].free_bytes * (1 - self.lies[index]))


def cases(
    *,
    n_gpus: st.SearchStrategy[int],
    equal: bool = False,
    lies: st.SearchStrategy[float] | None = None,
    max_layers: int = 80,
) -> st.SearchStrategy[Case]:
    """Machines of 0 to 24 GiB a GPU; models of 1 to 80 layers, alike or of three sizes."""

    @st.composite
    def build(draw: st.DrawFn) -> Case:
        n = draw(n_gpus)
        gpus = tuple(
            device(
                f"g{index}",
                draw(st.integers(0, 24_000)) * MIB,
                draw(st.sampled_from(["cuda", "cuda", "rocm"])) if not equal else "cuda",
                is_integrated=not equal and draw(st.integers(0, 3)) == 0,
            )
            for index in range(n)
        )
        kinds = draw(st.lists(st.integers(10, 900), min_size=1, max_size=1 if equal else 3))
        n_layer = draw(st.integers(1, max_layers))
        layers = [kinds[(index * 7 + index // 3) % len(kinds)] for index in range(n_layer)]
        return Case(
            gpus=gpus,
            layers=(*layers, draw(st.integers(0, 2000))),
            cache=draw(st.integers(0, 200)),
            graph=(draw(st.integers(0, 500)), draw(st.integers(0, 20)), draw(st.integers(0, 1000))),
            overhead=draw(st.integers(0, 500)),
            lies=tuple(draw(lies) if lies is not None else 0.0 for _ in range(n)),
            tells=draw(st.sampled_from(Tells)),
        )

    return build()


some_lies = st.one_of(st.just(0.0), st.floats(0.0, 0.6))


def check_ended(case: Case, load: Load) -> None:
    """It ended soon, without going round in circles, and what was accepted is really allocated."""
    assert load.n_rounds < N_ROUNDS_MAX
    assert repeats(load) == []
    assert isinstance(load.step, Accept)
    last = load.attempts[-1]
    assert last.round is Round.ALLOC
    assert not last.report.failure
    assert on_gpus(load.step.placement) == on_gpus(last.placement)
    for index, gpu in enumerate(case.gpus):
        if (part := last.parts.get(gpu.id)) is not None:
            assert part.need_bytes <= case.room(index)
            assert part.need_bytes <= available_bytes(gpu, Policy())


@campaign
@given(case=cases(n_gpus=st.integers(0, 4), lies=some_lies))
def test_a_load_ends_soon_and_its_layout_is_really_allocated(case: Case) -> None:
    check_ended(case, run_load(case.runner(), case.devices))


@campaign
@given(case=cases(n_gpus=st.integers(0, 4)), nth=st.integers(1, 200))
def test_an_allocation_that_fails_once_costs_no_layer(case: Case, nth: int) -> None:
    runner = case.runner()
    runner.really = {}
    expected = run_load(runner, case.devices).step
    runner.fail_in = nth
    load = run_load(runner, case.devices)
    check_ended(case, load)
    assert isinstance(expected, Accept)
    assert isinstance(load.step, Accept)
    assert on_gpus(load.step.placement) == on_gpus(expected.placement)


@campaign
@given(case=cases(n_gpus=st.integers(0, 4), lies=some_lies), n_gpu=st.integers(0, 90))
def test_a_load_with_num_gpu_ends_soon_as_asked_or_with_a_refusal(case: Case, n_gpu: int) -> None:
    load = run_load(case.runner(), case.devices, Policy(n_gpu=n_gpu))
    assert load.n_rounds < N_ROUNDS_MAX
    assert repeats(load) == []
    if isinstance(load.step, Accept):
        wanted = min(n_gpu, len(case.layers)) if case.gpus else 0
        assert n_offloaded(load.step.placement) == wanted
    else:
        assert isinstance(load.step, Refuse)
        assert f"num_gpu {n_gpu}" in load.step.message


def fits(case: Case, held: Sequence[Sequence[int]], room: Sequence[int]) -> bool:
    runner = case.runner()
    for layers, bytes_ in zip(held, room, strict=True):
        part = runner.memory("gpu", tuple(layers))
        items = (*part.weights, *part.cache, part.graph, part.overhead)
        if sum(item.planned_bytes for item in items) > bytes_:
            return False
    return True


def most_that_fits(case: Case) -> int:
    """By trial of every count on every GPU: the most equal layers that said and real memory hold."""
    room = [min(available_bytes(gpu, Policy()), case.room(index)) for index, gpu in enumerate(case.gpus)]
    n_layer = len(case.layers) - 1
    best = 0
    for counts in product(range(n_layer + 1), repeat=len(case.gpus)):
        n = sum(counts)
        if n > n_layer or n < best:
            continue
        held: list[range] = []
        end = n_layer
        for count in counts:
            held.append(range(end - count, end))
            end -= count
        if n > best and fits(case, held, room):
            best = n
        if n == n_layer:
            with_output = [
                [(*layers, n_layer) if i == j else layers for j, layers in enumerate(held)]
                for i in range(len(held))
            ]
            if any(fits(case, each, room) for each in with_output):
                return n + 1
    return best


@campaign
@given(case=cases(n_gpus=st.just(1), equal=True, lies=some_lies))
def test_lies_about_free_memory_end_in_the_most_layers_that_really_fit(case: Case) -> None:
    load = run_load(case.runner(), case.devices)
    check_ended(case, load)
    assert isinstance(load.step, Accept)
    assert n_offloaded(load.step.placement) == most_that_fits(case)


@campaign
@given(case=cases(n_gpus=st.just(2), equal=True, lies=some_lies, max_layers=24))
def test_two_gpus_that_lie_end_with_at_most_a_layer_less_than_really_fits(case: Case) -> None:
    """One may be lost where the output layer was too much for one GPU, and would not be for the other."""
    assume(case.tells is not Tells.NOTHING)  # with two suspects and no word, either may be cleared too late
    load = run_load(case.runner(), case.devices)
    check_ended(case, load)
    assert isinstance(load.step, Accept)
    assert most_that_fits(case) - n_offloaded(load.step.placement) in (0, 1)


def grown(case: Case, more: Sequence[int]) -> tuple[Device, ...]:
    return (
        CPU,
        *(device(gpu.id, gpu.free_bytes + extra * MIB) for gpu, extra in zip(case.gpus, more, strict=False)),
    )


@campaign
@given(case=cases(n_gpus=st.just(1), equal=True), more=st.integers(0, 8000))
def test_more_free_memory_never_ends_in_fewer_layers(case: Case, more: int) -> None:
    runner = case.runner()
    runner.really = {}
    before = run_load(runner, case.devices).step
    after = run_load(runner, grown(case, [more])).step
    assert isinstance(before, Accept)
    assert isinstance(after, Accept)
    assert n_offloaded(after.placement) >= n_offloaded(before.placement)


def test_the_trial_of_every_count_knows_what_fits() -> None:
    gpu = device("g0", GPU_RESERVE_BYTES + 350 * MIB)
    case = Case((gpu,), (100,) * 5, 0, (0, 0, 0), 0, (0.0,), Tells.ALL)
    assert most_that_fits(case) == 3
