"""The devices a runner can use, as backends; the host comes first."""

import os
from collections.abc import Mapping

from kernels.cpu.backend import CpuBackend

from actors.config import Config
from actors.errors import ConfigError
from kernels.backend import Backend
from kernels.reference import ReferenceBackend

HOST = "cpu"


def open_backends(config: Config, n_thread: int) -> Mapping[str, Backend]:
    """One backend per device.  n_thread 0: one per core this process may use.

    The instruction set can be forced (`cpu_isa`); "reference" runs everything on the numpy reference, slowly.
    ConfigError names an instruction set that is unknown or missing here.
    """
    if config.cpu_isa == "reference":
        return {HOST: ReferenceBackend(HOST)}
    n_threads = n_thread or config.n_thread or len(os.sched_getaffinity(0))
    try:
        return {HOST: CpuBackend(n_threads, config.cpu_isa or None)}
    except ValueError as exc:
        raise ConfigError(
            str(exc), where="cpu_isa", mend="unset RUNTIME_CPU_ISA to choose automatically"
        ) from exc
