"""Tables for people and for awk: left aligned, four blanks apart, one header line, no borders, no colours."""

import shutil
import sys
from collections.abc import Sequence

from rich.cells import cell_len

GAP = " " * 4
NARROW_GAP = " " * 2


def terminal_width() -> int | None:
    """Columns of the terminal on standard output; None if that is a file or a pipe."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else None


def table(header: Sequence[str], rows: Sequence[Sequence[str]], width: int | None = None) -> str:
    """Lines of equal columns.  The gap shrinks to two blanks where a terminal's `width` would be exceeded."""
    lines = [list(header), *([clean(cell) for cell in row] for row in rows)]
    widths = [max(cell_len(line[column]) for line in lines) for column in range(len(header))]
    is_wide = width is not None and sum(widths) + len(GAP) * (len(widths) - 1) > width
    gap = NARROW_GAP if is_wide else GAP
    return "\n".join(
        gap.join(
            cell + " " * (width - cell_len(cell)) for cell, width in zip(line, widths, strict=True)
        ).rstrip()
        for line in lines
    )


def clean(text: str) -> str:
    """Without control characters: names and errors come from elsewhere, and terminals obey those."""
    return "".join(char if char.isprintable() else "�" for char in text)


def section(title: str, rows: Sequence[tuple[str, str]]) -> str:
    """A titled block of `show`: names and values, indented."""
    if not rows:
        return ""
    width = max(cell_len(name) for name, _ in rows)
    lines = [
        f"    {clean(name)}{' ' * (width - cell_len(name))}{GAP}{clean(value)}".rstrip()
        for name, value in rows
    ]
    return "\n".join([f"  {title}", *lines, ""])
