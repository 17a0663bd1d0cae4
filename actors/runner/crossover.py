"""From how many rows on a layer of the host is computed faster by a device that gets its weights each time.

Both sides are timed at two numbers of rows when a model is loaded; between and beyond these, time is taken to
grow by the row.  Attention stays where it is on both, and so is left out.
"""

from collections.abc import Callable
from typing import NamedTuple

N_RUNS = 2  # of which the shortest counts
FEW_ROWS, MANY_ROWS = 8, 64


class Line(NamedTuple):
    """Seconds that a layer takes for a batch."""

    start_s: float
    row_s: float

    def at(self, n_rows: int) -> float:
        """For so many rows."""
        return self.start_s + n_rows * self.row_s


def crossover(host: Line, device: Line, copy_s: float, n_batch: int) -> int | None:
    """The fewest rows from which on the device is faster up to n_batch; None where it is not for n_batch.

    copy_s: seconds in which a layer's weights come, while the layer before computes.
    """
    n_rows = n_batch
    while n_rows > 0 and host.at(n_rows) > max(copy_s, device.at(n_rows)):
        n_rows -= 1
    return n_rows + 1 if n_rows < n_batch else None


def measured_line(run: Callable[[int], None], n_batch: int, clock: Callable[[], float]) -> Line:
    """run: computes a layer for so many rows, and returns when that is done."""
    few, many = min(FEW_ROWS, n_batch // 2), min(MANY_ROWS, n_batch)
    run(few)  # whatever is done once only
    few_s, many_s = (shortest_s(lambda n=n: run(n), clock) for n in (few, many))
    row_s = max(0.0, (many_s - few_s) / (many - few))
    return Line(few_s - few * row_s, row_s)


def shortest_s(run: Callable[[], None], clock: Callable[[], float]) -> float:
    """Of a few runs."""
    found: list[float] = []
    for _ in range(N_RUNS):
        began_s = clock()
        run()
        found.append(clock() - began_s)
    return min(found)
