"""Reading a file into memory: every byte once where it is wanted, in any cut, until nobody wants it."""

import os
import threading
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from actors.errors import ModelError
from actors.runner.progress import unheard
from actors.runner.reading import Identity, Wanted, chunks_of, identity_of, read
from actors.runner.staging import CHUNK_BYTES, STAGING_BYTES
from kernels.cuda.emulator.driver import EmulatedDriver
from kernels.cuda.memory import CudaMemory
from kernels.memory import Bytes, Done, HostMemory, Memory, Pending
from tests.cuda import COMPILED

N_BYTES = 3 * CHUNK_BYTES + 12345
STAGING = np.empty(STAGING_BYTES, np.uint8)


@pytest.fixture(scope="module")
def content() -> Bytes:
    return np.random.default_rng(1).integers(0, 256, N_BYTES, np.uint8)


@pytest.fixture
def path(tmp_path: Path, content: Bytes) -> str:
    (tmp_path / "file").write_bytes(content.tobytes())
    return str(tmp_path / "file")


def identity(path: str) -> Identity:
    return identity_of(os.stat(path))


@given(
    tensors=st.lists(st.tuples(st.integers(0, 9), st.integers(0, 40)), max_size=6),
    chunk_bytes=st.integers(1, 17),
)
def test_chunks_cover_each_tensor_once_and_in_the_order_of_the_file(
    tensors: list[tuple[int, int]], chunk_bytes: int
) -> None:
    wanted: list[Wanted] = []
    targets: list[HostMemory] = []
    end = 0
    for gap, n_bytes in tensors:
        targets.append(HostMemory(np.zeros(n_bytes, np.uint8)))
        wanted.insert(0, Wanted(end + gap, n_bytes, (targets[-1],), None))
        end += gap + n_bytes
    content = np.arange(end, dtype=np.uint8)
    chunks = list(chunks_of(wanted, chunk_bytes))
    for chunk in chunks:
        assert 0 < chunk.n_bytes <= chunk_bytes
        chunk.targets[0].upload(content[chunk.offset : chunk.offset + chunk.n_bytes])
    assert [c.offset for c in chunks] == sorted(c.offset for c in chunks)
    assert sum(c.n_bytes for c in chunks) == sum(w.n_bytes for w in wanted)
    for tensor, target in zip(reversed(wanted), targets, strict=True):
        assert np.array_equal(target.array, content[tensor.offset : tensor.offset + tensor.n_bytes])


def test_every_byte_arrives_at_each_of_its_targets(path: str, content: Bytes) -> None:
    cut = CHUNK_BYTES + 777
    first, second, third = (HostMemory(np.zeros(n, np.uint8)) for n in (cut, N_BYTES - cut, cut))
    wanted = [Wanted(cut, N_BYTES - cut, (second,), None), Wanted(0, cut, (first, third), None)]
    read(path, identity(path), wanted, STAGING, unheard)
    assert np.array_equal(np.concatenate([first.array, second.array]), content)
    assert np.array_equal(third.array, first.array)


def test_progress_rises_to_the_whole(path: str) -> None:
    told: list[int] = []

    def tell(phase: str, done_bytes: int, total_bytes: int) -> None:
        assert (phase, total_bytes) == ("reading", N_BYTES)
        told.append(done_bytes)

    read(
        path,
        identity(path),
        [Wanted(0, N_BYTES, (HostMemory(np.zeros(N_BYTES, np.uint8)),), None)],
        STAGING,
        tell,
    )
    assert told[0] == 0
    assert told == sorted(told)
    assert told[-1] == N_BYTES


def test_nothing_to_read_is_read_at_once(path: str) -> None:
    read(path, identity(path), [], STAGING, unheard)


def test_a_file_that_was_replaced_is_refused(path: str) -> None:
    before = identity(path)
    Path(path + ".new").write_bytes(b"x" * N_BYTES)
    os.replace(path + ".new", path)
    with pytest.raises(ModelError, match="was replaced"):
        read(path, before, [Wanted(0, N_BYTES, (), None)], STAGING, unheard)


def test_a_file_that_is_gone_or_too_short_is_named(path: str, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="missing: cannot be read: No such file"):
        read(str(tmp_path / "missing"), (), [Wanted(0, 1, (), None)], STAGING, unheard)
    with pytest.raises(ModelError, match=f"ends at {N_BYTES} bytes"):
        read(path, identity(path), [Wanted(0, N_BYTES + 1, (), None)], STAGING, unheard)


