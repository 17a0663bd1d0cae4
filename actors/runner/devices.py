"""The devices a runner can use, as backends; the host comes first."""

import os
from collections.abc import Mapping

from actors.errors import ConfigError, RequestError
from kernels.backend import Backend
from kernels.cpu.backend import MAX_THREADS, CpuBackend
from kernels.reference import ReferenceBackend

HOST = "cpu"


def open_backends(cpu_isa: str, n_thread: int) -> Mapping[str, Backend]:
    """One backend per device.  n_thread 0: one per core this process may use.

    cpu_isa forces an instruction set, "" takes the best; "reference" runs everything on the numpy
    reference, slowly.
    ConfigError names an instruction set that is unknown or missing here; RequestError: too many threads.
    """
    if cpu_isa == "reference":
        return {HOST: ReferenceBackend(HOST)}
    n_threads = n_thread or len(os.sched_getaffinity(0))
    if n_threads > MAX_THREADS:
        raise RequestError(f"{n_threads} threads were asked for, at most {MAX_THREADS} run", where="n_thread")
    try:
        return {HOST: CpuBackend(n_threads, cpu_isa or None)}
    except ValueError as exc:
        raise ConfigError(
            str(exc), where="cpu_isa", mend="unset RUNTIME_CPU_ISA to choose automatically"
        ) from exc
