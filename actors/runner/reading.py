"""Brings tensors of a file where they are used: into the page cache for the host, copied to other devices.

Several readers take chunks in the order of the file, each with a handle and two buffers of its own: one is
filled while devices copy from the other.  Whoever asked for the load looks on, tells how far it is, and may
leave at any time: a reader that waits for the disk then delivers nothing any more, and copies that have begun
are waited for, so that the memory may be freed under it.
"""

import os
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from itertools import cycle
from typing import NamedTuple

from actors.errors import ModelError
from actors.runner.pages import resident_bytes, touch
from actors.runner.progress import Tell
from actors.runner.staging import CHUNK_BYTES, N_READERS, StagingBuffer, rings_of
from kernels.memory import Bytes, Memory

LOOK_S = 0.02  # between two looks at how far the readers are, and whether they are wanted
DELIVER_S = 10.0  # a chunk goes to a device in a millisecond; longer means that the device hangs
ASK_S = 0.001  # between two looks at whether copies are over that nobody wants any more

Identity = tuple[object, ...]


class Wanted(NamedTuple):
    """A tensor of the file: where it lies, and who needs it."""

    offset: int
    n_bytes: int
    targets: tuple[Memory, ...]  # on devices that the host cannot reach
    mapped: memoryview | None  # [n_bytes] where the host uses it in place


def identity_of(found: os.stat_result) -> Identity:
    """Changes when another file lies in its place, or it was written to."""
    return (found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns)


def chunks_of(wanted: Iterable[Wanted], chunk_bytes: int) -> Iterator[Wanted]:
    """The same bytes for the same targets in the order of the file, none longer than chunk_bytes."""
    for tensor in sorted(wanted, key=lambda w: w.offset):
        for start in range(0, tensor.n_bytes, chunk_bytes):
            n_bytes = min(chunk_bytes, tensor.n_bytes - start)
            yield Wanted(
                tensor.offset + start,
                n_bytes,
                tuple(target.part(start, n_bytes) for target in tensor.targets),
                None if tensor.mapped is None else tensor.mapped[start : start + n_bytes],
            )


def read(path: str, identity: Identity, wanted: Sequence[Wanted], staging: Bytes, tell: Tell) -> None:
    """Bring everything where it is wanted.  What `tell` raises ends the reading, within a moment.

    staging [STAGING_BYTES]: what the readers read into; from pinned memory devices copy by themselves.
    ModelError: the file cannot be read, or is another one than that of this identity.
    """
    total_bytes = sum(w.n_bytes for w in wanted)
    n_readers = min(N_READERS, 1 + total_bytes // CHUNK_BYTES)
    rings = rings_of(staging)[:n_readers]
    reading = _Reading(path, identity, chunks_of(wanted, CHUNK_BYTES), rings)
    pool = ThreadPoolExecutor(n_readers, "reader")
    pending = {pool.submit(reading.work, ring) for ring in rings}
    pool.shutdown(wait=False)
    try:
        tell("reading", 0, total_bytes)
        while pending:
            done, pending = wait(pending, LOOK_S, FIRST_EXCEPTION)
            for reader in done:
                reader.result()
            tell("reading", reading.done_bytes, total_bytes)
    finally:
        reading.stop()


class _Reading:
    """What the readers share."""

    def __init__(
        self,
        path: str,
        identity: Identity,
        chunks: Iterator[Wanted],
        rings: Sequence[Sequence[StagingBuffer]],
    ) -> None:
        self._rings = rings
        self._path = path
        self._identity = identity
        self._chunks = chunks
        self._change = threading.Condition()  # guards everything below, and the iterator
        self._is_stopped = False
        self._n_delivering = 0
        self.done_bytes = 0

    def stop(self) -> None:
        """From here on nothing is delivered; RuntimeError when a device hangs in the middle of it."""
        limit_s = time.monotonic() + DELIVER_S
        with self._change:
            self._is_stopped = True
            is_idle = self._change.wait_for(lambda: self._n_delivering == 0, DELIVER_S)
        copies = [copy for ring in self._rings for buffer in ring for copy in buffer.copies]
        while is_idle and not all(copy.is_done for copy in copies):
            is_idle = time.monotonic() < limit_s
            time.sleep(ASK_S)
        if not is_idle:
            raise RuntimeError(f"a device did not take {CHUNK_BYTES} bytes in {DELIVER_S:.0f} s")

    def work(self, ring: Sequence[StagingBuffer]) -> None:
        """One reader, until nothing is left."""
        try:
            handle = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as exc:
            raise self._error(f"cannot be read: {exc.strerror}") from exc
        try:
            if identity_of(os.fstat(handle)) != self._identity:
                raise self._error("was replaced or written to while it was being loaded")
            for buffer, chunk in zip(cycle(ring), iter(self._next, None), strict=False):
                buffer.wait()
                if chunk.targets or chunk.mapped is None or resident_bytes(chunk.mapped) < chunk.n_bytes:
                    self._fill(handle, buffer.data[: chunk.n_bytes], chunk.offset)
                self._deliver(chunk, buffer)
            for buffer in ring:
                buffer.wait()
        finally:
            os.close(handle)

    def _next(self) -> Wanted | None:
        with self._change:
            return None if self._is_stopped else next(self._chunks, None)

    def _fill(self, handle: int, data: Bytes, offset: int) -> None:
        done = 0
        while done < len(data):
            try:
                n_bytes = os.preadv(handle, [data.data[done:]], offset + done)
            except OSError as exc:
                raise self._error(f"cannot be read: {exc.strerror}") from exc
            if n_bytes == 0:
                raise self._error(f"ends at {offset + done} bytes, in the middle of a tensor")
            done += n_bytes

    def _deliver(self, chunk: Wanted, buffer: StagingBuffer) -> None:
        with self._change:
            if self._is_stopped:
                return
            self._n_delivering += 1
        try:
            data = buffer.data[: chunk.n_bytes]
            buffer.copies = ()
            for target in chunk.targets:
                buffer.copies = (*buffer.copies, target.start_upload(data))
            if chunk.mapped is not None:
                touch(chunk.mapped)
        finally:
            with self._change:
                self._n_delivering -= 1
                self.done_bytes += chunk.n_bytes
                self._change.notify_all()

    def _error(self, what: str) -> ModelError:
        return ModelError(f"{self._path}: {what}", where="runner.reading")
