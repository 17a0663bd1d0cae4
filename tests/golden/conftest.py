"""Backends that golden tests run on: the reference, and every instruction set present here."""

import pytest

from kernels.backend import Backend
from kernels.cpu.backend import CpuBackend, available_isas
from kernels.reference import ReferenceBackend


@pytest.fixture(scope="module", params=["reference", *available_isas()])
def backend(request: pytest.FixtureRequest) -> Backend:
    return ReferenceBackend("cpu") if request.param == "reference" else CpuBackend(2, request.param)
