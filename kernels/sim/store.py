"""The state of a simulated machine in a folder that every process of the host may open.

One JSON file, replaced as a whole under a lock that the kernel drops with its holder: a process killed at any
moment leaves the state before its change or after it.  Readers need no lock.
"""

import fcntl
import os
import time
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

import msgspec

from kernels.sim.state import State

LOCK_S = 10.0  # a change takes under a millisecond; longer means that its holder was stopped
LOOK_S = 0.0005
_DEAD_STATES = "ZX"  # a zombie's memory is gone already
_STATE, _STARTED = 0, 19  # fields of /proc/PID/stat, counted after the command's name


class Store:
    """The file and its lock."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._file = folder / "machine.json"

    def read(self) -> State:
        """The state without what dead processes held; an empty machine where there is no file."""
        try:
            state = msgspec.json.decode(self._file.read_bytes(), type=State)
        except FileNotFoundError:
            return State()
        state.bury(is_alive)
        return state

    @contextmanager
    def change(self) -> Generator[State]:
        """The state to be changed in the block, written at its end; an error writes nothing.

        TimeoutError: another process holds the lock and does not move.
        """
        with self._locked():
            state = self.read()
            yield state
            made = self._folder / "machine.json.new"  # only the holder of the lock writes it
            made.write_bytes(msgspec.json.encode(state))
            made.replace(self._file)

    @contextmanager
    def _locked(self) -> Generator[None]:
        self._folder.mkdir(parents=True, exist_ok=True)
        lock = os.open(self._folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            deadline_s = time.monotonic() + LOCK_S
            while not _try_lock(lock):
                if time.monotonic() > deadline_s:
                    raise TimeoutError(f"the lock in {self._folder} was not free for {LOCK_S:.0f} s")
                time.sleep(LOOK_S)
            yield
        finally:
            os.close(lock)


def _try_lock(fd: int) -> bool:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def started_of(pid: int) -> int | None:
    """The tick at which a living process started; None for a dead one."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return None
    fields = text.rpartition(")")[2].split()
    return None if fields[_STATE] in _DEAD_STATES else int(fields[_STARTED])


def is_alive(pid: int, started: int) -> bool:
    """Whether the process that started then still lives."""
    return started_of(pid) == started
