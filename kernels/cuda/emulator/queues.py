"""What a GPU does by itself: queues of work, each in its order, one against another in an order of chance.

Nothing is done before somebody waits, so that whoever reads too early, or forgets to wait, finds what was
there before.
"""

import random
import threading
from collections import defaultdict, deque
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(slots=True, eq=False)
class Point:
    """A place in a queue; reached once everything before it is done."""

    is_reached: bool = False


class Queues:
    """The queues of one device.  Threads may share it; seed: of the order."""

    _lock = threading.RLock()  # guards all of every device: work of one may wait for another's

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)
        self._waiting: defaultdict[str, deque[Callable[[], object]]] = defaultdict(deque)

    def __len__(self) -> int:
        """What was given and is not done."""
        with self._lock:
            return sum(len(queue) for queue in self._waiting.values())

    def put(self, name: str, work: Callable[[], object]) -> None:
        """At the end of a queue."""
        with self._lock:
            self._waiting[name].append(work)

    def mark(self, name: str) -> Point:
        """The end of a queue as it is now."""
        point = Point()

        def reach() -> None:
            point.is_reached = True

        self.put(name, reach)
        return point

    def advance(self) -> bool:
        """Do one thing of any queue; False when there is none to be done."""
        with self._lock:
            ready = [queue for queue in self._waiting.values() if queue]
            if not ready:
                return False
            self._random.choice(ready).popleft()()
            return True

    def reach(self, point: Point) -> None:
        """Do what has to be done before a point, and by chance other things."""
        while not point.is_reached:
            self.advance()

    def finish(self) -> None:
        """Do everything."""
        while self.advance():
            pass
