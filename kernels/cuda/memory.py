"""Memory of a CUDA device."""

from kernels.cuda.driver import Driver, Pointer
from kernels.memory import Allocations, Bytes, Done, Memory, Pending


class CudaMemory:
    """A range of one device's memory.  Satisfies `kernels.memory.Memory`."""

    def __init__(self, driver: Driver, pointer: Pointer, n_bytes: int) -> None:
        self._driver = driver
        self.pointer = pointer
        self._n_bytes = n_bytes

    @property
    def n_bytes(self) -> int:
        """Its size."""
        return self._n_bytes

    def part(self, start: int, n_bytes: int) -> "CudaMemory":
        """See `Memory`."""
        if not 0 <= start <= start + n_bytes <= self._n_bytes:
            raise ValueError(f"bytes {start} to {start + n_bytes} are not within {self._n_bytes}")
        return CudaMemory(self._driver, self.pointer + start, n_bytes)

    def upload(self, data: Bytes) -> None:
        """See `Memory`."""
        if data.nbytes:
            self._driver.upload(self.pointer, data)

    def start_upload(self, data: Bytes) -> Pending:
        """See `Memory`."""
        return self._driver.start_upload(self.pointer, data) if data.nbytes else Done()

    def reaches(self, other: Memory) -> bool:
        """Whether the driver says that one device reaches the other."""
        return isinstance(other, CudaMemory) and self._driver.reaches(other._driver)

    def receive(self, source: Memory, n_bytes: int) -> None:
        """See `Memory`."""
        if not isinstance(source, CudaMemory) or not self._driver.reaches(source._driver):
            raise ValueError(f"{n_bytes} bytes of {source} are out of reach of {self._driver.title}")
        if n_bytes:
            self._driver.receive(self.pointer, source._driver, source.pointer, n_bytes)

    def download(self, into: Bytes) -> None:
        """See `Memory`."""
        if into.nbytes:
            self._driver.download(self.pointer, into)

    def is_of(self, driver: Driver) -> bool:
        """Whether this device's kernels reach it."""
        return self._driver is driver

    def __repr__(self) -> str:
        return f"{self._n_bytes} bytes of {self._driver.title}"


class CudaBuffer:
    """A buffer that the driver gave.  Satisfies `kernels.memory.Buffer`."""

    def __init__(
        self,
        driver: Driver,
        pointer: Pointer,
        n_bytes: int,
        given_bytes: int,
        label: str,
        counters: Allocations,
    ) -> None:
        self._driver = driver
        self._pointer = pointer
        self._asked_bytes, self._given_bytes = n_bytes, given_bytes
        self._label = label
        self._counters = counters
        self._memory = CudaMemory(driver, pointer, n_bytes)
        self._is_freed = False
        counters.give(label, n_bytes, given_bytes)

    @property
    def memory(self) -> CudaMemory:
        """The whole of it; of no bytes once freed."""
        return self._memory

    def free(self) -> None:
        """Give the memory back; the second call does nothing."""
        if self._is_freed:
            return
        self._is_freed = True
        if self._given_bytes:
            self._driver.free(self._pointer)
        self._counters.take(self._label, self._asked_bytes, self._given_bytes)
        self._memory = CudaMemory(self._driver, 0, 0)
