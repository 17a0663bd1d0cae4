"""Who leaves when another model needs room."""

from collections.abc import Sequence
from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from actors.scheduler.eviction import (
    EXACT_MAX,
    Candidate,
    Victims,
    cost,
    make_place,
    make_room,
)

NOW_S = 10.0


def candidate(name: str, used_s: float, size: int, *, is_idle: bool = True, device: str = "cpu") -> Candidate:
    return Candidate(name, name, used_s, is_idle, {device: size})


def names(victims: Victims | None) -> tuple[list[str], list[str]]:
    assert victims is not None
    return [each.name for each in victims.stop], [each.name for each in victims.drain]


def on_one_device(
    models: Sequence[Candidate], device: str, shortage_bytes: int, now_s: float
) -> Victims | None:
    found = make_room(models, {device: shortage_bytes}, now_s)
    return None if found is None else found[1]


def test_the_least_recently_used_leaves() -> None:
    models = [candidate("new", 9, 10), candidate("old", 1, 10)]
    assert names(on_one_device(models, "cpu", 5, NOW_S)) == (["old"], [])


def test_as_many_leave_as_make_room() -> None:
    models = [candidate("a", 1, 10), candidate("b", 2, 10), candidate("c", 3, 10)]
    assert names(on_one_device(models, "cpu", 15, NOW_S)) == (["a", "b"], [])


def test_one_that_the_next_makes_needless_is_spared() -> None:
    models = [candidate("small", 1, 10), candidate("large", 2, 100)]
    assert names(on_one_device(models, "cpu", 60, NOW_S)) == (["large"], [])


def test_one_on_another_device_does_not_help() -> None:
    models = [candidate("elsewhere", 1, 100, device="gpu"), candidate("here", 2, 100)]
    assert names(on_one_device(models, "cpu", 60, NOW_S)) == (["here"], [])


def test_idle_ones_leave_before_busy_ones_whatever_their_age() -> None:
    models = [candidate("busy", 1, 100, is_idle=False), candidate("idle", 9, 100)]
    assert names(on_one_device(models, "cpu", 60, NOW_S)) == (["idle"], [])


def test_busy_ones_are_drained_only_when_the_idle_do_not_suffice() -> None:
    models = [candidate("busy", 1, 100, is_idle=False), candidate("idle", 9, 10)]
    assert names(on_one_device(models, "cpu", 105, NOW_S)) == (["idle"], ["busy"])


def test_when_all_together_do_not_suffice_nobody_leaves() -> None:
    assert on_one_device([candidate("a", 1, 10)], "cpu", 11, NOW_S) is None


def test_a_place_is_made_whatever_the_size() -> None:
    models = [candidate("busy", 1, 1, is_idle=False), candidate("old", 2, 1), candidate("new", 3, 1)]
    assert names(make_place(models, 1, NOW_S)) == (["old"], [])


def test_what_takes_long_to_load_again_stays_though_it_was_used_less_recently() -> None:
    slow = replace(candidate("slow", 1, 10), reload_s=30.0)
    assert names(on_one_device([slow, candidate("quick", 2, 10)], "cpu", 5, NOW_S)) == (["quick"], [])


def test_however_long_it_takes_to_load_its_time_comes() -> None:
    slow = replace(candidate("slow", 1, 10), reload_s=30.0)
    models = [slow, candidate("quick", 999, 10)]
    assert names(on_one_device(models, "cpu", 5, now_s=1000.0)) == (["slow"], [])


def test_loads_of_under_a_second_are_all_the_same() -> None:
    models = [
        replace(candidate("old", 1, 10), reload_s=0.9),
        replace(candidate("new", 1.1, 10), reload_s=0.1),
    ]
    assert names(on_one_device(models, "cpu", 5, NOW_S)) == (["old"], [])


def test_one_that_makes_enough_room_leaves_rather_than_three() -> None:
    small = [candidate(str(i), 5, 10) for i in range(3)]
    assert names(on_one_device([*small, candidate("large", 6, 30)], "cpu", 25, NOW_S)) == (["large"], [])


def test_a_model_kept_for_ever_never_leaves() -> None:
    pinned = replace(candidate("pinned", 1, 100), is_pinned=True)
    assert on_one_device([pinned, candidate("b", 2, 10)], "cpu", 50, NOW_S) is None
    assert names(on_one_device([pinned, candidate("b", 2, 10)], "cpu", 5, NOW_S)) == (["b"], [])
    assert names(make_place([pinned, candidate("b", 2, 10)], 2, NOW_S)) == (["b"], [])


def test_between_equal_ones_the_choice_does_not_depend_on_their_order() -> None:
    models = [candidate(name, 1, 10) for name in "bca"]
    assert names(on_one_device(models, "cpu", 5, NOW_S)) == names(
        on_one_device(models[::-1], "cpu", 5, NOW_S)
    )


