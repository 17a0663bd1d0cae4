"""How much swap is free for us.  It is no memory to load models into, but better than refusing one."""

from actors.discovery.cgroup import Read, find_folders


def measure_swap(read: Read) -> int:
    """Free bytes of swap, cut to the limits of our control groups; `read` gives the texts of files."""
    free_bytes = 0
    for line in (read("/proc/meminfo") or "").splitlines():
        if line.startswith("SwapFree:"):
            free_bytes = 1024 * int(line.split()[1])
    folders = find_folders("memory", read)
    # groups of version 1 limit memory and swap as one sum, which says nothing of swap alone
    for path in folders.paths if folders and folders.is_v2 else ():
        limit = (read(f"{path}/memory.swap.max") or "").strip()
        used = (read(f"{path}/memory.swap.current") or "").strip()
        if limit.isdigit() and used.isdigit():
            free_bytes = min(free_bytes, int(limit) - int(used))
    return max(0, free_bytes)
