"""A machine of simulated accelerators, shared by all processes of the host through a folder.

Tests add devices, take and give back memory as other programs do, and script faults, all while runners work:

    machine = SimMachine(folder)
    machine.add_device("sim:0", 64 << 20)
    machine.take("game", "sim:0", 16 << 20)
    machine.fail_allocation("sim:0", 3)

A process that uses a device opens a context there and takes its buffers; what it held is free once it is
dead, however it died.  Tests name a device by its id; a process may use its UUID too.
"""

import os
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from kernels.backend import CONTEXT
from kernels.memory import OutOfMemory
from kernels.sim.state import (
    DEFAULT_CONTEXT_BYTES,
    DEFAULT_GRANULARITY_BYTES,
    Faults,
    ProbeScript,
    SimDevice,
    State,
    Taking,
)
from kernels.sim.store import Store, started_of


class Held(NamedTuple):
    """What one process has on one device, in bytes."""

    context_bytes: int
    buffer_bytes: int


class SimMachine:
    """See the module's text.  Holds no state of its own: any number of them may share a folder."""

    def __init__(self, folder: str | Path) -> None:
        self._store = Store(Path(folder))

    # what there is

    def devices(self) -> tuple[SimDevice, ...]:
        """All devices, in the order they were added."""
        return tuple(self._store.read().devices.values())

    def find(self, name: str) -> SimDevice | None:
        """The device with this id or UUID."""
        try:
            return self._store.read().device(name)
        except KeyError:
            return None

    def used(self, device: str) -> int:
        """Bytes that processes and other programs hold."""
        return self._store.read().used_bytes(device)

    def free(self, device: str) -> int:
        """Bytes that really are free."""
        return self._store.read().free_bytes(device)

    def reported_free(self, device: str) -> int:
        """Bytes that the device says are free; see `lie`."""
        return self._store.read().reported_bytes(device)

    def held(self, device: str, pid: int | None = None) -> Held:
        """What a process, this one by default, has on a device."""
        holding = self._store.read().holding(device, os.getpid() if pid is None else pid)
        return Held(0, 0) if holding is None else Held(holding.context_bytes, holding.buffer_bytes)

    def holders(self, device: str) -> tuple[int, ...]:
        """Pids of the living processes with a context on a device."""
        return tuple(h.pid for h in self._store.read().holdings if h.device == device)

    def n_allocations(self, device: str) -> int:
        """Allocations that succeeded since the device was added, of all processes."""
        return self._store.read().n_allocations.get(device, 0)

    def probe_script(self) -> ProbeScript:
        """How probes are to go wrong; see `kernels.sim.probe`."""
        return self._store.read().probe

    # what a test changes

    def add_device(
        self,
        device: str,
        total_bytes: int,
        *,
        name: str = "Simulated accelerator",
        granularity_bytes: int = DEFAULT_GRANULARITY_BYTES,
        context_bytes: int = DEFAULT_CONTEXT_BYTES,
        is_integrated: bool = False,
        uuid: str = "",
        pci_id: str = "",
        bytes_per_s: float = 0.0,
        copy_s: float = 0.0,
    ) -> SimDevice:
        """A new device, or another one in its place, without faults."""
        made = SimDevice(
            device,
            total_bytes,
            name,
            granularity_bytes,
            context_bytes,
            is_integrated,
            uuid,
            pci_id,
            bytes_per_s,
            copy_s,
        )
        with self._store.change() as state:
            state.devices[device] = made
            state.faults[device] = Faults()
            state.n_allocations[device] = 0
        return made

    def remove_device(self, device: str) -> None:
        """Pull the device out; what was held on it is gone with it."""
        with self._store.change() as state:
            del state.devices[device], state.faults[device], state.n_allocations[device]
            state.holdings = [h for h in state.holdings if h.device != device]
            for held in state.others.values():
                held.pop(device, None)

    def take(self, program: str, device: str, n_bytes: int) -> None:
        """Another program takes memory; ValueError when there is not so much."""
        with self._store.change() as state:
            free_bytes = state.free_bytes(device)
            if n_bytes > free_bytes:
                raise ValueError(f"{program} cannot take {n_bytes} bytes of {device}, {free_bytes} are free")
            held = state.others.setdefault(program, {})
            held[device] = held.get(device, 0) + n_bytes

    def give_back(self, program: str, device: str, n_bytes: int | None = None) -> None:
        """Another program gives memory back, all it has there by default."""
        with self._store.change() as state:
            held_bytes = state.others.get(program, {}).get(device, 0)
            n_bytes = held_bytes if n_bytes is None else n_bytes
            if n_bytes > held_bytes:
                raise ValueError(f"{program} holds {held_bytes} bytes of {device}, not {n_bytes}")
            state.others.setdefault(program, {})[device] = held_bytes - n_bytes

    # faults

    def fail_allocation(self, device: str, n: int) -> None:
        """The n-th allocation of a buffer from now, counted from 1, fails; 0: none."""
        with self._store.change() as state:
            state.faults[device].fail_in = n

    def take_before_allocation(self, program: str, device: str, n_bytes: int) -> None:
        """Another program comes before the next allocation and takes so much, or what there is."""
        with self._store.change() as state:
            state.faults[device].takings.append(Taking(program, n_bytes))

    def lie(self, device: str, free_factor: float) -> None:
        """The device says that free_factor times what really is free is free, up to all it has."""
        with self._store.change() as state:
            state.faults[device].free_factor = free_factor

    def script_probe(self, script: ProbeScript) -> None:
        """How probes go wrong from now on; ProbeScript() mends them."""
        with self._store.change() as state:
            state.probe = script

    # what a process does, for itself

    def open_context(self, name: str) -> None:
        """A context on a device, once for each process; OutOfMemory says what is free."""
        with self._store.change() as state:
            device = _device(state, name, 0, CONTEXT)
            is_given = state.give_context(device.id, os.getpid(), _own_start())
            free_bytes = state.free_bytes(device.id)
        if not is_given:
            raise OutOfMemory(name, device.context_bytes, CONTEXT, f"{free_bytes} are free")

    def close_context(self, name: str) -> None:
        """Give back the context and every buffer under it; nothing where there is none, or no device."""
        with self._store.change() as state, suppress(KeyError):
            state.take_context(state.device(name).id, os.getpid())

    def allocate(self, name: str, n_bytes: int, label: str) -> int:
        """Bytes given for n_bytes, rounded; OutOfMemory says for what and what is free."""
        with self._store.change() as state:
            device = _device(state, name, n_bytes, label)
            given_bytes = round_up(n_bytes, device.granularity_bytes)
            is_given = state.give_buffer(device.id, os.getpid(), given_bytes)
            free_bytes = state.free_bytes(device.id)
        if not is_given:
            raise OutOfMemory(name, n_bytes, label, f"{free_bytes} are free")
        return given_bytes

    def release(self, name: str, given_bytes: int) -> None:
        """Give back what `allocate` gave; a device that is gone took it along."""
        with self._store.change() as state, suppress(KeyError):
            state.take_buffer(state.device(name).id, os.getpid(), given_bytes)


def round_up(n_bytes: int, granularity_bytes: int) -> int:
    """What a device's allocator gives for a request."""
    return -(-n_bytes // granularity_bytes) * granularity_bytes


def _device(state: State, name: str, n_bytes: int, label: str) -> SimDevice:
    try:
        return state.device(name)
    except KeyError as exc:
        raise OutOfMemory(name, n_bytes, label, "the device is gone") from exc


def _own_start() -> int:
    started = started_of(os.getpid())
    assert started is not None, "a process that asks is alive"
    return started
