"""Files that are there whole or not at all, also after a crash.  Everything here blocks."""

import os
import tempfile
import time
from collections.abc import Generator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

TEMP_PREFIX = ".new-"
STALE_TEMP_S = 24 * 3600.0  # of an upload that was killed; no living one lies still for so long


def open_temp(folder: Path) -> tuple[BinaryIO, Path]:
    """A new file in `folder` (made if absent) for `publish` or `discard`."""
    folder.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=TEMP_PREFIX, dir=folder)
    return os.fdopen(handle, "wb"), Path(name)


def publish(stream: BinaryIO, temp: Path, target: Path) -> None:
    """Make the temporary file appear at `target`, durable: fsync, rename, fsync of the folder."""
    stream.flush()
    os.fchmod(stream.fileno(), 0o644)
    os.fsync(stream.fileno())
    stream.close()
    target.parent.mkdir(parents=True, exist_ok=True)
    temp.replace(target)
    sync_folder(target.parent)


def discard(stream: BinaryIO, temp: Path) -> None:
    """Close and remove a temporary file; also one that is published or gone already."""
    stream.close()
    temp.unlink(missing_ok=True)


@contextmanager
def temp_file(folder: Path) -> Generator[tuple[BinaryIO, Path]]:
    """open_temp, discarded at the end if nobody published it."""
    stream, temp = open_temp(folder)
    try:
        yield stream, temp
    finally:
        discard(stream, temp)


def write_file(data: bytes, target: Path, temp_folder: Path) -> None:
    """Write a file atomically, by way of `temp_folder`, as the folder of `target` is listed by others."""
    with temp_file(temp_folder) as (stream, temp):
        stream.write(data)
        publish(stream, temp, target)


def sync_folder(folder: Path) -> None:
    """Make renames and removals in a folder durable."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def remove_stale_temps(folder: Path) -> None:
    """Remove what killed uploads left behind long ago."""
    oldest_s = time.time() - STALE_TEMP_S
    for temp in folder.glob(TEMP_PREFIX + "*"):
        with suppress(FileNotFoundError):  # someone else cleans up too
            if temp.stat().st_mtime < oldest_s:
                temp.unlink()
