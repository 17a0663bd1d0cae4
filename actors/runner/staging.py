"""Memory of the host through which weights get to devices: for each reader two buffers, used in turn.

While devices copy from one, the other is filled; from pinned memory they copy by themselves.
"""

from dataclasses import dataclass

from kernels.memory import Bytes, Pending

# `python -m bench.reading` with a virtual disk of 1.5 GB/s and 2 MiB of second-level cache a core: chunks of
# 64 KiB to 2 MiB all gave 1.4 to 1.6 GB/s, one handle in order the same, and one size differs by as much from
# run to run.  So this is no optimum: few calls, and what was read is still in the cache when it is copied on.
# Faster disks, which are said to want several requests at a time, have not been measured.
CHUNK_BYTES = 512 << 10
N_READERS = 4
N_BUFFERS = 2  # of each reader
STAGING_BYTES = N_READERS * N_BUFFERS * CHUNK_BYTES


@dataclass(slots=True, eq=False)
class StagingBuffer:
    """Room for a chunk, and the copies that devices make of it."""

    data: Bytes  # [CHUNK_BYTES]
    copies: tuple[Pending, ...] = ()

    def wait(self) -> None:
        """Until it may be filled."""
        for copy in self.copies:
            copy.wait()


def rings_of(staging: Bytes) -> list[list[StagingBuffer]]:
    """The buffers of each reader in [STAGING_BYTES]."""
    chunks = staging.reshape(N_READERS, N_BUFFERS, CHUNK_BYTES)
    return [[StagingBuffer(chunk) for chunk in ring] for ring in chunks]
