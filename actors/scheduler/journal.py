"""The latest decisions with their numbers, for whoever asks why."""

import logging
import time
from collections import deque

N_DECISIONS = 256  # a day's loads on a busy machine; some tens of KiB

log = logging.getLogger("scheduler")


class Journal:
    """A ring of sentences, oldest first."""

    def __init__(self) -> None:
        self._decisions: deque[str] = deque(maxlen=N_DECISIONS)

    def note(self, decision: str) -> None:
        """Keep and log a decision."""
        self._decisions.append(f"{time.strftime('%Y-%m-%dT%H:%M:%S%z')} {decision}")
        log.info("%s", decision)

    def decisions(self) -> tuple[str, ...]:
        """Oldest first."""
        return tuple(self._decisions)