candidates = st.lists(
    st.builds(
        Candidate,
        digest=st.just(""),
        name=st.just(""),
        last_used_s=st.integers(0, 9).map(float),
        is_idle=st.booleans(),
        held_bytes=st.dictionaries(st.sampled_from(["cpu", "gpu"]), st.integers(0, 50)),
        reload_s=st.integers(0, 60).map(float),
        is_pinned=st.booleans(),
    ),
    max_size=EXACT_MAX + 4,
).map(lambda drawn: [replace(one, digest=str(i), name=str(i)) for i, one in enumerate(drawn)])
shortages = st.integers(1, 200)


def movable(models: list[Candidate]) -> list[Candidate]:
    return [one for one in models if not one.is_pinned and one.held_bytes.get("cpu", 0)]


@given(models=candidates, shortage=shortages)
def test_victims_suffice_and_none_is_needless(models: list[Candidate], shortage: int) -> None:
    victims = on_one_device(models, "cpu", shortage, NOW_S)
    if victims is None:
        assert sum(model.held_bytes["cpu"] for model in movable(models)) < shortage
        return
    sizes = [model.held_bytes["cpu"] for model in (*victims.stop, *victims.drain)]
    assert sum(sizes) >= shortage
    assert all(sum(sizes) - size < shortage for size in sizes)


@given(models=candidates, shortage=shortages)
def test_busy_models_are_never_stopped_and_pinned_ones_never_touched(
    models: list[Candidate], shortage: int
) -> None:
    victims = on_one_device(models, "cpu", shortage, NOW_S) or Victims(())
    assert all(model.is_idle for model in victims.stop)
    assert not any(model.is_idle for model in victims.drain)
    assert not any(model.is_pinned for model in (*victims.stop, *victims.drain))


@given(models=candidates, shortage=shortages)
def test_busy_models_are_drained_only_if_the_idle_do_not_suffice(
    models: list[Candidate], shortage: int
) -> None:
    victims = on_one_device(models, "cpu", shortage, NOW_S) or Victims(())
    idle_bytes = sum(model.held_bytes["cpu"] for model in movable(models) if model.is_idle)
    assert not victims.drain or idle_bytes < shortage


@given(models=candidates, shortage=shortages, waited_s=st.integers(1, 100))
def test_a_victim_that_was_idle_for_longer_would_leave_all_the_more(
    models: list[Candidate], shortage: int, waited_s: int
) -> None:
    victims = on_one_device(models[:EXACT_MAX], "cpu", shortage, NOW_S)
    for victim in victims.stop if victims else ():
        older = replace(victim, last_used_s=victim.last_used_s - waited_s)
        again = on_one_device(
            [older if one is victim else one for one in models[:EXACT_MAX]], "cpu", shortage, NOW_S
        )
        assert again is not None
        assert older in again.stop


@given(models=candidates, shortage=shortages)
def test_no_single_model_would_have_done_at_less_cost(models: list[Candidate], shortage: int) -> None:
    models = models[:EXACT_MAX]
    victims = on_one_device(models, "cpu", shortage, NOW_S)
    if victims is None or victims.drain:
        return
    paid = sum(cost(model, NOW_S) for model in victims.stop)
    enough = [one for one in movable(models) if one.is_idle and one.held_bytes["cpu"] >= shortage]
    assert all(cost(one, NOW_S) >= paid * (1 - 1e-9) for one in enough)


@given(models=candidates, n_places=st.integers(1, 4))
def test_places_come_from_the_cheapest_idle_first(models: list[Candidate], n_places: int) -> None:
    victims = make_place(models, n_places, NOW_S)
    open_ones = [one for one in models if not one.is_pinned]
    n_idle = sum(one.is_idle for one in open_ones)
    assert len(victims.stop) == min(n_places, n_idle)
    assert len(victims.drain) == min(n_places, len(open_ones)) - len(victims.stop)
    spared = [one for one in open_ones if one.is_idle and one not in victims.stop]
    assert all(cost(left, NOW_S) <= cost(stays, NOW_S) for left in victims.stop for stays in spared)


def test_of_several_devices_the_one_whose_models_cost_least_is_cleared() -> None:
    dear = Candidate("dear", "dear", 1, True, {"g0": 10}, reload_s=9.0)
    cheap = candidate("cheap", 1, 10, device="g1")
    shortages = {"g0": 5, "g1": 5}
    for models in ([dear, cheap], [cheap, dear]):
        found = make_room(models, shortages, NOW_S)
        assert found is not None
        assert (found[0], names(found[1])) == ("g1", (["cheap"], []))


def test_a_device_that_cannot_be_cleared_is_not_chosen() -> None:
    pinned = Candidate("pinned", "pinned", 1, True, {"g0": 10}, is_pinned=True)
    dear = Candidate("dear", "dear", 1, True, {"g1": 10}, reload_s=9.0)
    found = make_room([pinned, dear], {"g0": 5, "g1": 5}, NOW_S)
    assert found is not None
    assert found[0] == "g1"
    assert make_room([pinned], {"g0": 5, "g1": 5}, NOW_S) is None
