"""Who leaves when another model needs room."""

from hypothesis import given
from hypothesis import strategies as st

from actors.scheduler.eviction import Candidate, Victims, make_place, make_room


def candidate(name: str, used_s: float, size: int, *, is_idle: bool = True, device: str = "cpu") -> Candidate:
    return Candidate(name, name, used_s, is_idle, {device: size})


def names(victims: Victims | None) -> tuple[list[str], list[str]]:
    assert victims is not None
    return [each.name for each in victims.stop], [each.name for each in victims.drain]


def test_the_least_recently_used_leaves() -> None:
    models = [candidate("new", 9, 10), candidate("old", 1, 10)]
    assert names(make_room(models, "cpu", 5)) == (["old"], [])


def test_as_many_leave_as_make_room() -> None:
    models = [candidate("a", 1, 10), candidate("b", 2, 10), candidate("c", 3, 10)]
    assert names(make_room(models, "cpu", 15)) == (["a", "b"], [])


def test_one_that_the_next_makes_needless_is_spared() -> None:
    models = [candidate("small", 1, 10), candidate("large", 2, 100)]
    assert names(make_room(models, "cpu", 60)) == (["large"], [])


def test_one_on_another_device_does_not_help() -> None:
    models = [candidate("elsewhere", 1, 100, device="gpu"), candidate("here", 2, 100)]
    assert names(make_room(models, "cpu", 60)) == (["here"], [])


def test_idle_ones_leave_before_busy_ones_whatever_their_age() -> None:
    models = [candidate("busy", 1, 100, is_idle=False), candidate("idle", 9, 100)]
    assert names(make_room(models, "cpu", 60)) == (["idle"], [])


def test_busy_ones_are_drained_only_when_the_idle_do_not_suffice() -> None:
    models = [candidate("busy", 1, 100, is_idle=False), candidate("idle", 9, 10)]
    assert names(make_room(models, "cpu", 105)) == (["idle"], ["busy"])


def test_when_all_together_do_not_suffice_nobody_leaves() -> None:
    assert make_room([candidate("a", 1, 10)], "cpu", 11) is None


def test_a_place_is_made_whatever_the_size() -> None:
    models = [candidate("busy", 1, 1, is_idle=False), candidate("old", 2, 1), candidate("new", 3, 1)]
    assert names(make_place(models, 1)) == (["old"], [])


candidates = st.lists(
    st.builds(
        lambda used, size, idle, device: (used, size, idle, device),
        st.integers(0, 9),
        st.integers(0, 50),
        st.booleans(),
        st.sampled_from(["cpu", "gpu"]),
    ),
    max_size=8,
).map(
    lambda rows: [
        candidate(str(i), row[0], row[1], is_idle=row[2], device=row[3]) for i, row in enumerate(rows)
    ]
)


@given(models=candidates, shortage=st.integers(1, 200))
def test_victims_suffice_and_none_is_needless(models: list[Candidate], shortage: int) -> None:
    victims = make_room(models, "cpu", shortage)
    held = sum(model.held_bytes.get("cpu", 0) for model in models)
    if victims is None:
        assert held < shortage
        return
    sizes = [model.held_bytes["cpu"] for model in (*victims.stop, *victims.drain)]
    assert sum(sizes) >= shortage
    assert all(sum(sizes) - size < shortage for size in sizes)


@given(models=candidates, shortage=st.integers(1, 200))
def test_busy_models_are_never_stopped(models: list[Candidate], shortage: int) -> None:
    victims = make_room(models, "cpu", shortage) or Victims(())
    assert all(model.is_idle for model in victims.stop)
    assert not any(model.is_idle for model in victims.drain)
