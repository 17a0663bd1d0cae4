"""CUDA as tests use it: in the emulator, and on a GPU where RUNTIME_TEST_CUDA says that there is one."""

import os
from collections.abc import Mapping
from pathlib import Path

from kernels.backend import Backend
from kernels.cuda.backend import CudaBackend
from kernels.cuda.cupy_driver import CupyDriver
from kernels.cuda.driver import Driver
from kernels.cuda.emulator.driver import EmulatedDriver

EMULATED = "cuda-emulated"
COMPILED = Path(__file__).parent.parent / "build" / "cuda-emulated"  # what the emulator was compiled to


def opened(name: str, driver: Driver) -> CudaBackend:
    """A backend whose context is there."""
    backend = CudaBackend(name, driver)
    backend.open()
    return backend


WATCHED = opened("cuda:emulated", EmulatedDriver(COMPILED, is_watched=True))  # finds races, slowly

CUDA_BACKENDS: Mapping[str, Backend] = {EMULATED: opened("cuda:emulated", EmulatedDriver(COMPILED))} | (
    {"cuda": opened("cuda:0", CupyDriver(0, "a GPU"))} if os.environ.get("RUNTIME_TEST_CUDA") else {}
)
