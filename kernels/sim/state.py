"""What a simulated machine consists of, and the arithmetic on it: pure, without a file or a clock.

A device's memory belongs to processes (by pid, and the tick at which they started, since pids come again) and
to other "programs", which a test moves while things run.  What a dead process held is free.
"""

from collections.abc import Callable, Mapping

import msgspec

DEFAULT_GRANULARITY_BYTES = 64 << 10
DEFAULT_CONTEXT_BYTES = 1 << 20


class SimDevice(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A simulated accelerator.  All sizes in bytes."""

    id: str  # "sim:0"
    total_bytes: int
    name: str = "Simulated accelerator"
    granularity_bytes: int = DEFAULT_GRANULARITY_BYTES  # what its allocator rounds to
    context_bytes: int = DEFAULT_CONTEXT_BYTES  # taken once by each process that uses it
    is_integrated: bool = False
    uuid: str = ""
    pci_id: str = ""
    bytes_per_s: float = 0.0  # the speed of its memory, as the driver claims it; 0: it does not say
    copy_s: float = 0.0  # how long a small copy between it and the host takes, likewise


class Holding(msgspec.Struct, forbid_unknown_fields=True):
    """What one process has on one device."""

    pid: int
    started: int  # clock ticks since boot, from /proc
    device: str
    context_bytes: int
    buffer_bytes: int = 0  # as given

    @property
    def bytes(self) -> int:
        """Buffers and context."""
        return self.context_bytes + self.buffer_bytes


class Taking(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Another program that comes before the next allocation and takes so much, or what there is."""

    program: str
    n_bytes: int


class Faults(msgspec.Struct, forbid_unknown_fields=True):
    """What goes wrong on one device."""

    fail_in: int = 0  # the n-th allocation from now fails; 0: none
    free_factor: float = 1.0  # what the driver says is free, as a factor of what is
    takings: list[Taking] = []


class ProbeScript(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How the next probes go wrong."""

    is_crashing: bool = False
    is_hanging: bool = False
    late_s: float = 0.0
    has_duplicates: bool = False  # every device is listed twice
    other_ids: Mapping[str, str] = {}  # device id -> the id that is reported instead


class State(msgspec.Struct, forbid_unknown_fields=True):
    """The whole machine, as it lies in the file."""

    devices: dict[str, SimDevice] = {}
    faults: dict[str, Faults] = {}  # by device
    holdings: list[Holding] = []
    others: dict[str, dict[str, int]] = {}  # program -> device -> bytes
    n_allocations: dict[str, int] = {}  # by device, since it was added: those that succeeded
    probe: ProbeScript = ProbeScript()

    def device(self, name: str) -> SimDevice:
        """By id or UUID; KeyError says which there are."""
        for device in self.devices.values():
            if name in (device.id, device.uuid):
                return device
        raise KeyError(f"no simulated device {name!r}, there are {', '.join(self.devices) or 'none'}")

    def used_bytes(self, device: str) -> int:
        """Everything that processes and other programs hold."""
        others = sum(held.get(device, 0) for held in self.others.values())
        return others + sum(h.bytes for h in self.holdings if h.device == device)

    def free_bytes(self, device: str) -> int:
        """What really is free."""
        return max(0, self.devices[device].total_bytes - self.used_bytes(device))

    def reported_bytes(self, device: str) -> int:
        """What the driver says is free."""
        believed = int(self.free_bytes(device) * self.faults[device].free_factor)
        return min(self.devices[device].total_bytes, believed)

    def holding(self, device: str, pid: int) -> Holding | None:
        """What a process has on a device; None without a context there."""
        return next((h for h in self.holdings if h.device == device and h.pid == pid), None)

    def bury(self, is_alive: Callable[[int, int], bool]) -> None:
        """Free what dead processes held; is_alive takes pid and start."""
        self.holdings = [h for h in self.holdings if is_alive(h.pid, h.started)]

    def give_context(self, device: str, pid: int, started: int) -> bool:
        """A context for the process, the one it has if there is one; False: no memory."""
        if self.holding(device, pid) is not None:
            return True
        context_bytes = self.devices[device].context_bytes
        if context_bytes > self.free_bytes(device):
            return False
        self.holdings.append(Holding(pid, started, device, context_bytes))
        return True

    def give_buffer(self, device: str, pid: int, n_bytes: int) -> bool:
        """n_bytes, already rounded, for a process with a context; False: no memory, or a scripted fault."""
        faults = self.faults[device]
        for taking in faults.takings:
            held = self.others.setdefault(taking.program, {})
            held[device] = held.get(device, 0) + min(taking.n_bytes, self.free_bytes(device))
        faults.takings = []
        is_refused = faults.fail_in == 1
        faults.fail_in = max(0, faults.fail_in - 1)
        holding = self.holding(device, pid)
        if holding is None:
            raise ValueError(f"process {pid} has no context on {device}")
        if is_refused or n_bytes > self.free_bytes(device):
            return False
        holding.buffer_bytes += n_bytes
        self.n_allocations[device] = self.n_allocations.get(device, 0) + 1
        return True

    def take_buffer(self, device: str, pid: int, n_bytes: int) -> None:
        """A process gives n_bytes back."""
        holding = self.holding(device, pid)
        if holding is None or holding.buffer_bytes < n_bytes:
            raise ValueError(f"process {pid} does not hold {n_bytes} bytes of {device}")
        holding.buffer_bytes -= n_bytes

    def take_context(self, device: str, pid: int) -> None:
        """A process gives everything back that it has on a device."""
        self.holdings = [h for h in self.holdings if (h.device, h.pid) != (device, pid)]
