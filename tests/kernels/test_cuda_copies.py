"""Copies of CUDA devices, in the emulator: in the order that work was given, whoever's work it was."""

import numpy as np
import pytest

from kernels.cuda.emulator.driver import EmulatedDriver
from kernels.cuda.memory import CudaMemory
from kernels.dtype import DType
from kernels.memory import Bytes, HostMemory
from kernels.ops.copy import Copy
from kernels.tensor import Role, Tensor
from kernels.transfer import Transfer
from tests.cuda import COMPILED

N_BYTES = 64


def on(driver: EmulatedDriver) -> CudaMemory:
    return CudaMemory(driver, driver.allocate(N_BYTES), N_BYTES)


def full_of(value: int) -> Bytes:
    return np.full(N_BYTES, value, np.uint8)


def read(memory: CudaMemory) -> set[int]:
    got = full_of(0)
    memory.download(got)
    return {*got.tolist()}


@pytest.mark.parametrize("seed", range(8))
def test_what_one_device_gets_of_another_is_what_lay_there_when_it_was_asked_for(seed: int) -> None:
    ours, theirs = on(EmulatedDriver(COMPILED, seed)), on(EmulatedDriver(COMPILED, seed + 1))
    theirs.upload(full_of(1))
    ours.receive(theirs, N_BYTES)
    theirs.upload(full_of(2))
    assert read(theirs) == {2}
    assert read(ours) == {1}


def test_a_started_copy_is_there_once_it_is_done_and_takes_no_part_in_the_order_of_work() -> None:
    driver = EmulatedDriver(COMPILED)
    data, memory = full_of(3), on(driver)
    driver.pin(data)
    copy = memory.start_upload(data)
    assert not copy.is_done or driver.n_waiting == 0
    copy.wait()
    assert copy.is_done
    assert read(memory) == {3}


def test_a_value_cannot_go_where_nobody_reaches() -> None:
    apart = [on(EmulatedDriver(COMPILED, has_peers=False)) for _ in range(2)]
    tensor = Tensor("x", (N_BYTES // 4,), DType.F32, Role.VALUE, 0)
    with pytest.raises(ValueError, match="neither reaches the other"):
        Transfer([(Copy(0, tensor, tensor), apart[0], apart[1])])
    with pytest.raises(ValueError, match="out of reach"):
        apart[0].receive(apart[1], N_BYTES)
    with pytest.raises(ValueError, match="out of reach"):
        HostMemory(full_of(0)).receive(apart[0], N_BYTES)
