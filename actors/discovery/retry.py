"""When a library is looked at again.  Pure: what happened comes in, seconds come out."""

import math
from typing import Final

from actors.protocol import LibraryReport

FIRST_S: Final = 1.0
LONGEST_S: Final = 300.0
ABSENT_S: Final = 30.0
"""Where nothing is: a driver may be loaded, or a device plugged in, while we run.  Costs a few file names."""
STEADY_S: Final = 30.0
"""A watch that lived so long was no failure."""


def delay_s(report: LibraryReport, n_failures: int) -> float:
    """Seconds until the next look; infinite where a report is good until somebody asks.

    n_failures: looks and watches in a row that went wrong.  They are tried again soon, and then ever later.
    """
    if n_failures:
        return min(FIRST_S * 2.0 ** min(n_failures - 1, 30), LONGEST_S)
    return {"none": ABSENT_S, "missing": LONGEST_S}.get(report.state, math.inf)
