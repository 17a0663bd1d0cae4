"""How a load, which works on a thread, tells how far it has come."""

import time
from collections.abc import Callable
from typing import Literal

import trio

from actors.protocol import LoadProgress

Phase = Literal["allocating", "reading", "finalising"]
Tell = Callable[[Phase, int, int], None]
"""Phase, done bytes, total bytes.  Called often, by one thread; raises when the load is not wanted."""

EVERY_BYTES = 64 << 20  # more often tells a person nothing
EVERY_S = 0.5  # on a slow disk less than EVERY_BYTES must tell that it moves


def unheard(phase: Phase, done_bytes: int, total_bytes: int) -> None:
    """Nobody listens."""


class Teller:
    """A `Tell` for one thread of a trio program: sends what is news, and is where cancellation arrives."""

    def __init__(self, progress: trio.MemorySendChannel[LoadProgress]) -> None:
        self._progress = progress
        self._told: tuple[str, int] = ("", 0)
        self._told_s = 0.0

    def __call__(self, phase: Phase, done_bytes: int, total_bytes: int) -> None:
        """See `Tell`; trio.Cancelled goes up."""
        trio.from_thread.check_cancelled()
        now_s = time.monotonic()
        if (phase, done_bytes) == self._told:
            return  # it does not move
        is_due = (
            phase != self._told[0]
            or done_bytes == total_bytes
            or done_bytes - self._told[1] >= EVERY_BYTES
            or now_s - self._told_s >= EVERY_S
        )
        if is_due:
            self._told, self._told_s = (phase, done_bytes), now_s
            item = LoadProgress(phase=phase, done_bytes=done_bytes, total_bytes=total_bytes)
            trio.from_thread.run(self._progress.send, item)
