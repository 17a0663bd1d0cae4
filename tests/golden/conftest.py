"""Backends that golden tests run on: the reference, and every instruction set present here."""

import pytest

from kernels.backend import Backend
from kernels.reference import ReferenceBackend


@pytest.fixture(params=["reference"])
def backend(request: pytest.FixtureRequest) -> Backend:
    return ReferenceBackend("cpu")
