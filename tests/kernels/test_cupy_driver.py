"""The driver of real GPUs against a CuPy that imitates what of it can go wrong."""

import sys
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from kernels.backend import CONTEXT
from kernels.cuda.backend import CudaBackend
from kernels.cuda.cupy_driver import CupyDriver
from kernels.cuda.driver import Launch
from kernels.memory import OutOfMemory

MEMORY, NOT_READY, LOST = 2, 600, 46


class CUDARuntimeError(RuntimeError):
    """As CuPy's."""

    def __init__(self, status: int) -> None:
        super().__init__(f"error {status}")
        self.status = status


class CUBLASError(RuntimeError):
    """As CuPy's."""

    def __init__(self, status: int) -> None:
        super().__init__(f"library's error {status}")
        self.status = status


class Stream:
    """Counts captures."""

    def __init__(self, non_blocking: bool) -> None:
        assert non_blocking
        self.ptr, self.n_capturing = 7, 0

    def __enter__(self) -> "Stream":
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def begin_capture(self) -> None:
        self.n_capturing += 1

    def end_capture(self) -> object:
        self.n_capturing -= 1
        return object()


class Gpu:
    """Two devices; what a call answers can be set."""

    def __init__(self) -> None:
        self.handles: set[int] = set()
        self.n_created = 0
        self.used: list[int] = []
        self.event_status = 0
        self.create_error: Exception | None = None

    def create(self) -> int:
        if self.create_error:
            raise self.create_error
        self.n_created += 1
        self.handles.add(self.n_created)
        return self.n_created

    def check(self, status: int) -> None:
        if status:
            raise CUDARuntimeError(status)

    def modules(self) -> dict[str, Any]:
        runtime = SimpleNamespace(
            CUDARuntimeError=CUDARuntimeError,
            setDevice=self.used.append,
            memGetInfo=lambda: (1 << 30, 2 << 30),
            eventQuery=lambda _: self.event_status,
            check_status=self.check,
        )
        event = SimpleNamespace(ptr=1, record=lambda _: None, synchronize=lambda: None)
        cuda = SimpleNamespace(runtime=runtime, Stream=Stream, Event=lambda **_: event)

        def raw_module(**_: object) -> object:
            raise CUDARuntimeError(MEMORY)

        blas = SimpleNamespace(
            create=self.create,
            destroy=self.handles.remove,
            setStream=lambda handle, _: self.handles & {handle},
        )
        cupy = SimpleNamespace(cuda=cuda, RawModule=raw_module)
        return {"cupy": cupy, "cupy_backends.cuda.libs.cublas": blas}


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Gpu:
    made = Gpu()
    for name, module in made.modules().items():
        monkeypatch.setitem(sys.modules, name, module)
    return made


def test_the_librarys_handle_is_the_drivers_own_and_goes_with_it(gpu: Gpu) -> None:
    driver = CupyDriver(1, "a GPU")
    driver.open()
    assert len(gpu.handles) == 1  # and no thread's, which would end with the thread
    driver.close()
    driver.close()
    assert not gpu.handles
    assert set(gpu.used) == {1}  # the first device is never touched, not even to go back to it


@pytest.mark.parametrize("error", [CUDARuntimeError(MEMORY), CUBLASError(3)])
def test_no_room_for_a_context_is_out_of_memory_of_the_context(gpu: Gpu, error: Exception) -> None:
    gpu.create_error = error
    with pytest.raises(OutOfMemory, match=r"could not allocate .* for context") as caught:
        CudaBackend("cuda:1", CupyDriver(1, "a GPU")).open()
    assert caught.value.label == CONTEXT


def test_another_error_stays_what_it_is(gpu: Gpu) -> None:
    gpu.create_error = CUBLASError(1)
    with pytest.raises(CUBLASError):
        CudaBackend("cuda:1", CupyDriver(1, "a GPU")).open()


def test_a_failed_capture_is_ended(gpu: Gpu) -> None:
    driver = CupyDriver(1, "a GPU")
    driver.open()
    with pytest.raises(MemoryError):  # a kernel that cannot be loaded
        driver.record([Launch("gate", "", (1, 1, 1), 32, (np.uint64(0),))])
    assert driver.stream.n_capturing == 0


def test_a_lost_device_is_not_a_slow_one(gpu: Gpu) -> None:
    driver = CupyDriver(1, "a GPU")
    driver.open()
    mark = driver.mark()
    assert mark.is_done
    gpu.event_status = NOT_READY
    assert not mark.is_done
    gpu.event_status = LOST
    with pytest.raises(CUDARuntimeError, match="46"):
        _ = mark.is_done
