"""The blobs of a library: content-addressed files, verified before they get their name."""

import errno
import fcntl
import shutil
from collections.abc import AsyncIterable
from hashlib import sha256
from pathlib import Path
from typing import BinaryIO

import trio

from actors.errors import CapacityError, RequestError
from actors.gateway.library import atomic
from actors.gateway.library.digest import CHUNK_BYTES, Digest, digest_bytes, digest_file

FICLONE = 0x40049409  # ioctl_ficlone(2): share the blocks of another file, copy on write
UPLOADS = trio.CapacityLimiter(4)  # threads that hash and write; more only fight over the disk


class Blobs:
    """`<models_dir>/blobs`.  Methods block, except `receive`."""

    def __init__(self, models_dir: Path) -> None:
        self.folder = models_dir / "blobs"

    def path(self, digest: Digest) -> Path:
        """Where this blob lies, or would."""
        return self.folder / digest.file_name

    def add(self, data: bytes) -> Digest:
        """Store bytes; nothing is written when they are there already."""
        digest = digest_bytes(data)
        target = self.path(digest)
        if not target.is_file():
            atomic.write_file(data, target, self.folder)
        return digest

    def add_file(self, source: Path) -> Digest:
        """Store a file: its blocks shared where the file system can, else copied.

        Never a hard link: a later write to the source would change the blob under its digest.
        """
        with atomic.temp_file(self.folder) as (stream, temp), source.open("rb") as original:
            if not _clone(original, stream):
                shutil.copyfileobj(original, stream, CHUNK_BYTES)
            stream.flush()
            digest = digest_file(temp)
            if not self.path(digest).is_file():
                atomic.publish(stream, temp, self.path(digest))
        return digest

    async def receive(self, wanted: Digest, chunks: AsyncIterable[bytes]) -> None:
        """Store a stream of bytes under its digest; RequestError, and nothing stored, if it has another.

        CapacityError when the disk is full.  Hashing and writing happen in threads, a piece at a time.
        """
        stream, temp = await trio.to_thread.run_sync(self._open_upload, limiter=UPLOADS)
        try:
            state = sha256()

            def take(piece: bytes) -> None:
                state.update(piece)
                stream.write(piece)

            async for piece in _gather(chunks):
                await trio.to_thread.run_sync(take, piece, limiter=UPLOADS)
            got = Digest(state.hexdigest())
            if got != wanted:
                raise RequestError(
                    f"digest mismatch, expected {str(wanted)!r}, got {str(got)!r}",
                    where="library.blobs",
                    mend="upload the file again, unchanged",
                )
            await trio.to_thread.run_sync(atomic.publish, stream, temp, self.path(wanted), limiter=UPLOADS)
        except OSError as exc:
            if exc.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            raise CapacityError(
                f"no space left for blob {wanted}",
                where=str(self.folder),
                mend="delete some models",
            ) from exc
        finally:
            atomic.discard(stream, temp)

    def _open_upload(self) -> tuple[BinaryIO, Path]:
        opened = atomic.open_temp(self.folder)
        atomic.remove_stale_temps(self.folder)
        return opened


def _clone(source: BinaryIO, target: BinaryIO) -> bool:
    """Share the source's blocks with the target; False when this file system cannot."""
    try:
        fcntl.ioctl(target.fileno(), FICLONE, source.fileno())
    except OSError as exc:
        if exc.errno in (errno.EOPNOTSUPP, errno.EXDEV, errno.EINVAL, errno.ENOTTY, errno.ENOSYS):
            return False
        raise
    return True


async def _gather(chunks: AsyncIterable[bytes]) -> AsyncIterable[bytes]:
    """The same bytes in pieces of CHUNK_BYTES or more: a network's are not worth a thread each."""
    held = bytearray()
    async for chunk in chunks:
        held += chunk
        if len(held) >= CHUNK_BYTES:
            yield bytes(held)
            held.clear()
    if held:
        yield bytes(held)
