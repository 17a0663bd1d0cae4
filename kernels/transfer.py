"""Values that cross from one device to another between two segments."""

from collections.abc import Callable, Sequence

from kernels.memory import Bytes, HostMemory, Memory
from kernels.ops.copy import Copy
from kernels.tensor import Bounds, Tensor


class Transfer:
    """Copies, run in the order of the plan's steps: bytes of the arenas may change their owner in between."""

    def __init__(self, moves: Sequence[tuple[Copy, Memory, Memory]]) -> None:
        """moves: the copy, where x lies, where out lies; ValueError when neither is on the host."""
        self._moves = [_resolved(*move) for move in moves]

    def run(self, values: Bounds) -> None:
        """Copy what these values of the symbols make of each tensor."""
        for tensor, host, move in self._moves:
            move(host[: tensor.n_bytes(values)])


def _resolved(copy: Copy, source: Memory, target: Memory) -> tuple[Tensor, Bytes, Callable[[Bytes], None]]:
    """The tensor, its array on the host, and what moves the head of that array."""
    if isinstance(source, HostMemory):
        return copy.x, source.array, target.upload
    if isinstance(target, HostMemory):
        return copy.x, target.array, source.download
    raise ValueError(f"{copy.x} cannot go from {source} to {target}: neither is the host's memory")
