"""Where each weight goes: used in the mapped file on the host, or copied into its layer's block on a device.

Pure arithmetic over a plan.
"""

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass

from kernels.backend import Backend
from kernels.plan import Placement, Plan
from kernels.tensor import Tensor


@dataclass(frozen=True, slots=True)
class Block:
    """The weights of one layer on one device, in one allocation; on the host they stay in the file."""

    device: str
    layer: int  # -1 is the input side, n_layer the output
    tensors: tuple[Tensor, ...]
    offsets: tuple[int, ...]  # of each tensor
    n_bytes: int
    is_mapped: bool

    @property
    def label(self) -> str:
        """What its allocation is called."""
        return f"weights.{self.layer}"


def blocks_of(plan: Plan, placement: Placement, backends: Mapping[str, Backend]) -> list[Block]:
    """Every weight once on each device that reads it, in the order of layers."""
    groups: dict[tuple[int, str], list[Tensor]] = defaultdict(list)
    for tensor, device in plan.weights:
        # a tied embedding is an input weight at home, and belongs to the output layer elsewhere
        is_tied = tensor.layer < 0 and device != placement.input
        groups[plan.program.n_layer if is_tied else tensor.layer, device].append(tensor)
    return [
        _block(device, layer, groups[layer, device], backends[device]) for layer, device in sorted(groups)
    ]


def streamed_blocks(plan: Plan, backends: Mapping[str, Backend]) -> list[Block]:
    """What the device of each streamed layer reads, in the order of layers, laid out for a slot."""
    return [
        _block(
            device,
            layer,
            [t for t, where in plan.weights if t.layer == layer and where == device],
            backends[device],
        )
        for layer, device in sorted(plan.streamed.items())
    ]


def _block(device: str, layer: int, tensors: list[Tensor], backend: Backend) -> Block:
    offsets: list[int] = []
    end = 0
    for tensor in tensors:
        # on the host nothing is laid out: the file promises no alignment, and kernels there want none
        start = end if backend.is_host else -(-end // backend.alignment) * backend.alignment
        offsets.append(start)
        end = start + tensor.n_bytes({})
    return Block(device, layer, tuple(tensors), tuple(offsets), end, backend.is_host)
