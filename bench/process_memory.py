"""What Linux says of a process's memory."""

from pathlib import Path

KIB = 1024


def anon_bytes(pid: int) -> int:
    """Memory of its own: heap, buffers, copies; no file behind it."""
    return _field(f"/proc/{pid}/status", "RssAnon:")


def rss_bytes(pid: int) -> int:
    """All memory it has mapped and that is there."""
    return _field(f"/proc/{pid}/smaps_rollup", "Rss:")


def pss_bytes(pid: int) -> int:
    """The same with each page divided by the number of processes that map it."""
    return _field(f"/proc/{pid}/smaps_rollup", "Pss:")


def _field(path: str, name: str) -> int:
    for line in Path(path).read_text().splitlines():
        if line.startswith(name):
            return int(line.split()[1]) * KIB
    raise ValueError(f"{path} has no {name}")
