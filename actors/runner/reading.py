"""Brings tensors of a file where they are used: into the page cache for the host, copied to other devices.

Several readers take chunks in the order of the file, each with a handle and a buffer of its own.  Whoever
asked for the load looks on, tells how far it is, and may leave at any time: a reader that waits for the disk
then delivers nothing any more, so that the memory may be freed under it.
"""

import os
import threading
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from typing import NamedTuple

import numpy as np

from actors.errors import ModelError
from actors.runner.pages import resident_bytes, touch
from actors.runner.progress import Tell
from kernels.memory import Bytes, Memory

# `python -m bench.reading` with a virtual disk of 1.5 GB/s and 2 MiB of second-level cache a core: chunks of
# 64 KiB to 2 MiB all gave 1.4 to 1.6 GB/s, one handle in order the same, and one size differs by as much from
# run to run.  So this is no optimum: few calls, and what was read is still in the cache when it is copied on.
# Faster disks, which are said to want several requests at a time, have not been measured.
CHUNK_BYTES = 512 << 10
N_READERS = 4
LOOK_S = 0.02  # between two looks at how far the readers are, and whether they are wanted
DELIVER_S = 10.0  # a chunk goes to a device in a millisecond; longer means that the device hangs

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


def read(path: str, identity: Identity, wanted: Sequence[Wanted], tell: Tell) -> None:
    """Bring everything where it is wanted.  What `tell` raises ends the reading, within a moment.

    ModelError: the file cannot be read, or is another one than that of this identity.
    """
    total_bytes = sum(w.n_bytes for w in wanted)
    reading = _Reading(path, identity, chunks_of(wanted, CHUNK_BYTES))
    n_readers = min(N_READERS, 1 + total_bytes // CHUNK_BYTES)
    pool = ThreadPoolExecutor(n_readers, "reader")
    pending = {pool.submit(reading.work) for _ in range(n_readers)}
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

    def __init__(self, path: str, identity: Identity, chunks: Iterator[Wanted]) -> None:
        self._path = path
        self._identity = identity
        self._chunks = chunks
        self._change = threading.Condition()  # guards everything below, and the iterator
        self._is_stopped = False
        self._n_delivering = 0
        self.done_bytes = 0

    def stop(self) -> None:
        """From here on nothing is delivered; RuntimeError when a device hangs in the middle of it."""
        with self._change:
            self._is_stopped = True
            if not self._change.wait_for(lambda: self._n_delivering == 0, DELIVER_S):
                raise RuntimeError(f"a device did not take {CHUNK_BYTES} bytes in {DELIVER_S:.0f} s")

    def work(self) -> None:
        """One reader, until nothing is left."""
        try:
            handle = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as exc:
            raise self._error(f"cannot be read: {exc.strerror}") from exc
        try:
            if identity_of(os.fstat(handle)) != self._identity:
                raise self._error("was replaced or written to while it was being loaded")
            staging = np.empty(CHUNK_BYTES, np.uint8)
            while (chunk := self._next()) is not None:
                data = staging[: chunk.n_bytes]
                if chunk.targets or chunk.mapped is None or resident_bytes(chunk.mapped) < chunk.n_bytes:
                    self._fill(handle, data, chunk.offset)
                self._deliver(chunk, data)
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

    def _deliver(self, chunk: Wanted, data: Bytes) -> None:
        with self._change:
            if self._is_stopped:
                return
            self._n_delivering += 1
        try:
            for target in chunk.targets:
                target.upload(data)
            if chunk.mapped is not None:
                touch(chunk.mapped)
        finally:
            with self._change:
                self._n_delivering -= 1
                self.done_bytes += chunk.n_bytes
                self._change.notify_all()

    def _error(self, what: str) -> ModelError:
        return ModelError(f"{self._path}: {what}", where="runner.reading")
