"""Values that cross from one device to another between two segments."""

from collections.abc import Callable, Sequence
from functools import partial

from kernels.memory import Bytes, HostMemory, Memory
from kernels.ops.copy import Copy
from kernels.tensor import Bounds


class Transfer:
    """Copies, run in the order of the plan's steps: bytes of the arenas may change their owner in between."""

    def __init__(self, moves: Sequence[tuple[Copy, Memory, Memory]]) -> None:
        """moves: the copy, where x lies, where out lies; ValueError when neither reaches the other."""
        self._moves = [(copy.x, _resolved(copy, source, target)) for copy, source, target in moves]

    def run(self, values: Bounds) -> None:
        """Copy what these values of the symbols make of each tensor."""
        for tensor, move in self._moves:
            move(tensor.n_bytes(values))


def _resolved(copy: Copy, source: Memory, target: Memory) -> Callable[[int], None]:
    """What copies so many bytes at the beginning."""
    if isinstance(source, HostMemory):
        return partial(_on_head, target.upload, source.array)
    if isinstance(target, HostMemory):
        return partial(_on_head, source.download, target.array)
    if target.reaches(source):
        return partial(target.receive, source)
    raise ValueError(f"{copy.x} cannot go from {source} to {target}: neither reaches the other")


def _on_head(move: Callable[[Bytes], None], array: Bytes, n_bytes: int) -> None:
    move(array[:n_bytes])
