"""The other actors' gauges as Prometheus reads them."""

from actors.gateway.peers import exposition
from actors.protocol import Stats


def text(**answers: Stats | None) -> list[str]:
    return [line for line in exposition(answers).decode().splitlines() if not line.startswith("#")]


def stats(**gauges: float) -> Stats:
    named = {name.replace("__", ":"): value for name, value in gauges.items()}
    return Stats("scheduler", 1, "test", 1.0, named)


def test_gauges_and_counters_carry_the_actors_name() -> None:
    lines = text(scheduler=stats(queued=3, loads_total=7))
    assert "scheduler_queued 3.0" in lines
    assert "scheduler_loads_total 7.0" in lines


def test_a_gauge_of_a_device_has_the_device_as_a_label() -> None:
    lines = text(scheduler=stats(held_bytes__cpu=5, held_bytes__gpu=6))
    assert 'scheduler_held_bytes{device="cpu"} 5.0' in lines
    assert 'scheduler_held_bytes{device="gpu"} 6.0' in lines


def test_a_name_that_begins_with_the_actors_is_not_said_twice() -> None:
    assert "discovery_subscribers 2.0" in text(discovery=stats(discovery_subscribers=2))


def test_an_actor_that_does_not_answer_is_down_and_the_rest_is_told() -> None:
    lines = text(scheduler=None, host=stats(runners=1))
    assert 'actor_up{actor="scheduler"} 0.0' in lines
    assert 'actor_up{actor="host"} 1.0' in lines
    assert "host_runners 1.0" in lines
