"""The gauges of the other actors, for /metrics: they serve no HTTP of their own."""

from collections.abc import Iterable, Iterator, Mapping

import trio
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import generate_latest
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric

from actors.errors import RuntimeFault
from actors.gateway.links import Links
from actors.protocol import GetStats, Stats

ANSWER_S = 1.0  # an actor that takes longer is not up; whoever scrapes waits for the answer


class Peers:
    """The actors at these addresses, by name."""

    def __init__(self, links: Links, addresses: Mapping[str, str]) -> None:
        self._links = links
        self._addresses = addresses

    async def exposition(self) -> bytes:
        """All their gauges in Prometheus' text format, and who answered."""
        answers: dict[str, Stats | None] = dict.fromkeys(self._addresses)

        async def ask(name: str, address: str) -> None:
            with trio.move_on_after(ANSWER_S):
                try:
                    async with self._links.use(address) as link:
                        answers[name] = await link.ask(GetStats(), Stats)
                except RuntimeFault:
                    return  # told as actor_up 0

        async with trio.open_nursery() as nursery:
            for name, address in self._addresses.items():
                nursery.start_soon(ask, name, address)
        return exposition(answers)


def exposition(answers: Mapping[str, Stats | None]) -> bytes:
    """Gauges in Prometheus' text format; None: the actor did not answer.

    A gauge "held_bytes:cpu" of the scheduler becomes scheduler_held_bytes{device="cpu"}.
    """
    registry = CollectorRegistry()
    registry.register(_Answers(answers))
    return generate_latest(registry)


class _Answers:
    """A collector, as prometheus_client calls it."""

    def __init__(self, answers: Mapping[str, Stats | None]) -> None:
        self._answers = answers

    def collect(self) -> Iterator[Metric]:
        """For prometheus_client."""
        is_up = GaugeMetricFamily("actor_up", "Whether the actor answered", labels=("actor",))
        for name, stats in self._answers.items():
            is_up.add_metric((name,), float(stats is not None))
        yield is_up
        for name, stats in self._answers.items():
            if stats is not None:
                yield from _families(name, stats.gauges)


def _families(actor: str, gauges: Mapping[str, float]) -> Iterable[Metric]:
    families: dict[str, GaugeMetricFamily | CounterMetricFamily] = {}
    for gauge, value in gauges.items():
        name, _, device = gauge.partition(":")
        full = name if name.startswith(f"{actor}_") else f"{actor}_{name}"
        kind = CounterMetricFamily if name.endswith("_total") else GaugeMetricFamily
        labels = ("device",) if device else ()
        if full not in families:
            families[full] = kind(full, f"{name} of the {actor}; see docs/architecture.md", labels=labels)
        families[full].add_metric((device,) if device else (), value)
    return families.values()