class Unwanted(Exception):
    """The load was given up."""


@dataclass
class Slow:
    """A device that takes a chunk when the test lets it."""

    n_bytes: int = N_BYTES
    opened: threading.Event = field(default_factory=threading.Event)
    began: threading.Event = field(default_factory=threading.Event)
    n_taken: int = 0

    def part(self, start: int, n_bytes: int) -> Memory:
        return self

    def upload(self, data: Bytes) -> None:
        raise AssertionError("nobody waits for it")

    def start_upload(self, data: Bytes) -> Pending:
        self.began.set()
        assert self.opened.wait(60)
        self.n_taken += 1
        return Done()

    def download(self, into: Bytes) -> None:
        raise AssertionError("nobody reads it")

    def reaches(self, other: Memory) -> bool:
        return False

    def receive(self, source: Memory, n_bytes: int) -> None:
        raise AssertionError("nobody sends to it")


def test_what_is_given_up_is_over_once_the_device_has_taken_what_it_began(path: str) -> None:
    slow = Slow()

    def tell(phase: str, done_bytes: int, total_bytes: int) -> None:
        if slow.began.is_set():
            slow.opened.set()
            raise Unwanted

    with pytest.raises(Unwanted):
        read(path, identity(path), [Wanted(0, N_BYTES, (slow,), None)], STAGING, tell)
    n_taken = slow.n_taken
    assert 1 <= n_taken <= 4
    for thread in threading.enumerate():
        if thread.name.startswith("reader"):
            thread.join(60)
    assert slow.n_taken == n_taken


def test_an_error_of_one_reader_ends_all(path: str) -> None:
    class Broken(Slow):
        def start_upload(self, data: Bytes) -> Pending:
            raise RuntimeError("the device is gone")

    with pytest.raises(RuntimeError, match="the device is gone"):
        read(path, identity(path), [Wanted(0, N_BYTES, (Broken(),), None)], STAGING, unheard)


N_LONG = 40 * CHUNK_BYTES + 99  # each buffer is used several times


@pytest.fixture(scope="module")
def long_content() -> Bytes:
    return np.random.default_rng(2).integers(0, 256, N_LONG, np.uint8)


def on_device(driver: EmulatedDriver, n_bytes: int) -> CudaMemory:
    return CudaMemory(driver, driver.allocate(n_bytes), n_bytes)


@pytest.mark.parametrize("seed", range(4))
def test_a_buffer_is_not_filled_again_before_a_device_has_copied_it(
    seed: int, tmp_path: Path, long_content: Bytes
) -> None:
    path = str(tmp_path / "file")
    Path(path).write_bytes(long_content.tobytes())
    driver, other = EmulatedDriver(COMPILED, seed), EmulatedDriver(COMPILED, seed + 1)
    driver.pin(STAGING)
    other.pin(STAGING)
    targets = (on_device(driver, N_LONG), on_device(other, N_LONG))
    read(path, identity(path), [Wanted(0, N_LONG, targets, None)], STAGING, unheard)
    STAGING[:] = 0xFF  # whatever still was to be copied is lost
    for target in targets:
        got = np.empty(N_LONG, np.uint8)
        target.download(got)
        assert np.array_equal(got, long_content)


def test_copies_that_have_begun_are_over_when_a_reading_was_given_up(
    tmp_path: Path, long_content: Bytes
) -> None:
    path = str(tmp_path / "file")
    Path(path).write_bytes(long_content.tobytes())
    driver = EmulatedDriver(COMPILED)
    driver.pin(STAGING)
    target = on_device(driver, N_LONG)
    begun: list[Pending] = []

    class Watched(CudaMemory):
        def part(self, start: int, n_bytes: int) -> CudaMemory:
            return Watched(driver, self.pointer + start, n_bytes)

        def start_upload(self, data: Bytes) -> Pending:
            begun.append(super().start_upload(data))
            return begun[-1]

    def tell(phase: str, done_bytes: int, total_bytes: int) -> None:
        if begun:
            raise Unwanted

    watched = Watched(driver, target.pointer, N_LONG)
    with pytest.raises(Unwanted):
        read(path, identity(path), [Wanted(0, N_LONG, (watched,), None)], STAGING, tell)
    assert begun
    assert driver.n_waiting == 0
