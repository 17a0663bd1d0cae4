"""Backends that golden tests run on: the reference, every instruction set present here, CUDA."""

import pytest

from kernels.backend import Backend
from kernels.cpu.backend import CpuBackend, available_isas
from kernels.reference import ReferenceBackend
from tests.cuda import CUDA_BACKENDS


@pytest.fixture(scope="module", params=["reference", *available_isas(), *CUDA_BACKENDS])
def backend(request: pytest.FixtureRequest) -> Backend:
    name: str = request.param
    if name in CUDA_BACKENDS:
        return CUDA_BACKENDS[name]
    return ReferenceBackend("cpu") if name == "reference" else CpuBackend(2, name)
