"""Where this process's control groups are, in version 1 and 2.  cgroups(7), mountinfo in proc(5)."""

from collections.abc import Callable
from pathlib import PurePosixPath

import msgspec

Read = Callable[[str], str | None]
"""Gives a file's text, or None when there is no such file."""


class Folders(msgspec.Struct, frozen=True):
    """The control group of one controller and those it is nested in, innermost first."""

    is_v2: bool
    paths: tuple[str, ...]


def find_folders(controller: str, read: Read) -> Folders | None:
    """Folders of the groups that bound this process; None when the controller is not mounted.

    A limit on any of them binds, so all ancestors that can be seen are given.
    """
    groups = _groups(read("/proc/self/cgroup") or "")
    mounts = read("/proc/self/mountinfo") or ""
    for is_v2, key in ((False, controller), (True, "")):
        if key not in groups:
            continue
        for root, mount_point in _mounts(mounts, None if is_v2 else controller):
            folders = Folders(is_v2, _nested(groups[key], root, mount_point))
            if not is_v2 or _has_controller(folders, controller, read):
                return folders
    return None


def _groups(text: str) -> dict[str, str]:
    """Path by controller from /proc/self/cgroup; version 2's has the name ""."""
    groups: dict[str, str] = {}
    for line in text.splitlines():
        parts = line.split(":", 2)
        if len(parts) == 3:
            for name in parts[1].split(","):
                groups[name] = parts[2]
    return groups


def _mounts(text: str, controller: str | None) -> list[tuple[str, str]]:
    """(root, mount point) of the hierarchies with this controller; None: version 2."""
    found: list[tuple[str, str]] = []
    for line in text.splitlines():
        head, _, tail = line.partition(" - ")
        left, right = head.split(), tail.split()
        if len(left) < 5 or len(right) < 3:
            continue
        is_match = right[0] == "cgroup2" if controller is None else controller in right[2].split(",")
        if is_match and right[0] in ("cgroup", "cgroup2"):
            found.append((left[3], left[4]))
    return found


def _nested(group: str, root: str, mount_point: str) -> tuple[str, ...]:
    top = PurePosixPath(mount_point)
    try:
        inside = PurePosixPath(group).relative_to(root)
    except ValueError:
        return (str(top),)  # a group outside what is mounted here: only the mount itself can be seen
    if ".." in inside.parts:
        return (str(top),)
    folder = top / inside
    return tuple(str(path) for path in (folder, *folder.parents) if path == top or top in path.parents)


def _has_controller(folders: Folders, controller: str, read: Read) -> bool:
    return any(controller in (read(f"{path}/cgroup.controllers") or "").split() for path in folders.paths)
