"""`python -m bench.reading`: how fast a load reads, beside one handle that reads the same file in order.

Each round drops the file from the page cache, reads it plainly, drops it again, and has the runner's readers
bring it to a device (copied) and to the host (left in the page cache, and mapped).  The rounds' medians are
compared, so that all three have met the same disk.
"""

import argparse
import os
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np

from actors.runner.gguf.reader import map_file
from actors.runner.progress import Phase, unheard
from actors.runner.reading import Wanted, identity_of, read
from actors.runner.staging import CHUNK_BYTES, N_READERS, STAGING_BYTES
from kernels.memory import Bytes, HostMemory

N_ROUNDS = 5
PLAIN_BYTES = 8 << 20  # of one plain read
GIVEN_UP_AT = 0.3  # of the file


class GivenUp(Exception):
    """A load that is cancelled."""


def main(arguments: Sequence[str]) -> int:
    """Process entry; the exit code."""
    parser = argparse.ArgumentParser(prog="python -m bench.reading", description=__doc__)
    parser.add_argument("--folder", type=Path, default=Path("."), help="on the disk to be measured")
    parser.add_argument("--mib", type=int, default=1024, help="size of the file")
    options = parser.parse_args(arguments)
    path: Path = options.folder / f"reading-{os.getpid()}.bin"
    try:
        make(path, options.mib << 20)
        print(report(path))
    finally:
        path.unlink(missing_ok=True)
    return 0


def make(path: Path, n_bytes: int) -> None:
    """A file of random bytes."""
    rng = np.random.default_rng(0)
    with path.open("wb") as file:
        for start in range(0, n_bytes, PLAIN_BYTES):
            file.write(rng.bytes(min(PLAIN_BYTES, n_bytes - start)))
        file.flush()
        os.fsync(file.fileno())


def report(path: Path) -> str:
    """The medians of all rounds, and how long giving up takes."""
    ways: dict[str, Callable[[Path], None]] = {"plain": plain, "device": to_device, "host": to_host}
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    device_of(path.stat().st_size)
    for _ in range(N_ROUNDS):
        for name, way in ways.items():
            drop(path)
            began_s = time.perf_counter()
            way(path)
            seconds[name].append(time.perf_counter() - began_s)
    plain_s = statistics.median(seconds["plain"])
    lines = [
        f"{path.stat().st_size >> 20} MiB, {N_READERS} readers of {CHUNK_BYTES >> 10} KiB, {N_ROUNDS} rounds"
    ]
    for name, taken in seconds.items():
        median_s = statistics.median(taken)
        rate = path.stat().st_size / median_s / 1e9
        spread = f"{min(taken):.2f} to {max(taken):.2f} s"
        lines.append(f"{name:8} {rate:6.2f} GB/s  {100 * plain_s / median_s:4.0f} % of plain  ({spread})")
    drop(path)
    lines.append(f"given up after {1e3 * given_up_s(path):.0f} ms")
    return "\n".join(lines)


def drop(path: Path) -> None:
    """Forget the file's pages."""
    with path.open("rb") as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def plain(path: Path) -> None:
    """One handle, in order, into one buffer."""
    buffer = np.empty(PLAIN_BYTES, np.uint8)
    with path.open("rb", buffering=0) as file:
        while file.readinto(buffer.data):
            continue


def to_device(path: Path) -> None:
    """As for weights of a device."""
    n_bytes = path.stat().st_size
    read(
        str(path),
        identity_of(path.stat()),
        [Wanted(0, n_bytes, (device_of(n_bytes),), None)],
        staging(),
        unheard,
    )


@lru_cache(maxsize=1)
def device_of(n_bytes: int) -> HostMemory:
    """A device's memory, which is there before a load reads."""
    return HostMemory(np.ones(n_bytes, np.uint8))


@lru_cache(maxsize=1)
def staging() -> Bytes:
    """What a load reads into, which is there before it, too."""
    return np.ones(STAGING_BYTES, np.uint8)


def to_host(path: Path) -> None:
    """As for weights of the host."""
    n_bytes = path.stat().st_size
    mapped = memoryview(map_file(path))
    read(str(path), identity_of(path.stat()), [Wanted(0, n_bytes, (), mapped)], staging(), unheard)


def given_up_s(path: Path) -> float:
    """From the moment at which a load is not wanted any more until nothing is delivered."""
    n_bytes = path.stat().st_size
    target = device_of(n_bytes)
    asked_s: list[float] = []

    def tell(_phase: Phase, done_bytes: int, total_bytes: int) -> None:
        if done_bytes > GIVEN_UP_AT * total_bytes:
            asked_s.append(time.perf_counter())
            raise GivenUp

    try:
        read(str(path), identity_of(path.stat()), [Wanted(0, n_bytes, (target,), None)], staging(), tell)
    except GivenUp:
        return time.perf_counter() - asked_s[0]
    raise AssertionError("it was read to the end")


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
