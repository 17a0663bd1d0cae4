"""The one type for content addresses.  Nothing else turns a digest's text into a file name."""

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from actors.errors import RequestError

CHUNK_BYTES = 1 << 20

_SYNTAX = re.compile(r"sha256[:-]([0-9a-fA-F]{64})")


@dataclass(frozen=True, slots=True)
class Digest:
    """A SHA-256 digest; `hex` is 64 lower-case hexadecimal digits."""

    hex: str

    def __str__(self) -> str:
        return f"sha256:{self.hex}"

    @property
    def file_name(self) -> str:
        """The blob's name in `blobs/`."""
        return f"sha256-{self.hex}"


def parse_digest(text: str) -> Digest:
    """Read "sha256:<64 hex>" (or with "-"); RequestError for anything else."""
    found = _SYNTAX.fullmatch(text)
    if found is None:
        shown = text if len(text) <= 80 else text[:77] + "..."
        raise RequestError(
            f"invalid digest {shown!r}",
            where="library.digest",
            mend="write sha256: and 64 hex digits",
        )
    return Digest(found[1].lower())


def digest_bytes(data: bytes) -> Digest:
    """The digest of bytes in memory."""
    return Digest(hashlib.sha256(data).hexdigest())


def digest_stream(stream: BinaryIO) -> Digest:
    """The digest of what is left in a stream, read in pieces of CHUNK_BYTES; blocks."""
    state = hashlib.sha256()
    while chunk := stream.read(CHUNK_BYTES):
        state.update(chunk)
    return Digest(state.hexdigest())


def digest_file(path: Path) -> Digest:
    """The digest of a file; blocks."""
    with path.open("rb") as stream:
        return digest_stream(stream)
