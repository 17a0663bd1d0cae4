"""Backends that golden tests run on: the reference, every instruction set present here, CUDA."""

import pytest

from kernels.backend import Backend
from kernels.cpu.backend import CpuBackend, available_isas
from kernels.reference import ReferenceBackend
from tests.cuda import CUDA_BACKENDS, EMULATED

FAST = ["reference", *available_isas(), *(name for name in CUDA_BACKENDS if name != EMULATED)]


def backend_of(name: str) -> Backend:
    """The backend of a name."""
    if name in CUDA_BACKENDS:
        return CUDA_BACKENDS[name]
    return ReferenceBackend("cpu") if name == "reference" else CpuBackend(2, name, small_bytes=0)


@pytest.fixture(scope="module", params=FAST)
def backend(request: pytest.FixtureRequest) -> Backend:
    return backend_of(request.param)


@pytest.fixture(scope="module", params=[*FAST, EMULATED])
def any_backend(request: pytest.FixtureRequest) -> Backend:
    """Also the emulator, in which a model takes seconds."""
    return backend_of(request.param)
