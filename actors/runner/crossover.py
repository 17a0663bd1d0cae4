"""From how many rows on layers of the host are computed faster by a device that gets their weights each time.

A layer's products are timed on both sides at a few numbers of rows when a model is loaded; between these time
is taken to grow by the row, and beyond.  Attention stays where it is on both, and so is left out.

Of a layer with experts a batch reads those that its rows choose.  They are timed, and copies of them are
counted, as if each were as likely as any other; real routers have favourites, which makes both cheaper.
"""

from collections.abc import Callable, Iterable
from itertools import pairwise
from typing import NamedTuple

N_RUNS = 2  # of which the shortest counts
FEW_ROWS, MANY_ROWS = 8, 64

Check = Callable[[], None]  # called between runs; raises when nobody wants them any more


class Curve(NamedTuple):
    """Seconds that a layer takes for a batch: measured ones joined by lines, of which the last goes on."""

    rows: tuple[int, ...]  # rising, two or more
    seconds: tuple[float, ...]

    def at(self, n_rows: int) -> float:
        """For so many rows; more of them never take less than the measured number of rows before."""
        points = list(zip(self.rows, self.seconds, strict=True))
        (few, few_s), (many, many_s) = next(
            (pair for pair in pairwise(points) if n_rows <= pair[1][0]), (points[-2], points[-1])
        )
        return few_s + (n_rows - few) * max(0.0, many_s - few_s) / (many - few)


class Chosen(NamedTuple):
    """The experts of a layer."""

    n_expert: int  # to choose from
    n_used: int  # by a row

    def expected(self, n_rows: int) -> float:
        """How many different ones rows choose, where each is as likely as any other."""
        return self.n_expert * (1 - (1 - self.n_used / self.n_expert) ** n_rows)


class Copied(NamedTuple):
    """Seconds that copies of a layer's weights take."""

    whole_s: float  # of all
    expert_s: float = 0.0  # of one expert
    chosen: Chosen | None = None  # None: there are no experts


class LayerTimes(NamedTuple):
    """What each of n_layer alike takes, computed by the host and by a device."""

    n_layer: int
    host: Curve
    device: Curve
    copied: Copied

    def ahead_s(self, n_rows: int) -> float:
        """On the device, where all weights come while the layer before computes."""
        return max(self.copied.whole_s, self.device.at(n_rows))

    def chosen_s(self, n_rows: int) -> float:
        """On the device, where experts come once it is known which, and nothing computes meanwhile."""
        whole_s, expert_s, chosen = self.copied
        if chosen is None:
            return self.ahead_s(n_rows)
        shared_s = whole_s - chosen.n_expert * expert_s
        return max(shared_s, self.device.at(n_rows)) + chosen.expected(n_rows) * expert_s

    def streamed_s(self, n_rows: int) -> float:
        """On the device, the faster way."""
        return min(self.ahead_s(n_rows), self.chosen_s(n_rows))


def crossover(layers: Iterable[LayerTimes], n_batch: int) -> int | None:
    """The fewest rows from which on the device is faster up to n_batch; None where it is not for n_batch."""
    kinds = list(layers)

    def is_faster(n_rows: int) -> bool:
        return sum(one.n_layer * (one.host.at(n_rows) - one.streamed_s(n_rows)) for one in kinds) > 0

    first = _first_of_the_last(is_faster, n_batch)
    return first if first <= n_batch else None


def whole_from(layer: LayerTimes, n_batch: int) -> int:
    """The fewest rows from which on all experts are better brought ahead; n_batch + 1 where they never are.

    Then the wait for those that a batch chooses is longer than the copy of all that computing does not hide.
    """
    return _first_of_the_last(lambda n_rows: layer.ahead_s(n_rows) <= layer.chosen_s(n_rows), n_batch)


def measured(
    run: Callable[[int], None], sizes: Iterable[int], clock: Callable[[], float], check: Check
) -> Curve:
    """run: computes a layer for so many rows, and returns when that is done; sizes: of rows, rising."""
    rows = tuple(sizes)
    check()
    run(rows[0])  # whatever is done once only
    return Curve(rows, tuple(shortest_s(lambda n=n: run(n), clock, check) for n in rows))


def sizes_of(n_batch: int, *, has_experts: bool) -> list[int]:
    """Rows to measure at; of experts more are read the more rows there are, until all of them are."""
    few, many = min(FEW_ROWS, n_batch // 2), min(MANY_ROWS, n_batch)
    return sorted({few, many, n_batch} if has_experts else {few, many})


def shortest_s(run: Callable[[], None], clock: Callable[[], float], check: Check) -> float:
    """Of a few runs."""
    found: list[float] = []
    for _ in range(N_RUNS):
        check()
        began_s = clock()
        run()
        found.append(clock() - began_s)
    return min(found)


def _first_of_the_last(holds: Callable[[int], bool], n_batch: int) -> int:
    """The least number of rows from which on something holds up to n_batch; n_batch + 1: not there either."""
    n_rows = n_batch
    while n_rows > 0 and holds(n_rows):
        n_rows -= 1
    return n_rows + 1
