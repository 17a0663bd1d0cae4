"""The devices a runner can use, as backends; the host comes first."""

import os
from collections.abc import Iterable, Mapping
from functools import partial

from actors.errors import ConfigError, RequestError, Unsupported
from actors.protocol import LayerPlacement
from kernels.backend import Backend
from kernels.cpu.backend import MAX_THREADS, CpuBackend
from kernels.cuda.backend import CudaBackend
from kernels.cuda.cupy_driver import CupyDriver
from kernels.reference import ReferenceBackend
from kernels.sim.backend import SimBackend
from kernels.sim.machine import SimMachine

HOST = "cpu"


def open_host(cpu_isa: str, n_thread: int) -> Backend:
    """The host's own backend.  n_thread 0: one per core this process may use.

    cpu_isa forces an instruction set, "" takes the best; "reference" runs everything on the numpy
    reference, slowly.
    ConfigError names an instruction set that is unknown or missing here; RequestError: too many threads.
    """
    if cpu_isa == "reference":
        return ReferenceBackend(HOST)
    n_threads = n_thread or len(os.sched_getaffinity(0))
    if n_threads > MAX_THREADS:
        raise RequestError(f"{n_threads} threads were asked for, at most {MAX_THREADS} run", where="n_thread")
    try:
        return CpuBackend(n_threads, cpu_isa or None)
    except ValueError as exc:
        raise ConfigError(
            str(exc), where="cpu_isa", mend="unset RUNTIME_CPU_ISA to choose automatically"
        ) from exc


def open_backends(host: Backend, layers: Iterable[LayerPlacement], sim_dir: str) -> Mapping[str, Backend]:
    """The host, and each device that has layers: a context on another would take memory for nothing.

    sim_dir: the folder of the simulated machine, "" for none.  Unsupported names a device there is not.
    """
    backends = {host.name: host}
    for part in layers:
        if part.layers and part.device not in backends:
            backends[part.device] = _open_device(part.device, host, sim_dir)
    return backends


def no_device(device: str) -> Unsupported:
    """This runner has no backend for a device."""
    return Unsupported(
        f"this runner cannot use device {device!r}",
        where="placement",
        mend="place layers on devices that discovery lists as usable",
    )


def _open_device(device: str, host: Backend, sim_dir: str) -> Backend:
    if not sim_dir:
        return _open_cuda(device)
    try:
        return SimBackend(SimMachine(sim_dir), device, host)
    except LookupError as exc:
        raise no_device(device) from exc


def _open_cuda(device: str) -> Backend:
    # the management library takes 20 ms to import, which a runner on the host need not wait for
    from actors.runner.probe.cuda import find_listed
    from actors.runner.probe.nvml import process_bytes

    try:
        listed = find_listed(device)
    except Unsupported as exc:
        raise no_device(device) from exc
    if listed is None:
        raise no_device(device)
    return CudaBackend(
        device, CupyDriver(listed.ordinal, listed.name), partial(process_bytes, device, os.getpid())
    )
