"""Layers into bins of memory: in order and evenly where that loses nothing, else whatever order holds more.

A bin is what a device can give to layers, in bytes; bins come in classes of speed, faster first.  The order
is tried first because each place where neighbouring layers lie on different devices costs a copy per token:
the last layers go to the last bin of the first class, the layers before them to the bin before it.  A share
of every bin, the smallest that still holds as many layers, makes the fill even.

What the order leaves over is filled with layers further down, and if that is still fewer layers than could
lie there, the smallest layers are packed without regard to order.  So more room never holds fewer layers
(exactly so in one bin or with layers of one size; with several, as far as a bounded search sees).
"""

from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate

Bins = tuple[int, ...]
Packed = tuple[tuple[int, ...], ...]  # the layers in each bin, rising

SHARE_BITS = 20  # a share of a bin is a whole number of its 2**-20ths
N_VISITS_MAX = 400  # of one search; the layers of real models have few sizes, and settle in tens


def pack(sizes: Sequence[int], layers: range, classes: Sequence[Bins]) -> Packed:
    """As many of `layers` as the bins hold.  `sizes` in bytes, by layer; bins as if in one row."""
    return _pack(tuple(sizes[layer] for layer in layers), layers.start, tuple(classes))


def pack_all(sizes: Sequence[int], layers: range, classes: Sequence[Bins]) -> Packed | None:
    """All of `layers`, or None where the bins do not hold them all."""
    if sum(sizes[layer] for layer in layers) > sum(map(sum, classes)):
        return None
    packed = pack(sizes, layers, classes)
    return packed if n_packed(packed) == len(layers) else None


def pack_beyond(sizes: Sequence[int], layers: range, bins: Bins) -> Packed:
    """All of `layers`, in order, however much more than the bins hold that is: in proportion to them."""
    sums = _sums([sizes[layer] for layer in layers])
    roomy = tuple(max(1, room) for room in bins)
    low, high = 0, 1 << SHARE_BITS
    while sum(_in_order(sums, roomy, high)) < len(layers):
        low, high = high, high << 4
    return _named(layers, _in_order(sums, roomy, _least_share(sums, roomy, len(layers), low, high)))


def n_packed(packed: Packed) -> int:
    """How many layers have a place."""
    return sum(map(len, packed))


def _pack(sizes: tuple[int, ...], first: int, classes: tuple[Bins, ...]) -> Packed:
    layers = range(first, first + len(sizes))
    ordered = _by_class(sizes, layers, classes)
    if n_packed(ordered) == len(layers):
        return ordered
    bins = tuple(room for each in classes for room in each)
    filled = _fill_up(sizes, layers, bins, ordered)
    if min(sizes) == max(sizes):
        return filled
    return _densest(sizes, layers, bins, n_packed(filled)) or filled


def _by_class(sizes: Sequence[int], layers: range, classes: Sequence[Bins]) -> Packed:
    rest = layers
    packed: Packed = ()
    for bins in classes:
        counts = _evenly([sizes[layer - layers.start] for layer in rest], bins)
        packed += _named(rest, counts)
        rest = rest[: len(rest) - sum(counts)]
    return packed


def _named(layers: Sequence[int], counts: Sequence[int]) -> Packed:
    """The layers behind counts per bin: the last bin has the last layers."""
    named: list[tuple[int, ...]] = []
    end = len(layers)
    for count in reversed(counts):
        named.append(tuple(layers[end - count : end]))
        end -= count
    return tuple(reversed(named))


def _evenly(sizes: Sequence[int], bins: Bins) -> list[int]:
    """Layers per bin, in order, with the smallest share of the bins that holds as many as all of them."""
    sums, whole = _sums(sizes), 1 << SHARE_BITS
    counts = _in_order(sums, bins, whole)
    if len(bins) == 1 or not sum(counts):
        return counts
    return _in_order(sums, bins, _least_share(sums, bins, sum(counts), 0, whole))


