"""A simulated accelerator: memory that a shared machine keeps account of, the host's kernels behind it.

Everything about its memory is as with a real one: the host cannot touch it, what crosses is copied, the
allocator rounds, a process pays for a context.  What its kernels compute is what the host's compute.
"""

from collections.abc import Mapping

from kernels.backend import Backend, Binding, Segment, Synchronous
from kernels.memory import Allocations, HostMemory, Memory
from kernels.ops.op import Op
from kernels.sim.machine import SimMachine, round_up
from kernels.sim.memory import SimBuffer, SimMemory
from kernels.tensor import Bounds, Tensor

ALIGNMENT = 256  # what accelerators want of a tensor


class SimBackend(Synchronous):
    """Satisfies `kernels.backend.Backend`.

    name: the id or UUID of a device of the machine, LookupError when there is none.  executor: a backend of
    the host, which computes.
    """

    def __init__(self, machine: SimMachine, name: str, executor: Backend) -> None:
        device = machine.find(name)
        if device is None:
            raise LookupError(f"the simulated machine has no device {name!r}")
        self.allocations = Allocations()
        self._machine = machine
        self._name = name
        self._device = device
        self._executor = executor

    @property
    def name(self) -> str:
        """The device id."""
        return self._name

    @property
    def title(self) -> str:
        """As the machine has it."""
        return self._device.name

    @property
    def is_host(self) -> bool:
        """Its memory is its own."""
        return False

    @property
    def alignment(self) -> int:
        """Byte alignment of tensors."""
        return ALIGNMENT

    @property
    def context_bytes(self) -> int:
        """As the machine has it."""
        return self._device.context_bytes

    def held_bytes(self) -> int:
        """What the machine's ledger says."""
        return sum(self._machine.held(self._device.id))

    def open(self) -> None:
        """A context for this process."""
        self._machine.open_context(self._name)

    def close(self) -> None:
        """Give the context back."""
        self._machine.close_context(self._name)

    def refuses(self, op: Op) -> str | None:
        """What the host cannot run either."""
        return self._executor.refuses(op)

    def workspace_bytes(self, op: Op, bounds: Bounds) -> int:
        """What the host's kernels need; it lies on the device."""
        return self._executor.workspace_bytes(op, bounds)

    def round_up(self, n_bytes: int) -> int:
        """Whole granules."""
        return round_up(n_bytes, self._device.granularity_bytes)

    def allocate(self, n_bytes: int, label: str) -> SimBuffer:
        """Zeros on the device; OutOfMemory as the machine decides."""
        given_bytes = self._machine.allocate(self._name, n_bytes, label)
        try:
            return SimBuffer(self._name, n_bytes, given_bytes, label, self.allocations, self._release)
        except MemoryError:
            self._release(given_bytes)
            raise

    def bind(self, binding: Binding) -> Segment:
        """For the executor, whose kernels see this device's memory; ValueError for memory of another."""
        memory: Mapping[Tensor, Memory] = {t: self._seen(m) for t, m in binding.memory.items()}
        workspace = self._seen(binding.workspace)
        return self._executor.bind(Binding(binding.ops, memory, binding.bounds, workspace))

    def _seen(self, memory: Memory) -> HostMemory:
        if not isinstance(memory, SimMemory):
            raise ValueError(f"kernels of {self._name} cannot reach {memory}")
        return HostMemory(memory.seen_by(self._name))

    def _release(self, given_bytes: int) -> None:
        self._machine.release(self._name, given_bytes)