def _sums(sizes: Sequence[int]) -> list[int]:
    """Bytes of the last n layers, by n."""
    return [0, *accumulate(reversed(sizes))]


def _in_order(sums: Sequence[int], bins: Bins, share: int) -> list[int]:
    """Layers per bin: from the last layer into the last bin, never back to a bin that was left."""
    counts = [0] * len(bins)
    start = 0
    for index in reversed(range(len(bins))):
        # a bin below zero takes no layer, not even one without a byte
        end = max(start, bisect_right(sums, sums[start] + (bins[index] * share >> SHARE_BITS)) - 1)
        counts[index] = end - start
        start = end
    return counts


def _least_share(sums: Sequence[int], bins: Bins, n_wanted: int, low: int, high: int) -> int:
    """The smallest share in (low, high] that holds n_wanted; high does."""
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if sum(_in_order(sums, bins, middle)) >= n_wanted else (middle, high)
    return high


def _fill_up(sizes: Sequence[int], layers: range, bins: Bins, packed: Packed) -> Packed:
    """What the bins have left goes to layers that have no place, beside a neighbour where that is free."""
    held = [list(part) for part in packed]
    left = [
        room - sum(sizes[layer - layers.start] for layer in part)
        for room, part in zip(bins, held, strict=True)
    ]
    placed = {layer for part in held for layer in part}
    for layer in reversed(layers):
        size = sizes[layer - layers.start]
        roomy = [] if layer in placed else [i for i, room in enumerate(left) if room >= size]
        if roomy:
            best = min(roomy, key=lambda i: (not {layer - 1, layer + 1} & set(held[i]), left[i]))
            held[best].append(layer)
            left[best] -= size
    return tuple(tuple(sorted(part)) for part in held)


def _densest(sizes: Sequence[int], layers: range, bins: Bins, n_known: int) -> Packed | None:
    """More than n_known layers, the smallest; None where there are none, or a bounded search finds none."""
    rising = sorted(layers, key=lambda layer: (sizes[layer - layers.start], -layer))
    n_most = bisect_right(list(accumulate(sizes[layer - layers.start] for layer in rising)), sum(bins))
    for n in range(n_most, n_known, -1):
        chosen = sorted(rising[:n])
        of_chosen = [sizes[layer - layers.start] for layer in chosen]
        in_order = _evenly(of_chosen, bins)
        if sum(in_order) == n:
            return _named(chosen, in_order)
        bin_of = _Search([sizes[layer - layers.start] for layer in reversed(rising[:n])], bins).run()
        if bin_of is not None:
            pairs = list(zip(reversed(rising[:n]), bin_of, strict=True))
            return tuple(tuple(sorted(layer for layer, b in pairs if b == i)) for i in range(len(bins)))
    return None


class _Search:
    """Whether all of these sizes, falling, go into the bins: depth first, tightest bin first."""

    def __init__(self, sizes: Sequence[int], bins: Bins) -> None:
        self._sizes = sizes
        self._left = list(bins)
        self._to_come = list(reversed(list(accumulate(reversed(sizes)))))
        self._bin_of: list[int] = []
        self._n_visits = 0

    def run(self) -> list[int] | None:
        """The bin of each size, or None."""
        return self._bin_of if self._place(0) else None

    def _place(self, index: int) -> bool:
        if index == len(self._sizes):
            return True
        self._n_visits += 1
        # a bin that the smallest layer does not fit is lost for good
        useful = sum(room for room in self._left if room >= self._sizes[-1])
        if self._n_visits > N_VISITS_MAX or useful < self._to_come[index]:
            return False
        size = self._sizes[index]
        seen: set[int] = set()
        for bin_ in sorted(range(len(self._left)), key=self._left.__getitem__):
            room = self._left[bin_]
            if room < size or room in seen:
                continue
            seen.add(room)
            self._left[bin_] -= size
            self._bin_of.append(bin_)
            if self._place(index + 1):
                return True
            self._bin_of.pop()
            self._left[bin_] += size
        return False
